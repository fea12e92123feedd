"""A short soak, and whether it would notice a leak."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prance_env.settings import shared_engine
from tools import soak
from tools.soak import Held, check_growth, run_rounds

pytestmark = pytest.mark.skipif(not Path("/proc/self").exists(), reason="reads Linux' /proc")
STEADY = Held(megabytes=500.0, file_descriptors=9, threads=4, children=0)


@pytest.fixture(scope="module", autouse=True)
def what_other_tests_left() -> None:
    """Is not counted, nor looked at by the garbage collector, which would take most of the time."""
    shared_engine.cache_clear()
    gc.collect()
    gc.freeze()


@pytest.mark.slow
def test_rounds_of_random_use_leave_nothing_behind() -> None:
    held = run_rounds(minutes=1e-6, calls=12, num_envs=3, seed=0, progress_bar=False)
    assert len(held) >= 8
    assert {h.children for h in held} == {0}
    check_growth(held)


@pytest.mark.parametrize(
    ("name", "step", "words"),
    [
        ("file_descriptors", 1, "file_descriptors 12 -> 15"),
        ("threads", 1, "threads 7 -> 10"),
        ("children", 1, "children 3 -> 6"),
        ("megabytes", 10.0, "megabytes 525.0 -> 565.0"),
    ],
)
def test_what_grows_is_named(name: str, step: float, words: str) -> None:
    held = [replace(STEADY, **{name: getattr(STEADY, name) + i * step}) for i in range(8)]
    with pytest.raises(RuntimeError, match=words):
        check_growth(held)


def test_a_bound_that_is_reached_early_and_noise_are_no_growth() -> None:
    held = [replace(STEADY, megabytes=300.0 + min(i, 2) * 100 + i, file_descriptors=9 + i % 2) for i in range(10)]
    check_growth(held)
    with pytest.raises(ValueError, match="7 rounds are too few"):
        check_growth(held[:7])


@pytest.fixture
def leaks() -> Iterator[dict[str, Callable[[Any], None]]]:
    """Ways to lose something every time, undone after the test."""
    opened: list[int] = []
    released, memory = threading.Event(), []

    def thread(_: Any) -> None:
        threading.Thread(target=released.wait).start()

    yield {
        "file_descriptors": lambda _: opened.append(os.open(os.devnull, os.O_RDONLY)),
        "threads": thread,
        "megabytes": lambda _: memory.append(b"x" * 2**23),
    }
    released.set()
    for descriptor in opened:
        os.close(descriptor)


@pytest.mark.parametrize("kind", ["file_descriptors", "threads", "megabytes"])
def test_a_real_leak_is_noticed(
    monkeypatch: pytest.MonkeyPatch, leaks: dict[str, Callable[[Any], None]], kind: str
) -> None:
    monkeypatch.setattr(soak, "_round", lambda rng, calls, num_envs, folder: leaks[kind](None))
    held = run_rounds(minutes=1e-6, calls=1, num_envs=1, seed=0, progress_bar=False)
    with pytest.raises(RuntimeError, match=kind):
        check_growth(held)


@pytest.mark.parametrize(
    ("name", "value"), [("minutes", 0.0), ("calls", 0), ("num_envs", -1), ("minutes", float("inf"))]
)
def test_nonsense_is_refused(name: str, value: float) -> None:
    arguments: dict[str, Any] = {"minutes": 0.1, "calls": 1, "num_envs": 1, "seed": 0, name: value}
    with pytest.raises(ValueError, match=name):
        run_rounds(**arguments)
