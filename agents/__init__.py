"""Agents: everything that maps observations to actions, all with Stable-Baselines3's `predict`."""

from .baselines import BaselineAgent, FullAgent, RandomAgent, StaticAgent
from .confidence import ConfidenceAgent, ConfidenceRule
from .prance_ppo import PrancePPO
from .prance_ppo_config import PrancePPOConfig
from .sb3 import make_sb3
from .selector import PranceSelector, load_prance_selector

__all__ = [
    "BaselineAgent",
    "ConfidenceAgent",
    "ConfidenceRule",
    "FullAgent",
    "PrancePPO",
    "PrancePPOConfig",
    "PranceSelector",
    "RandomAgent",
    "StaticAgent",
    "load_prance_selector",
    "make_sb3",
]
