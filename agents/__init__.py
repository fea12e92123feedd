"""Agents: everything that maps observations to actions, all with Stable-Baselines3's `predict`."""

from .baselines import BaselineAgent, FullAgent, RandomAgent, StaticAgent
from .sb3 import make_sb3

__all__ = ["BaselineAgent", "FullAgent", "RandomAgent", "StaticAgent", "make_sb3"]
