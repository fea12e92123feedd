"""Where the training of a Stable-Baselines3 model stands, beside the model: its environment and all generators."""

from __future__ import annotations

import random
from typing import Any, cast

import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from torch import Tensor

from prance_env.sb3_env import PranceVecEnv

NOISE = ("exploration_mat", "exploration_matrices")


def place_of(model: BaseAlgorithm) -> dict[str, Any]:
    """What the coming steps depend on beside the model itself, between two rollouts.

    Args:
        model: Learning in an environment of `make_sb3_env`, without wrappers of one's own.

    Returns:
        Plain data and tensors, for `torch.save` and `torch.load(weights_only=True)`.
    """
    kind, keys, *rest = cast(tuple[Any, ...], np.random.get_state())  # noqa: NPY002 - SB3 draws from it
    return {
        "python": random.getstate(),
        "numpy": [kind, torch.from_numpy(keys.copy()), *rest],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(model.device) if model.device.type == "cuda" else None,
        # What off-policy algorithms draw their first actions from, before they learn.
        "actions": model.action_space.np_random.bit_generator.state,
        "noise": {name: getattr(d, name).detach() for d in _distributions(model) for name in NOISE},
        "environment": _envs(model).state_dict(),
        "observations": torch.from_numpy(np.array(model._last_obs)),
        "episode_starts": torch.from_numpy(np.array(model._last_episode_starts)),
    }


def go_to(model: BaseAlgorithm, place: dict[str, Any]) -> None:
    """Puts a model's environment and all generators where they were; to be called where `place_of` was.

    Raises:
        ValueError: If the place is in another environment.
    """
    environment = place["environment"]
    if "returns" in place:  # beside the environment's state before version 0.2
        environment = {**environment, "monitor": {name: place[name] for name in ("returns", "lengths", "episodes")}}
    _envs(model).load_state_dict(environment)
    # Copies, so that the place stays as it is.
    model._last_obs, model._last_episode_starts = (
        place[name].numpy().copy() for name in ("observations", "episode_starts")
    )
    for distribution in _distributions(model):
        for name, value in place["noise"].items():
            setattr(distribution, name, value.clone())
    if "actions" in place:  # not before version 0.2
        model.action_space.np_random.bit_generator.state = place["actions"]
    random.setstate(place["python"])
    kind, keys, *rest = place["numpy"]
    np.random.set_state((kind, keys.numpy(), *rest))  # noqa: NPY002
    torch.set_rng_state(place["torch"])
    if place["cuda"] is not None and model.device.type == "cuda":
        torch.cuda.set_rng_state(place["cuda"], model.device)


def _envs(model: BaseAlgorithm) -> PranceVecEnv:
    venv = model.get_env()
    assert venv is not None
    assert isinstance(venv.unwrapped, PranceVecEnv)
    return venv.unwrapped


def _distributions(model: BaseAlgorithm) -> list[Any]:
    """What holds the exploration noise of a rollout, if it is state-dependent."""
    owners = (model.policy, getattr(model.policy, "actor", None))
    found = (getattr(owner, "action_dist", None) for owner in owners)
    return [d for d in found if isinstance(getattr(d, "exploration_mat", None), Tensor)]
