"""Using damaged files, each in a process of its own that may take so long and so much memory."""

from __future__ import annotations

import json
import os
import random
import select
import signal
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from prance_env.images import loading

from .damages import damages
from .kinds import subjects

PATIENCE = 10.0
"""Seconds after which something hangs."""
SLACK = 64 * 2**20
"""Bytes by which memory may differ from one process to another."""


@dataclass(frozen=True)
class Outcome:
    """What came of a file: "loads", "sentence", or what is wrong, with the words; and bytes of memory at most."""

    kind: str
    words: str
    memory: int


def attempt(use: Callable[[], object]) -> Outcome:
    """Uses something in a process of its own."""
    told, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(told)
        os.write(tell, json.dumps(_here(use))[:60_000].encode())
        os._exit(0)
    os.close(tell)
    with os.fdopen(told, "rb") as pipe:
        text = pipe.read() if select.select([pipe], [], [], PATIENCE)[0] else None
    if text is None:
        os.kill(pid, signal.SIGKILL)
    used = os.wait4(pid, 0)[2].ru_maxrss * 1024
    if not text:
        return Outcome("hang" if text is None else "crash", "", used)
    kind, words = json.loads(text)
    return Outcome(kind, words, used)


def _here(use: Callable[[], object]) -> tuple[str, str]:
    warnings.simplefilter("ignore")
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    try:
        use()
        return "loads", ""
    except (ValueError, OSError, ModuleNotFoundError, SystemExit) as e:
        words = str(e)
        return ("sentence" if words and len(words) < 3000 else "no sentence"), words[:3000]
    except BaseException as e:
        return "traceback", f"{type(e).__name__}: {e}"[:3000]


def try_all(number: int, seed: int, only: tuple[str, ...] = ()) -> tuple[Counter[str], list[dict[str, Any]]]:
    """Tries damaged files of all kinds in turn.

    Args:
        number: How many.
        seed: Draws them.
        only: Kinds; all if none is named.

    Returns:
        How many of each outcome, and those that are wrong.
    """
    with mock.patch.dict(loading.DIGITS_SCENES, dict.fromkeys(loading.DIGITS_SCENES, 64)):
        return _try_all(number, seed, only)


def _try_all(number: int, seed: int, only: tuple[str, ...]) -> tuple[Counter[str], list[dict[str, Any]]]:
    found, counts, wrong = {n: s for n, s in subjects().items() if not only or n in only}, Counter[str](), []
    with tempfile.TemporaryDirectory(prefix="prance-malformed-") as name:
        root, rng = Path(name), random.Random(seed)
        streams, memory = {}, {}
        for kind, subject in found.items():
            (root / kind).mkdir()
            subject.make(root / kind)
            valid = attempt(lambda kind=kind, subject=subject: subject.used(root / kind))  # type: ignore[misc]
            assert valid.kind == "loads", (kind, valid)
            memory[kind] = valid.memory
            streams[kind] = damages(root / kind / subject.file, rng, root / "marker")
        for turn in range(number):
            kind = list(found)[turn % len(found)]
            path, content = root / kind / found[kind].file, next(streams[kind])
            good = path.read_bytes()
            path.write_bytes(content)
            outcome = attempt(lambda kind=kind: found[kind].used(root / kind))  # type: ignore[misc]
            path.write_bytes(good)
            what = outcome.kind
            if outcome.memory > 1.5 * memory[kind] + SLACK:
                what = "memory"
            if (root / "marker").exists():
                what = "executed"
            counts[what] += 1
            if what not in ("loads", "sentence"):
                wrong.append({"of": kind, **asdict(outcome), "kind": what, "file": repr(content[:300])})
    return counts, wrong
