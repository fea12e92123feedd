"""PRANCE's PPO: the algorithm, its settings, its policy, its rollouts and its files."""

from .algorithm import PrancePPO
from .config import PrancePPOConfig, starting_action

__all__ = ["PrancePPO", "PrancePPOConfig", "starting_action"]
