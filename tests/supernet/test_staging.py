"""Files that are whole or not there, one by one and several as one, wherever the process dies."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from supernet import files
from supernet.files import remove_leftovers, temporary_name, write_atomically, write_tensors, write_text
from supernet.staging import COMMIT, finish_commit, staged

OLD, NEW = {"a": "1", "b/c": "2", "d": "3"}, {"a": "one", "b/c": "two", "e/f/g": "five"}
EARLIER = {"x": "stale", "y": "stale"}


class Killed(BaseException):
    """The process ends here."""


def write_all(folder: Path, texts: dict[str, str]) -> None:
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def held(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077])
def test_files_have_the_permissions_that_the_umask_leaves(mask: int, tmp_path: Path) -> None:
    before = os.umask(mask)
    try:
        write_text(tmp_path / "a", "x")
        with staged(tmp_path / "folder") as stage:
            write_all(stage, {"b": "x"})
            write_tensors({"a": torch.zeros(3)}, stage / "c")
        write_atomically(tmp_path / "d", lambda name: write_tensors({"a": torch.zeros(3)}, name))
    finally:
        os.umask(before)
    for path in (tmp_path / "a", tmp_path / "folder" / "b", tmp_path / "folder" / "c", tmp_path / "d"):
        assert path.stat().st_mode & 0o777 == 0o666 & ~mask


def test_the_contents_are_on_the_disk_before_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    for name in ("fsync", "replace"):
        original = getattr(os, name)

        def noted(*args: Any, name: str = name, original: Any = original) -> None:
            events.append(name)
            original(*args)

        monkeypatch.setattr(os, name, noted)
    write_text(tmp_path / "a", "x")
    assert events == ["fsync", "replace", "fsync"]


def test_what_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "old")

    def torn(name: str) -> None:
        Path(name).write_text("ne")
        raise OSError("no room")

    with pytest.raises(OSError, match="no room"):
        write_atomically(tmp_path / "a", torn)
    assert held(tmp_path) == {"a": "old"}


@pytest.mark.parametrize("event", range(8))
def test_several_files_change_all_of_them_or_none(event: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_all(tmp_path, OLD | EARLIER)
    replace, calls = os.replace, 0

    def dying(source: Any, target: Any) -> None:
        nonlocal calls
        if calls == event:
            raise Killed
        calls += 1
        replace(source, target)

    monkeypatch.setattr(os, "replace", dying)
    try:
        with staged(tmp_path, [*EARLIER, "a", "missing"]) as stage:
            write_all(stage, NEW)
    except Killed:
        pass
    monkeypatch.undo()
    finish_commit(tmp_path)
    assert held(tmp_path) == (OLD | EARLIER if event == 0 else {**OLD, **NEW})
    assert not (tmp_path / COMMIT).exists()


def test_a_block_that_fails_changes_nothing(tmp_path: Path) -> None:
    write_all(tmp_path, OLD)

    def fail() -> None:
        with staged(tmp_path) as stage:
            write_all(stage, NEW)
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fail()
    assert held(tmp_path) == OLD


def test_leftovers_of_dead_processes_are_removed_and_others_stay(tmp_path: Path, monkeypatch: Any) -> None:
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    monkeypatch.setattr(files.os, "getpid", lambda: int(dead.stdout))
    temporary_name(tmp_path / "a.json").write_text("half")
    folder = temporary_name(tmp_path / "stage")
    monkeypatch.undo()
    folder.mkdir()
    write_all(folder, NEW)
    stay = {temporary_name(tmp_path / "b").name: "mine", ".tmp": "x", ".hidden.tmp": "y", "c.tmp": "z"}
    write_all(tmp_path, stay)
    remove_leftovers(tmp_path)
    assert held(tmp_path) == stay
    assert not folder.exists()
