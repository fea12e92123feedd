"""A command in a process of its own, forked from one that has imported and prepared everything."""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import threading
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from train.commands.main import main

from .events import Fault, FileEvents

HANGS = 300.0
"""Seconds after which a command is said to hang."""


@dataclass(frozen=True)
class Outcome:
    """How a command ended.

    Attributes:
        status: Its exit status; negative: the signal that ended it.
        text: What it printed.
        events: Its file events, if it lived to tell.
        seconds: How long it took.
        afterwards: What it printed after it was interrupted; all of it if it was not.
    """

    status: int
    text: str
    events: list[str]
    seconds: float
    afterwards: str = ""


def run(
    words: tuple[str, ...],
    out: Path,
    fault: Fault | None = None,
    kill_after: float | None = None,
    interrupt_after: float | None = None,
    writes: bool = True,
) -> Outcome:
    """Runs `prance` with these words and --out.

    Args:
        words: What is typed.
        out: The folder, whose file events count.
        fault: What goes wrong at a file event.
        kill_after: Seconds after which the process is killed; None: not, unless it hangs.
        interrupt_after: Seconds after which somebody presses Ctrl-C; None: nobody does.
        writes: Whether the command has --out.
    """
    printed, print_to = os.pipe()
    told, tell_to = os.pipe()
    begun, pid = time.monotonic(), os.fork()
    if pid == 0:
        os.close(printed)
        os.close(told)
        os.dup2(print_to, 1)
        os.dup2(print_to, 2)
        os.close(print_to)
        _run_here((*words, "--out", str(out)) if writes else words, out, fault, tell_to)
    os.close(print_to)
    os.close(tell_to)
    signals = [(begun + HANGS, signal.SIGKILL)]
    for after, number in ((kill_after, signal.SIGKILL), (interrupt_after, signal.SIGINT)):
        signals += [] if after is None else [(begun + after, number)]
    text, afterwards = _read_to_the_end(printed, pid, sorted(signals))
    with os.fdopen(told, "rb") as pipe:
        events = pipe.read()
    _, status = os.waitpid(pid, 0)
    seconds = time.monotonic() - begun
    return Outcome(os.waitstatus_to_exitcode(status), text, json.loads(events or b"[]"), seconds, afterwards)


def _run_here(words: tuple[str, ...], out: Path, fault: Fault | None, tell_to: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # what comes before the command has begun is none of its
    # tqdm's lock is one for all processes, and a killed one may have kept it.
    tqdm.set_lock(threading.RLock())
    status, events = 1, FileEvents(out, fault)
    try:
        # Those of a test are files, which a full disk would fill as well.
        sys.stdout, sys.stderr = (os.fdopen(stream, "w", buffering=1, closefd=False) for stream in (1, 2))
        sys.argv = ["prance", *words]
        events.watch()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        main()
        status = 0
    except SystemExit as e:
        status = e.code if isinstance(e.code, int) else 1
        if isinstance(e.code, str):
            print(e.code)
    except BaseException:
        traceback.print_exc()
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        sys.stdout.flush()
        sys.stderr.flush()
        os.closerange(1, 3)  # what was printed is read first, and the other pipe does not hold all events of long runs
        with os.fdopen(tell_to, "w") as pipe:
            json.dump(events.log, pipe)
        os._exit(status)


def _read_to_the_end(pipe: int, pid: int, signals: list[tuple[float, signal.Signals]]) -> tuple[str, str]:
    """What comes through a pipe until it is closed, and the part of it after the first signal.

    Args:
        pipe: The pipe.
        pid: The process at its other end.
        signals: When the process gets which signal, in order; the last one again and again.
    """
    parts: list[bytes] = []
    before = 0
    with os.fdopen(pipe, "rb", buffering=0) as stream:
        while True:
            deadline, number = signals[0]
            if not select.select([stream], [], [], max(0, deadline - time.monotonic()))[0]:
                os.kill(pid, number)
                before = before or len(parts)
                signals = signals[1:] or [(deadline + HANGS, number)]
                continue
            part = stream.read(2**16)
            if not part:
                return tuple(b"".join(p).decode(errors="replace") for p in (parts, parts[before:]))  # type: ignore[return-value]
            parts.append(part)
