"""The inference of a Vision Transformer as a reinforcement-learning environment.

Importing this package registers its Gymnasium ids. Nothing is loaded and no device is touched before the first reset.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .registration import register_envs

if TYPE_CHECKING:
    from .engine import InferenceEngine
    from .env import PranceEnv
    from .images.loading import register_dataset
    from .images.source import ImageDataset
    from .observations import list_observations, register_observation
    from .rewards.config import RewardConfig
    from .rewards.latency import LatencyTable
    from .rewards.outcome import Outcome, register_reward
    from .sb3_env import PranceVecEnv, make_sb3_env
    from .settings import EnvSettings, close_engines
    from .spaces import observation_layout
    from .vector_env import PranceVectorEnv

_EXPORTS = {
    "EnvSettings": "settings",
    "ImageDataset": "images.source",
    "InferenceEngine": "engine",
    "LatencyTable": "rewards.latency",
    "Outcome": "rewards.outcome",
    "PranceEnv": "env",
    "PranceVecEnv": "sb3_env",
    "PranceVectorEnv": "vector_env",
    "RewardConfig": "rewards.config",
    "close_engines": "settings",
    "make_sb3_env": "sb3_env",
    "register_reward": "rewards.outcome",
    "observation_layout": "spaces",
    "list_observations": "observations",
    "register_dataset": "images.loading",
    "register_observation": "observations",
}

__all__ = [
    "EnvSettings",
    "ImageDataset",
    "InferenceEngine",
    "LatencyTable",
    "Outcome",
    "PranceEnv",
    "PranceVecEnv",
    "PranceVectorEnv",
    "RewardConfig",
    "close_engines",
    "make_sb3_env",
    "observation_layout",
    "list_observations",
    "register_dataset",
    "register_envs",
    "register_observation",
    "register_reward",
]

register_envs()


def __getattr__(name: str) -> Any:
    """Imports public names when they are first used, which keeps `import prance_env` light."""
    if name == "__version__":
        from importlib.metadata import version

        return version("prance-env")
    from importlib import import_module

    if name == "wrappers":
        return import_module(".wrappers", __name__)
    if name not in _EXPORTS:
        raise AttributeError(f"module 'prance_env' has no attribute {name!r}")
    return getattr(import_module(f".{_EXPORTS[name]}", __name__), name)
