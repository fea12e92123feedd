"""Small batches of environments for Stable-Baselines3's algorithms."""

from __future__ import annotations

from typing import Any

import pytest
from stable_baselines3.common.vec_env import VecEnv

from agents.sb3.hyperparams import ALGORITHMS
from prance_env import make_sb3_env


def installed(algorithm: str) -> str:
    """The algorithm, if its package is there."""
    pytest.importorskip(ALGORITHMS[algorithm])
    return algorithm


def envs(n_envs: int = 8, **kwargs: Any) -> VecEnv:
    """A small batch with the reward that the presets are for."""
    return make_sb3_env(n_envs=n_envs, seed=0, reward={"mode": "potential", "accuracy": "mixed"}, **kwargs)
