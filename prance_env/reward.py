"""Result-to-Go rewards: accuracy minus what it costs.

R_t is the value of the inference if it were finished at full size after decision t:

    R_t = accuracy_t - macs_weight * macs_t / macs_full - token_weight * keep_t

PRANCE (arXiv 2407.05010) rewards every decision with its R_t.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

MODES = ("result_to_go", "terminal", "potential")
ACCURACIES = ("agreement", "top1", "prob", "mixed")


@dataclass(frozen=True)
class RewardConfig:
    """What a decision is worth.

    Attributes:
        mode: "result_to_go": every decision earns R_t, where keep_t is the keep rate it chose (the paper's reward).
            "terminal": only the last one earns R_T, where keep_T is the mean of all keep rates. "potential": every
            decision earns R_t - R_(t-1) with R_0 = 0 and keep_t the mean over all decisions, later ones counting 1: the
            sum over an episode is the terminal reward, so the best policy is the same. The terms in the
            info are always those of R_t.
        accuracy: "agreement": 1 unless the full network is right and this one is not. "top1": 1 if right. "prob":
            probability of the label. "mixed": half agreement, half min(1, 1 + p(label) - p_full(label)).
        macs_weight: Price of all MACs of the full network.
        token_weight: Price of keeping every patch.
    """

    mode: str = "result_to_go"
    accuracy: str = "agreement"
    macs_weight: float = 0.2
    token_weight: float = 0.0

    def __post_init__(self) -> None:
        for name, allowed in (("mode", MODES), ("accuracy", ACCURACIES)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"reward {name}={getattr(self, name)!r} is unknown; choose one of {allowed}.")
        for name in ("macs_weight", "token_weight"):
            value = getattr(self, name)
            if not (isinstance(value, int | float) and math.isfinite(value) and value >= 0):
                raise ValueError(f"reward {name}={value!r} must be a finite number >= 0.")

    @classmethod
    def from_dict(cls, data: Mapping[str, Any] | None) -> RewardConfig:
        """From keyword arguments as plain data; None gives the defaults.

        Raises:
            ValueError: If a key is unknown or a value is out of range.
        """
        data = {} if data is None else data
        known = [f.name for f in fields(cls)]
        if not isinstance(data, Mapping) or (set(data) - set(known)):
            raise ValueError(f"reward={data!r} must be a dict with keys among {known}.")
        return cls(**data)


def accuracy_term(kind: str, correct: Bools, full_correct: Bools, prob: Floats, full_prob: Floats) -> Floats:
    """The accuracy part of R_t for (B,) images.

    Args:
        kind: One of `ACCURACIES`.
        correct: Whether the subnet's prediction is the label.
        full_correct: Whether the full network's is.
        prob: Probability that the subnet gives the label.
        full_prob: Probability that the full network gives it.
    """
    if kind == "top1":
        return correct.astype(np.float64)
    if kind == "prob":
        return np.asarray(prob, dtype=np.float64)
    agreement = np.where(full_correct & ~correct, 0.0, 1.0)
    if kind == "agreement":
        return agreement
    return np.asarray(0.5 * (agreement + np.minimum(1.0, 1.0 + prob - full_prob)), dtype=np.float64)
