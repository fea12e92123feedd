"""What training loops share: logs that follow checkpoints, one writer a folder, Ctrl-C and SIGTERM, saving in time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from helpers import PATIENCE

from supernet.staging import COMMIT
from train.joint import JointSettings
from train.networks.recipes.images import ImagesRecipe
from train.runs import lock, pace
from train.runs.folder import open_run, plain, write_command
from train.runs.interrupt import Interruption, Terminated, deferred_interrupt, signals_as_interrupts
from train.runs.lock import only_writer
from train.runs.pace import Pace
from train.runs.rows import RowLog

HOLD = """
import sys, time
from pathlib import Path
from train.runs.lock import only_writer
with only_writer(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(1000)
"""


def test_rows_after_a_checkpoint_and_unfinished_lines_are_dropped_and_the_others_stay_as_they_are(
    tmp_path: Path,
) -> None:
    log = RowLog(tmp_path / "metrics.jsonl", "timesteps")
    log.forget_after(0)
    assert not log.path.exists()
    for step in (3, 6, 9):
        log.write({"timesteps": step, "loss": 0.1 * step, "nan": float("nan")})
    whole = log.path.read_text()
    with log.path.open("a") as f:
        f.write('{"timesteps": 12, "lo')
    with pytest.warns(UserWarning, match=r"1 unfinished line\(s\)"):
        log.forget_after(6)
    assert log.path.read_text() == "".join(whole.splitlines(keepends=True)[:2])
    log.write(json.loads(whole.splitlines()[2]))
    assert log.path.read_text() == whole
    log.path.write_bytes(b"\xff\n[1]\n7\n{}\n" + whole.encode())
    with pytest.warns(UserWarning, match=r"4 unfinished"):
        log.forget_after(9)
    assert log.path.read_text() == whole
    with warnings.catch_warnings(action="error") if sys.version_info >= (3, 11) else warnings.catch_warnings():
        log.forget_after(9)


@pytest.mark.slow
def test_a_folder_has_one_writer_and_a_killed_one_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "PATIENCE", 0.2)
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    with pytest.raises(FileExistsError, match="Another process writes to"), only_writer(tmp_path):
        pass
    monkeypatch.undo()
    process.kill()
    with only_writer(tmp_path):
        process.wait(PATIENCE)


def test_a_folder_has_one_writer_in_a_process_too_and_is_free_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "PATIENCE", 0.1)
    with only_writer(tmp_path / "new" / "folder"):
        with pytest.raises(FileExistsError), only_writer(tmp_path / "new" / "folder"):
            pass
        with only_writer(tmp_path / "other"):
            pass
    with only_writer(tmp_path / "new" / "folder"):
        pass


def test_a_writer_finishes_what_a_killed_one_had_decided_on(tmp_path: Path) -> None:
    (tmp_path / COMMIT).mkdir()
    (tmp_path / COMMIT / "a").write_text("new")
    (tmp_path / "a").write_text("old")
    with only_writer(tmp_path):
        assert (tmp_path / "a").read_text() == "new"


@pytest.mark.parametrize(("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)])
def test_the_first_signal_is_remembered_and_the_second_raises(number: int, error: type[BaseException]) -> None:
    before = signal.getsignal(number)
    with deferred_interrupt() as interrupted:
        assert not interrupted()
        interrupted.heed()
        signal.raise_signal(number)
        assert interrupted()
        with pytest.raises(error) as raised:
            interrupted.heed()
        assert type(raised.value) is error
        with pytest.raises(error):
            signal.raise_signal(number)
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("handled", [deferred_interrupt, signals_as_interrupts])
def test_what_a_shell_has_ignored_stays_ignored(handled: Callable[[], AbstractContextManager[Any]]) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with handled() as interrupted:
            signal.raise_signal(signal.SIGINT)
            assert interrupted is None or not interrupted()
    finally:
        signal.signal(signal.SIGINT, before)


def test_outside_the_main_thread_there_is_no_interruption() -> None:
    found: list[Interruption] = []

    def loop() -> None:
        with deferred_interrupt() as interrupted:
            found.append(interrupted)

    thread = Thread(target=loop)
    thread.start()
    thread.join()
    assert not found[0]()


def test_sigterm_raises_what_commands_end_with() -> None:
    with signals_as_interrupts(), pytest.raises(Terminated):
        os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize(("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)])
def test_what_a_library_makes_of_a_signal_is_still_the_signal(number: int, error: type[BaseException]) -> None:
    before = signal.getsignal(number)

    @signals_as_interrupts()
    def library() -> None:
        try:
            os.kill(os.getpid(), number)
        except KeyboardInterrupt:
            raise ValueError("could not determine the shape") from None

    with pytest.raises(error) as raised:
        library()
    assert type(raised.value) is error
    assert signal.getsignal(number) is before


@pytest.mark.parametrize(("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)])
def test_a_signal_in_a_destructor_which_python_drops_is_raised_again(number: int, error: type[BaseException]) -> None:
    class Closing:
        def __del__(self) -> None:
            os.kill(os.getpid(), number)

    @signals_as_interrupts()
    def work() -> None:
        Closing()
        for _ in range(500):
            time.sleep(0.01)

    before = sys.unraisablehook
    with pytest.raises(error) as raised:
        work()
    assert type(raised.value) is error
    assert sys.unraisablehook is before


def test_without_a_signal_errors_are_what_they_are_and_ignored_signals_stay_ignored() -> None:
    with pytest.raises(ValueError, match="no such thing"), signals_as_interrupts():
        raise ValueError("no such thing")
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with signals_as_interrupts():
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


@dataclass
class Settings:
    """Of a run."""

    seed: int = 0
    steps: int = 1
    images: int = 1


@pytest.mark.parametrize(
    ("may_change", "end"),
    [
        ((), "they are taken from the folder."),
        (("steps",), "from the folder; only --steps may change."),
        (("steps", "eval_freq"), "from the folder; only --steps, --eval-freq may change."),
    ],
)
def test_what_may_change_is_one_list(tmp_path: Path, may_change: tuple[str, ...], end: str) -> None:
    write_command(tmp_path / "run", Settings())
    with (
        pytest.raises(ValueError, match=f"seed=1 instead of 0.*{end}$"),
        open_run(tmp_path / "run", Settings(seed=1), tmp_path / "run" / "last", True, may_change=may_change),
    ):
        pass


def test_a_checkpoint_is_due_after_its_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(pace.time, "monotonic", lambda: now)
    clock, always = Pace(60), Pace(0)
    seen = []
    for now in (100.0, 159.0, 160.0, 161.0, 221.0):  # noqa: B007
        seen.append(clock.due())
        assert always.due()
    assert seen == [False, False, True, False, True]
    with pytest.raises(ValueError, match="save_freq=-1"):
        Pace(-1)


def test_paths_are_noted_so_that_they_are_found_from_elsewhere_and_names_stay_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("digits", "original", "random", "pictures", "store", "prance_vit_tiny"):
        (tmp_path / name).mkdir()
    (tmp_path / "classes.txt").touch()
    named = ImagesRecipe(
        source="prance_vit_tiny", dataset="digits", teacher="original", init="random", full_teacher=1.0
    )
    noted = plain(named)
    for name in ("source", "dataset", "teacher", "init"):
        assert noted[name] == getattr(named, name)
    given: dict[str, Any] = {"name": "wds/pictures", "root": "pictures", "class_map": "classes.txt", "num_samples": 9}
    noted = plain(ImagesRecipe(source="pictures", dataset=given, teacher="store:store", full_teacher=1.0))
    assert noted["source"] == str(tmp_path / "pictures")
    assert noted["teacher"] == f"store:{tmp_path / 'store'}"
    assert noted["dataset"] == {
        "name": f"wds/{tmp_path / 'pictures'}",
        "root": str(tmp_path / "pictures"),
        "class_map": str(tmp_path / "classes.txt"),
        "num_samples": 9,
    }
    changes = plain(JointSettings("pictures", changes={"dataset": "pictures", "teacher": "pictures"}))["changes"]
    assert changes == {"dataset": str(tmp_path / "pictures"), "teacher": str(tmp_path / "pictures")}
