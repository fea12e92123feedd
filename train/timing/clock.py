"""Timing calls side by side, and what the figures depend on."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import torch
from tqdm import tqdm


def time_interleaved(
    calls: dict[str, Callable[[], Any]], device: str, warmup: int, repeats: int, bar: tqdm[Any]
) -> dict[str, list[float]]:
    """Seconds of every timed round, by call: all of them once, then all of them again, so that noise hits all alike.

    Args:
        calls: What to time, by name.
        device: That they run on.
        warmup: Rounds before.
        repeats: Rounds that are timed.
        bar: Progress, one update per call.
    """
    cuda = torch.device(device).type == "cuda"
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for round_ in range(warmup + repeats):
        for name, call in calls.items():
            begun = time.perf_counter()
            call()
            if cuda:
                torch.cuda.synchronize()
            if round_ >= warmup:
                seconds[name].append(time.perf_counter() - begun)
            bar.update()
    return seconds


def check_rounds(repeats: int, warmup: int) -> None:
    """Refuses impossible numbers of rounds.

    Raises:
        ValueError: If nothing would be timed, or the rounds before are negative.
    """
    if repeats < 1 or warmup < 0:
        raise ValueError(f"repeats={repeats} must be at least 1, and warmup={warmup} at least 0.")


def machine(device: str) -> dict[str, Any]:
    """What figures depend on: hardware, threads, torch."""
    name = torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else platform.processor()
    return {
        "device": name or platform.machine(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "timm": version("timm"),
    }


def machine_in_words(info: dict[str, Any]) -> str:
    """What `machine` found, as the beginning of a line."""
    return f"{info['device']}, {info['threads']} threads, torch {info['torch']}"
