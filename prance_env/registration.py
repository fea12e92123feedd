"""Gymnasium ids of this package."""

from __future__ import annotations

import gymnasium as gym


def register_envs() -> None:
    """Registers the ids; calling it again changes nothing."""
    if "Prance-Digits-v0" in gym.registry:
        return
    gym.register(
        id="Prance-Digits-v0",
        entry_point="prance_env.env:PranceEnv",
        vector_entry_point="prance_env.vector_env:PranceVectorEnv",
        kwargs={"supernet": "digits", "dataset": "digits"},
    )
