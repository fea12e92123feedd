"""Saving and restoring episodes in the middle, so that they go on bit for bit.

A snapshot is plain data and CPU tensors: `torch.save` writes it and `torch.load(weights_only=True)` reads it. Episodes
at their first decision are stored as the number of their image; later ones bring their tokens.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from hashlib import sha256
from typing import Any

import numpy as np
import torch
from torch import Tensor

from supernet import InferenceState
from supernet.arrays import Ints
from supernet.runtime.choice import runs_tiles
from supernet.tiled_state import TiledState

from .episodes import Episodes
from .lanes import Lanes
from .rewards.config import RewardConfig

FORMAT = 1
# Of a data set; they may change as the images move, and their labels tell other images.
PATHS = ("name", "root", "class_map")


def take_snapshot(lanes: Lanes, autoreset_mode: str | None) -> dict[str, Any]:
    """Everything that the coming results depend on, as plain data and tensors.

    Args:
        lanes: Unchanged.
        autoreset_mode: Of the environment, part of what a snapshot must fit.
    """
    parts = []
    for members, episodes in lanes.parts:
        fields = _packed({k: v for k, v in vars(episodes.host).items() if k != "state"})
        state = _packed(vars(episodes.state.host)) if episodes.decision else None
        where = {"lanes": torch.from_numpy(members.copy()), "tiled": isinstance(episodes.state, TiledState)}
        parts.append({**where, "episodes": fields, "state": state})
    return {
        "format": FORMAT,
        "environment": _description(lanes, autoreset_mode),
        "generators": [None if g is None else g.bit_generator.state for g in lanes.generators],
        "parts": parts,
    }


def restore_snapshot(lanes: Lanes, autoreset_mode: str | None, snapshot: dict[str, Any]) -> None:
    """Puts the lanes where they were when the snapshot was taken.

    Raises:
        ValueError: If it is no snapshot or one of another environment; the lanes are then as before.
    """
    if not isinstance(snapshot, dict) or not _same(snapshot.get("format"), FORMAT):
        raise ValueError(f"This is not a state of format {FORMAT}; pass what state_dict() returned.")
    expected, found = _description(lanes, autoreset_mode), snapshot.get("environment")
    found = found if isinstance(found, dict) else {}
    if _same(found.get("reward"), asdict(lanes.reward)):  # as earlier versions noted it, with the table's path
        found = {**found, "reward": expected["reward"]}
    differing = [f"{k}={found.get(k)!r} instead of {v!r}" for k, v in expected.items() if not _same(found.get(k), v)]
    if differing:
        raise ValueError(f"The state belongs to another environment: {'; '.join(differing)}.")
    try:
        generators = [_generator(state) for state in snapshot["generators"]]
        parts = [(part["lanes"].numpy().copy(), _episodes(lanes, part)) for part in snapshot["parts"]]
        members = np.sort(np.concatenate([m for m, _ in parts]))
        for lanes_of_part, episodes in parts:
            _check_episodes(lanes, lanes_of_part, episodes)
        tiled = [bool(part.get("tiled")) for part in snapshot["parts"]]
    except Exception as e:  # whatever nonsense makes the engine stumble over
        raise ValueError(f"The state is damaged ({type(e).__name__}: {e}); pass what state_dict() returned.") from e
    if len(generators) != lanes.num_lanes or not np.array_equal(members, np.arange(lanes.num_lanes)):
        raise ValueError(f"The state is damaged: it does not hold each of the {lanes.num_lanes} environments once.")
    as_they_were = [(m, _by_tiles(lanes, e) if so else e) for (m, e), so in zip(parts, tiled, strict=True)]
    lanes.generators, lanes.parts = generators, as_they_were


def _same(found: Any, expected: Any) -> bool:
    """Equality; what compares by element, as tensors do, is not the same as anything."""
    try:
        return bool(found == expected)
    except (RuntimeError, TypeError, ValueError):
        return False


def _episodes(lanes: Lanes, part: dict[str, Any]) -> Episodes:
    device = lanes.engine.net.pos_embed.device
    fields = _unpacked(part["episodes"], device)
    # In a fresh process this also makes known what the full network says about these images.
    state = lanes.engine.start(fields["index"]).state
    if part["state"] is not None:
        state = InferenceState(**_unpacked(part["state"], device))
    return Episodes(**fields, state=state)


@torch.inference_mode()
def _by_tiles(lanes: Lanes, episodes: Episodes) -> Episodes:
    """Episodes whose state came of tiles, with such a state where tiles run: it is observed by kernels of its own."""
    net = lanes.engine.net
    if not runs_tiles(net.config, net.pos_embed.device, net.pos_embed.dtype):
        return episodes
    return replace(episodes, state=TiledState.of(episodes.state, net.config))


def _check_episodes(lanes: Lanes, members: Ints, episodes: Episodes) -> None:
    """Compares episodes with fresh ones of the same images, and plays on from them, for nothing.

    Raises:
        ValueError: If they have other fields, shapes, types or labels, or hold numbers that there cannot be.
        Exception: Anything, if the engine cannot go on from them.
    """
    engine, decisions = lanes.engine, lanes.engine.config.space.num_decisions
    fresh = lanes.dressed(engine.start(episodes.index), episodes.macs_weight)
    if not isinstance(episodes.decision, int) or not 0 <= episodes.decision <= decisions or members.ndim != 1:
        raise ValueError(f"decision={episodes.decision!r} must be one of 0..{decisions}")
    if (lanes.settings.conditioning is None) != (episodes.macs_weight is None):
        raise ValueError("there are prices, or none, where the environment is otherwise")
    for name, expected in vars(fresh).items():
        found = getattr(episodes, name)
        if isinstance(expected, np.ndarray):
            shape, dtype = (len(members), *expected.shape[1:]), expected.dtype
            if not isinstance(found, np.ndarray) or (found.shape, found.dtype) != (shape, dtype):
                raise ValueError(f"{name} must be {dtype} of the shape {shape}")
            if not np.isfinite(found).all():
                raise ValueError(f"{name} is not finite")
        elif expected is None and found is not None:
            raise ValueError(f"{name} must be None")
    if not np.array_equal(episodes.label, fresh.label):
        raise ValueError("the labels are those of other images")
    state = episodes.state
    if episodes.decision and state.group != engine.config.space.first_decided + episodes.decision:
        raise ValueError(f"group={state.group!r} does not follow decision {episodes.decision}")
    if not state.tokens.isfinite().all() or int(state.num_tokens.sum()) != len(state.tokens):
        raise ValueError("the tokens are not finite, or not as many as there should be")
    engine.observe(episodes, lanes.settings.observation, lanes.settings.conditioning)
    if episodes.decision < decisions:
        middle = np.full((len(episodes), engine.config.space.action_size), 0.5)
        # Not a function of the user's, which may count or remember what it is asked.
        engine.step(episodes, middle, RewardConfig())


def _description(lanes: Lanes, autoreset_mode: str | None) -> dict[str, Any]:
    """What the numbers of an environment depend on; the device and folders may change."""
    settings, parameters = lanes.settings, list(lanes.engine.net.parameters())
    weights = sha256()
    for tensor in (parameters[0], parameters[-1]):  # any training moves the first and the last
        weights.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    conditioning = settings.conditioning
    return {
        "num_envs": lanes.num_lanes,
        "autoreset_mode": autoreset_mode,
        "supernet": settings.supernet,
        "token_mode": lanes.engine.config.space.token_mode,
        "dtype": settings.dtype,
        "decide_first_group": lanes.engine.config.space.decide_first_group,
        "dataset": {k: v for k, v in asdict(settings.dataset_config).items() if k not in PATHS},
        "split": settings.split,
        "images": len(lanes.engine.dataset),
        "labels": sha256(lanes.engine.labels.data).hexdigest(),
        "reward": _reward(lanes.reward),
        "observation": settings.observation,
        "normalize_actions": settings.normalize_actions,
        "cost_conditioning": None if conditioning is None else asdict(conditioning),
        "weights": weights.hexdigest(),
    }


def _reward(reward: RewardConfig) -> dict[str, Any]:
    """A reward with what its latency table says, wherever it lies."""
    if reward.table is None:
        return asdict(reward)
    return asdict(reward) | {"latency_table": sha256(json.dumps(asdict(reward.table)).encode()).hexdigest()}


def _packed(values: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Values by kind, arrays as tensors: what torch.load reads without trusting the file."""
    return {
        "arrays": {k: torch.from_numpy(v.copy()) for k, v in values.items() if isinstance(v, np.ndarray)},
        "tensors": {k: v.detach().cpu().clone() for k, v in values.items() if isinstance(v, Tensor)},
        "plain": {k: v for k, v in values.items() if not isinstance(v, np.ndarray | Tensor)},
    }


def _unpacked(packed: dict[str, dict[str, Any]], device: torch.device) -> dict[str, Any]:
    return {
        **{k: v.numpy().copy() for k, v in packed["arrays"].items()},
        **{k: v.to(device, copy=True) for k, v in packed["tensors"].items()},
        **packed["plain"],
    }


def _generator(state: dict[str, Any] | None) -> np.random.Generator | None:
    if state is None:
        return None
    generator = np.random.default_rng()
    generator.bit_generator.state = state
    return generator
