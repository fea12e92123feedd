"""Agents: everything that maps observations to actions, all with Stable-Baselines3's `predict`."""

from .adaptive import AdaptiveViT, Prediction
from .authors_selector import PranceSelector, load_prance_selector
from .baselines import BaselineAgent, FullAgent, RandomAgent, StaticAgent
from .confidence import ConfidenceAgent, ConfidenceRule
from .prance_ppo.algorithm import PrancePPO
from .prance_ppo.config import PrancePPOConfig, starting_action
from .protocol import Agent
from .sb3.make import make_sb3

__all__ = [
    "AdaptiveViT",
    "Agent",
    "BaselineAgent",
    "ConfidenceAgent",
    "ConfidenceRule",
    "FullAgent",
    "PrancePPO",
    "Prediction",
    "PrancePPOConfig",
    "PranceSelector",
    "RandomAgent",
    "StaticAgent",
    "load_prance_selector",
    "make_sb3",
    "starting_action",
]
