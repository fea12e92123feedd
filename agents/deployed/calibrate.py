"""Measuring what a model spends, and how often it is right, at the prices that it was trained for."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from supernet.arrays import evenly
from supernet.reading import checked_count

from .budgets import Calibration

BATCH, PRICES, ROUNDS = 256, 13, 7
Model = Any


def calibration_of(
    model: Model,
    images: Tensor,
    labels: Tensor | None,
    prices: int = PRICES,
    timed: int | None = None,
    from_menu: bool = False,
) -> Calibration:
    """What an `AdaptiveViT` spends.

    Args:
        model: Called with images and a budget.
        images: (N, C, H, W).
        labels: (N,) their classes; None: no accuracy is noted.
        prices: How many of the agent's range, evenly spaced on a logarithmic scale.
        timed: Also times so many images at a time, evenly spaced ones, or all if there are fewer; None: no times.
        from_menu: Whether it chooses from its menu.

    Raises:
        ValueError: If there are no images, or not as many labels; or `timed` is none or below 1.
    """
    if not len(images) or (labels is not None and len(labels) != len(images)):
        raise ValueError(f"There are {len(images)} images and {None if labels is None else len(labels)} labels.")
    at_a_time = 0 if timed is None else min(checked_count(timed, "timed"), len(images))
    conditioning = model.interface.conditioning
    known: list[float] = []
    if conditioning is not None:
        between = np.geomspace(conditioning.low, conditioning.high, prices)[1:-1].tolist()
        known = [conditioning.low, *between, conditioning.high]
    spent, right = [], []
    asked: list[float | None] = [*known] or [None]
    for price in asked:
        parts = [model(images[b : b + BATCH], price, from_menu) for b in range(0, len(images), BATCH)]
        spent.append(float(np.concatenate([p.macs for p in parts]).mean() / model.full_macs))
        if labels is not None:
            found = np.concatenate([p.labels for p in parts])
            right.append(float((found == labels.numpy()).mean()))
    full = None
    if labels is not None:
        with torch.inference_mode():
            parts = [
                model.net(images[b : b + BATCH].to(model.net.pos_embed.device)) for b in range(0, len(images), BATCH)
            ]
        full = float((torch.cat(parts).argmax(1).cpu() == labels).float().mean())
    # Neighbours often are of one class, for which the policy chooses the same.
    spaced = torch.from_numpy(evenly(len(images), at_a_time))
    times = _milliseconds(model, images[spaced], asked, from_menu) if at_a_time else []
    machine = timed_on(model) if times else ""
    return Calibration(tuple(known), tuple(spent), tuple(right), full, tuple(times), len(images), machine, at_a_time)


def timed_on(model: Model) -> str:
    """What milliseconds that are measured now are of: `Calibration.machine`."""
    return f"{platform.machine()}, {torch.get_num_threads()} threads, {model.net.pos_embed.device.type}"


def _milliseconds(model: Model, images: Tensor, budgets: list[Any], from_menu: bool) -> list[float]:
    """Milliseconds an image at every budget, medians of interleaved rounds."""
    # One image alone is what the menu's own modules are for; several are computed together by the model.
    run = model.menu if from_menu and len(images) == 1 else partial(model, from_menu=from_menu)

    def seconds(call: Callable[[], Any]) -> float:
        begun = time.perf_counter()
        call()  # which brings MACs to the host, and so waits for the device
        return time.perf_counter() - begun

    run(images, budgets[0])
    rounds = [[seconds(partial(run, images, b)) for b in budgets] for _ in range(ROUNDS)]
    return [1e3 * statistics.median(times) / len(images) for times in zip(*rounds, strict=True)]
