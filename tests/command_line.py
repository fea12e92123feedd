"""The `prance` command, run in this process."""

from __future__ import annotations

import contextlib
import io

import pytest

from train.commands.main import main


def prance(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    """Runs a command to its end."""
    monkeypatch.setattr("sys.argv", ["prance", *map(str, arguments)])
    main()


def refusal(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> str:
    """The words with which a command ends: one or two lines, and exit status 2."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), pytest.raises(SystemExit) as stop:
        prance(monkeypatch, *arguments)
    assert stop.value.code == 2
    words = said.getvalue()[said.getvalue().rfind("prance: ") :]
    assert words.startswith("prance: "), said.getvalue()
    return words.rstrip("\n")
