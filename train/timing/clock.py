"""Timing calls side by side."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from tqdm import tqdm

from prance_env.rewards.measuring import seconds_of


def time_interleaved(
    calls: dict[str, Callable[[], Any]],
    device: str,
    warmup: int,
    repeats: int,
    bar: tqdm[Any],
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of every timed round, by call: all of them once, then all of them again, so that noise hits all alike.

    On a GPU, what a call takes there and on the host until the GPU is done, by CUDA's events.

    Args:
        calls: What to time, by name.
        device: That they run on.
        warmup: Rounds before.
        repeats: Rounds that are timed.
        bar: Progress, one update per call.
        clock: Seconds on a CPU; `time.process_time` counts this process's only, however busy the machine is.
    """
    where = torch.device(device)
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for round_ in range(warmup + repeats):
        for name, call in calls.items():
            taken = seconds_of(call, where, clock)
            if round_ >= warmup:
                seconds[name].append(taken)
            bar.update()
    return seconds


def check_rounds(repeats: int, warmup: int) -> None:
    """Refuses impossible numbers of rounds.

    Raises:
        ValueError: If nothing would be timed, or the rounds before are negative.
    """
    if repeats < 1 or warmup < 0:
        raise ValueError(f"repeats={repeats} must be at least 1, and warmup={warmup} at least 0.")
