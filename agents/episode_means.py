"""What finished episodes had in common: the terms of their reward, and what was chosen at every decision."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from supernet import SearchSpace

TERMS = ("accuracy", "macs", "tokens")
NEEDED = ("embed_dim", "mlp_ratio", "keep_rate")


def choices_of(finals: Mapping[str, NDArray[Any]], space: SearchSpace) -> dict[str, NDArray[np.float64]]:
    """The numbers that TensorBoard shows of finished episodes, one for each episode.

    Args:
        finals: Infos of K episodes that have ended, with a row for each.
        space: Of the supernet.

    Returns:
        (K,) by tag: "reward/accuracy" and the other terms of the last decision (which are those of the return where
        rewards add up to it, in the modes "potential" and "terminal"), and for every decision, counted from 1,
        "embed_dim/decision_1", "mlp_ratio/decision_1" (means over its blocks) and "keep_rate/decision_1".
    """
    found = {f"reward/{term}": finals[f"reward_{term}"] for term in TERMS}
    for decision in range(space.num_decisions):
        blocks, name = space.blocks(space.first_decided + decision), f"decision_{decision + 1}"
        for size in ("embed_dim", "mlp_ratio"):
            found[f"{size}/{name}"] = finals[size][:, blocks.start : blocks.stop].mean(axis=1)
        rates = finals["keep_rate"][:, decision].reshape(len(finals["keep_rate"]), -1)
        for rate in range(rates.shape[1]):
            found[f"keep_rate/{name}" + (f"_rate_{rate + 1}" if rate else "")] = rates[:, rate]
    return {tag: np.asarray(values, dtype=np.float64) for tag, values in found.items()}
