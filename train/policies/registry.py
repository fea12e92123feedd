"""The algorithms by name, and `register_algorithm`, which adds to them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, overload

from agents.sb3.hyperparams import ALGORITHMS as OF_SB3
from supernet.extension import Registry

from .algorithm import Algorithm
from .train_prance_ppo import NAME as PRANCE_PPO
from .train_prance_ppo import PrancePPOAlgorithm
from .train_sb3 import SB3Algorithm

A = TypeVar("A", bound=type[Algorithm])

ALGORITHMS: Registry[Algorithm] = Registry("algorithm", "register_algorithm", "algo")


@overload
def register_algorithm(name: str, algorithm: Algorithm) -> Algorithm: ...


@overload
def register_algorithm(name: str) -> Callable[[A], A]: ...


def register_algorithm(name: str, algorithm: Algorithm | None = None) -> Algorithm | Callable[[A], A]:
    """Makes an algorithm known, so that `train_agent`, `load_agent` and the command line take its name.

    Either as a function, `register_algorithm("mine", Mine())`, or as a decorator of a class that is made without
    arguments:

        @register_algorithm("mine")
        class Mine(Algorithm):
            ...

    Args:
        name: What `algo` and `--algo` take.
        algorithm: The algorithm; None makes a decorator.

    Returns:
        What was given, or the decorator, which returns the class.

    Raises:
        ValueError: If the name is empty, or taken by another algorithm.
    """
    if algorithm is not None:
        return ALGORITHMS.add(name, algorithm)

    def decorate(cls: A) -> A:
        # A notebook's cell that is run again defines the class again.
        ALGORITHMS.add(name, cls(), lambda a, b: type(a).__qualname__ == type(b).__qualname__)
        return cls

    return decorate


for _name in sorted([*OF_SB3, PRANCE_PPO]):
    register_algorithm(_name, PrancePPOAlgorithm() if _name == PRANCE_PPO else SB3Algorithm(_name))
