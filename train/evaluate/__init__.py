"""Judging agents: playing every image of a split once, intervals, paired tests, and playing it again."""

from agents.protocol import Agent

from .evaluation import Evaluation, evaluate, evaluate_actions

__all__ = ["Agent", "Evaluation", "evaluate", "evaluate_actions"]
