"""A command in a process of its own, forked from one that has imported and prepared everything."""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

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
    """

    status: int
    text: str
    events: list[str]
    seconds: float


def run(words: tuple[str, ...], out: Path, fault: Fault | None = None, kill_after: float | None = None) -> Outcome:
    """Runs `prance` with these words and --out.

    Args:
        words: What is typed.
        out: The folder, whose file events count.
        fault: What goes wrong at a file event.
        kill_after: Seconds after which the process is killed; None: not, unless it hangs.
    """
    printed, print_to = os.pipe()
    told, tell_to = os.pipe()
    begun, pid = time.monotonic(), os.fork()
    if pid == 0:
        os.close(printed)
        os.close(told)
        os.dup2(print_to, 1)
        os.dup2(print_to, 2)
        _run_here(words, out, fault, tell_to)
    os.close(print_to)
    os.close(tell_to)
    text = _read_until(printed, pid, begun + (HANGS if kill_after is None else kill_after))
    with os.fdopen(told, "rb") as pipe:
        events = pipe.read()
    _, status = os.waitpid(pid, 0)
    seconds = time.monotonic() - begun
    return Outcome(os.waitstatus_to_exitcode(status), text, json.loads(events or b"[]"), seconds)


def _run_here(words: tuple[str, ...], out: Path, fault: Fault | None, tell_to: int) -> None:
    status, events = 1, FileEvents(out, fault)
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        # Those of a test are files, which a full disk would fill as well.
        sys.stdout, sys.stderr = (os.fdopen(stream, "w", buffering=1, closefd=False) for stream in (1, 2))
        sys.argv = ["prance", *words, "--out", str(out)]
        events.watch()
        main()
        status = 0
    except SystemExit as e:
        status = e.code if isinstance(e.code, int) else 1
        if isinstance(e.code, str):
            print(e.code)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        with os.fdopen(tell_to, "w") as pipe:
            json.dump(events.log, pipe)
        os._exit(status)


def _read_until(pipe: int, pid: int, deadline: float) -> str:
    """What comes through a pipe until it is closed; at the deadline its process is killed."""
    parts = []
    with os.fdopen(pipe, "rb", buffering=0) as stream:
        while True:
            if not select.select([stream], [], [], max(0, deadline - time.monotonic()))[0]:
                os.kill(pid, signal.SIGKILL)
                deadline += HANGS
                continue
            part = stream.read(2**16)
            if not part:
                return b"".join(parts).decode(errors="replace")
            parts.append(part)
