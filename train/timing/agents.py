"""Measured milliseconds of adaptive inference, looking and deciding included, beside those of the full network."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from agents.adaptive import AdaptiveViT
from agents.protocol import Agent
from prance_env.engine import InferenceEngine
from prance_env.settings import EnvSettings
from supernet.arrays import evenly

from .clock import time_interleaved

FULL = "full network"


def measure_latency(
    players: Mapping[str, tuple[Agent, EnvSettings]], batch_size: int, repeats: int = 9, warmup: int = 2
) -> dict[str, dict[str, float]]:
    """Times agents and the full network on images of the split, evenly spaced, interleaved.

    Args:
        players: Agents by name, all on the same supernet and images.
        batch_size: Images at a time.
        repeats: Timed rounds.
        warmup: Rounds before.

    Returns:
        By name: `latency_ms`, milliseconds an image, and `latency_fraction`, relative to the full network in the same
        round; medians over the rounds.

    Raises:
        ValueError: If the batch is empty.
    """
    if batch_size < 1:
        raise ValueError(f"latency={batch_size} must be a number of images of at least 1.")
    settings = next(iter(players.values()))[1]
    engine = settings.engine()
    images = images_to_time(engine, batch_size)

    def full() -> Tensor:
        with torch.inference_mode():
            return engine.net(images)

    calls: dict[str, Callable[[], Tensor]] = {
        FULL: full,
        **{
            name: partial(_logits, AdaptiveViT.from_settings(at, agent), images)
            for name, (agent, at) in players.items()
        },
    }
    with tqdm(total=len(calls) * (warmup + repeats), desc="latency", unit="batch", leave=False) as bar:
        seconds = time_interleaved(calls, settings.device, warmup, repeats, bar)
    return {
        name: {
            "latency_ms": 1e3 * statistics.median(seconds[name]) / batch_size,
            "latency_fraction": statistics.median(a / b for a, b in zip(seconds[name], seconds[FULL], strict=True)),
        }
        for name in players
    }


def images_to_time(engine: InferenceEngine, count: int) -> Tensor:
    """(count, C, H, W) images where the network is, evenly spaced, since folders list theirs class by class and what an
    agent does depends on the image; again and again if there are fewer."""
    index = np.resize(evenly(len(engine.dataset), count), count)
    return engine.dataset.fetch(index).to(engine.net.pos_embed.device)


def _logits(model: AdaptiveViT, images: Tensor) -> Tensor:
    return model(images).logits
