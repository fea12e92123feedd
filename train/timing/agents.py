"""Measured milliseconds of adaptive inference, looking and deciding included, beside those of the full network."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from prance_env.settings import EnvSettings
from prance_env.spaces import decode_actions, observe
from supernet import GroupChoice

from ..evaluate.evaluation import Agent, ask
from .clock import time_interleaved

FULL = "full network"


@torch.inference_mode()
def classify(agent: Agent, settings: EnvSettings, images: Tensor) -> Tensor:
    """What a deployed agent does with a batch of new images, from pixels to logits; nothing is cached or looked up.

    Args:
        agent: Whatever has SB3's `predict`.
        settings: Supernet and observation of the agent; if it is cost-conditioned, at a fixed price.
        images: (B, in_chans, img_size, img_size), on the device of the supernet.

    Returns:
        (B, num_classes).
    """
    engine, conditioning = settings.engine(), settings.conditioning
    net, space, price = engine.net, engine.config.space, None
    if conditioning is not None:
        assert conditioning.fixed is not None, "conditioned agents run at one price"
        price = conditioning.observe(np.full(len(images), conditioning.fixed))
    state = net.begin(images, key_mean=settings.observation == "key_mean")
    memory: Any = None
    for group in range(space.first_decided, len(space.groups)):
        observation = observe(net, state, settings.observation, engine.full_macs, price).cpu().numpy()
        actions, memory = ask(agent, observation, memory)
        unit = torch.from_numpy(decode_actions(actions, settings.normalize_actions))
        state = net.run_group(state, group, GroupChoice.from_actions(space, unit))
    return net.finish(state)


def measure_latency(
    players: Mapping[str, tuple[Agent, EnvSettings]], batch_size: int, repeats: int = 9, warmup: int = 2
) -> dict[str, dict[str, float]]:
    """Times agents and the full network on the first images of the split, interleaved.

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
    index: NDArray[np.int64] = np.resize(np.arange(min(batch_size, len(engine.dataset))), batch_size)
    images = engine.dataset.fetch(index).to(engine.net.pos_embed.device)

    def full() -> Tensor:
        with torch.inference_mode():
            return engine.net(images)

    calls: dict[str, Callable[[], Tensor]] = {
        FULL: full,
        **{name: partial(classify, *player, images) for name, player in players.items()},
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
