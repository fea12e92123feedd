"""Training, tuning and loading agents, with algorithms that users can add to."""

from .algorithm import Algorithm, TrainingRun
from .registry import register_algorithm
from .settings import AgentTraining

__all__ = ["AgentTraining", "Algorithm", "TrainingRun", "register_algorithm"]
