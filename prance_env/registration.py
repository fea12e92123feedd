"""Gymnasium ids of this package."""

from __future__ import annotations

import gymnasium as gym

# PRANCE's supernets; there are neither weights nor images of them in the package.
BRING_YOUR_OWN = {
    "Prance-Tiny-v0": "prance_vit_tiny",
    "Prance-Small-v0": "prance_vit_small",
    "Prance-Base-v0": "prance_vit_base",
}
ENV_IDS = ("Prance-Digits-v0", *BRING_YOUR_OWN)


def register_envs() -> None:
    """Registers the ids; calling it again changes nothing."""
    _register("Prance-Digits-v0", "digits", "digits")
    for env_id, supernet in BRING_YOUR_OWN.items():
        _register(env_id, supernet, None)


def _register(env_id: str, supernet: str, dataset: str | None) -> None:
    if env_id not in gym.registry:
        gym.register(
            id=env_id,
            entry_point="prance_env.env:PranceEnv",
            vector_entry_point="prance_env.vector_env:PranceVectorEnv",
            kwargs={"supernet": supernet, "dataset": dataset},
        )
