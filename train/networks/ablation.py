"""What a network loses when one unit is taken out, and how well scores foretell it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.stats import spearmanr
from torch import Tensor

from supernet import Supernet
from supernet.ordering import UnitScores
from supernet.static_vit import StaticViT

from .importance import full_network

KINDS = ("heads", "hidden")
READERS = {"heads": "proj", "hidden": "fc2"}


@dataclass(frozen=True)
class Ablation:
    """Losses of the full network without one unit.

    Attributes:
        units: Of each kind of `KINDS` (depth, n) which units were tried.
        rise: Of each kind (depth, n) the loss without the unit, less the loss of the whole network.
        loss: Of the whole network.
    """

    units: Mapping[str, NDArray[np.int64]]
    rise: Mapping[str, NDArray[np.float64]]
    loss: float

    def correlations(self, scores: UnitScores) -> dict[str, NDArray[np.float64]]:
        """Of each kind (depth,) Spearman's rank correlation of scores with what taking the unit out costs.

        NaN where all scores of a block are equal.
        """
        found = {}
        for kind, units in self.units.items():
            values = getattr(scores, kind)
            rows = [
                _correlation(values[block, torch.from_numpy(units[block])].cpu().numpy(), self.rise[kind][block])
                for block in range(len(units))
            ]
            found[kind] = np.array(rows)
        return found


def _correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    if len(set(a.tolist())) < 2 or len(set(b.tolist())) < 2:
        return float("nan")
    return float(spearmanr(a, b).statistic)


@torch.inference_mode()
def ablate(net: Supernet, batches: Sequence[tuple[Tensor, Tensor]], hidden_units: int = 16, seed: int = 0) -> Ablation:
    """Takes every head out, one at a time, and some hidden units of every block.

    The loss is the cross-entropy with the labels; of a network without a classifier, the mean squared distance of its
    features from those of the whole network.

    Args:
        net: The supernet; unchanged.
        batches: Images and labels.
        hidden_units: How many of every block, drawn at random; 0: none.
        seed: Fixes which.
    """
    static, depth = full_network(net), net.space.depth
    whole = [static(images) for images, _ in batches]

    def loss() -> float:
        total = 0.0
        for (images, labels), target in zip(batches, whole, strict=True):
            out = static(images)
            part = F.mse_loss(out, target) if net.head is None else F.cross_entropy(out, labels)
            total += float(part) * len(labels)
        return total / sum(len(labels) for _, labels in batches)

    base, rng = loss(), np.random.default_rng(seed)
    width = {"heads": net.config.head_dim, "hidden": 1}
    units = {"heads": np.tile(np.arange(net.space.max_heads), (depth, 1))}
    if hidden_units:
        count = static.get_parameter("blocks.0.fc2.weight").shape[1]
        draws = [rng.choice(count, min(hidden_units, count), replace=False) for _ in range(depth)]
        units["hidden"] = np.sort(np.stack(draws), axis=1)
    rise = {}
    for kind, chosen in units.items():
        rise[kind] = np.zeros(chosen.shape)
        for block, place in np.ndindex(*chosen.shape):
            with _without(static, f"blocks.{block}.{READERS[kind]}", int(chosen[block, place]), width[kind]):
                rise[kind][block, place] = loss() - base
    return Ablation(units, rise, base)


@contextmanager
def _without(static: StaticViT, layer: str, unit: int, width: int) -> Iterator[None]:
    """The network while nothing reads one unit."""
    columns = static.get_parameter(f"{layer}.weight")[:, unit * width : (unit + 1) * width]
    kept = columns.clone()
    columns.zero_()
    try:
        yield
    finally:
        columns.copy_(kept)
