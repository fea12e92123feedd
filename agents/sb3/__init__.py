"""Stable-Baselines3's algorithms: making them, their presets, their checkpoints."""

from .make import make_sb3

__all__ = ["make_sb3"]
