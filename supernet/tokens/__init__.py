"""Token reduction: the contract and registry (`modes`), and the modes of this package, each registered by its file."""

from . import merge, prune, semantic, tome

__all__ = ["merge", "prune", "semantic", "tome"]
