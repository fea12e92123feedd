"""What commands say when they are stopped, and pipes that are closed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from command_line import prance

from train.commands import main as entry
from train.commands.main import Command
from train.going_on import NOTHING, SAME, STOPPED


def said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The last line of a command that is stopped before it has done anything."""

    def stopped(command: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(entry, "_check_device", stopped)
    with pytest.raises(SystemExit) as stop:
        prance(monkeypatch, *words)
    assert stop.value.code == 130
    return capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("words", "kept", "expected"),
    [
        ("train agent --out {run} --algo ppo", "config.yml", "Go on with: prance train agent --resume --out {run}"),
        ("train agent --out {run}", None, NOTHING),
        ("tune --algo ppo --trials 3 --out {run}", "config.yml", "Go on with: prance tune --resume --out {run}"),
        (
            "distill --teacher original --student digits --dataset digits --out {run}",
            "info.json",
            "Go on with: prance distill --resume --teacher original --student digits --dataset digits --out {run}",
        ),
        ("yardsticks --out {run}", None, SAME),
        ("benchmark --out {run}", None, SAME),
        ("eval --agent full", None, STOPPED),
    ],
)
def test_it_is_said_how_to_go_on(
    words: str,
    kept: str | None,
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run"
    if kept is not None:
        found, _ = entry._found(words.split())
        assert isinstance(found, Command)
        run.mkdir()
        (run / getattr(found.load(), "begun", "config.yml")).touch()
    assert said(monkeypatch, capsys, *words.format(run=run).split()) == expected.format(run=run)


def test_a_module_of_the_user_is_among_the_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yml").touch()
    words = ("train", "agent", "--import", "json", "csv", "--out", tmp_path)
    expected = f"Go on with: prance train agent --resume --out {tmp_path} --import json csv"
    assert said(monkeypatch, capsys, *words) == expected


@pytest.mark.slow
def test_a_reader_that_has_seen_enough_ends_the_command_without_a_word() -> None:
    command = f"{sys.executable} -m train --help"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command} | head -2"], capture_output=True, text=True, check=False
    )
    assert done.stdout.count("\n") == 2
    assert done.stderr == ""
    assert done.returncode in (0, 141)  # it may have written all before the reader ended
