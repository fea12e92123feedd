"""PRANCE's PPO: the algorithm, its settings, its policy, its rollouts and its files."""

from .algorithm import PrancePPO
from .config import PrancePPOConfig

__all__ = ["PrancePPO", "PrancePPOConfig"]
