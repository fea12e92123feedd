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
        (
            "train agent --algo ppo --threads 2 --device cuda --save-freq 60 --out {run}",
            "config.yml",
            "Go on with: prance train agent --resume --out {run} --threads 2 --save-freq 60",  # the device is noted
        ),
        (
            "train supernet --device cuda --threads=8 --save_freq 600 --max-hours 2 --num-workers 3 --out {run}",
            "config.yml",
            "Go on with: prance train supernet --resume --out {run} --device cuda --threads 8 --save-freq 600 "
            "--max-hours 2",
        ),
        (
            "train static --out={run} --device cpu --device cuda:1 --from digits",
            "config.yml",
            "Go on with: prance train static --resume --out {run} --device cuda:1",
        ),
        (
            "train joint --agent {run} --device cuda --out {run}",
            "config.yml",
            "Go on with: prance train joint --resume --out {run} --device cuda",
        ),
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


def test_several_processes_go_on_as_several(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yml").touch()
    monkeypatch.setenv("WORLD_SIZE", "8")
    words = ("train", "supernet", "--device", "cuda", "--out", tmp_path)
    expected = f"Go on, launched as before, with: -m train train supernet --resume --out {tmp_path} --device cuda"
    assert said(monkeypatch, capsys, *words) == expected


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
