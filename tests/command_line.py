"""The `prance` command, run in this process."""

from __future__ import annotations

import pytest

from train.commands.main import main


def prance(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    """Runs a command to its end."""
    monkeypatch.setattr("sys.argv", ["prance", *map(str, arguments)])
    main()


def refusal(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> str:
    """The words with which a command ends."""
    with pytest.raises(SystemExit) as stop:
        prance(monkeypatch, *arguments)
    words = str(stop.value.code)
    assert words.startswith("prance: ")
    return words
