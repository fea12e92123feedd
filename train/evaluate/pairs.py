"""Two agents on the same images: paired tests, and what an agent leaves on the table beside the oracle."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest, ttest_1samp, wilcoxon

from .evaluation import Evaluation
from .intervals import RESAMPLES, bootstrap_interval


class Outcomes(Protocol):
    """What is compared of an evaluation: one row per image."""

    @property
    def index(self) -> NDArray[np.int64]:
        """(N,) image of the data set."""

    @property
    def label(self) -> NDArray[np.int64]:
        """(N,) its class."""

    @property
    def correct(self) -> NDArray[np.bool_]:
        """(N,) whether the prediction is the label."""

    @property
    def macs_fraction(self) -> NDArray[np.float64]:
        """(N,) MACs / MACs of the full network."""


def mcnemar(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float:
    """Two-sided exact p-value that two agents are right equally often (McNemar, 1947, in its binomial form).

    Args:
        first: (N,) whether one agent is right.
        second: (N,) whether the other is, on the same images.
    """
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    if only_first + only_second == 0:
        return 1.0
    return float(binomtest(only_first, only_first + only_second).pvalue)


def wilcoxon_p(first: NDArray[np.int64], second: NDArray[np.int64]) -> float:
    """Two-sided p-value that paired costs (N,) differ by chance (Wilcoxon's signed ranks, equal pairs left out)."""
    difference = np.asarray(first, dtype=np.int64) - np.asarray(second, dtype=np.int64)
    if not difference.any():
        return 1.0
    return float(wilcoxon(difference).pvalue)


def gain_p(gains: NDArray[np.float64]) -> float:
    """One-sided p-value that gains (N,), one an image, have a mean above 0 by chance (Student's t).

    Ranks would not do for scores: many images that cost a little more outrank a few that are right instead of wrong.
    """
    if np.ptp(gains) == 0:
        return float(gains[0] <= 0)
    return float(ttest_1samp(gains, 0, alternative="greater").pvalue)


def compare(first: Evaluation, second: Evaluation, seed: int = 0, resamples: int = RESAMPLES) -> dict[str, Any]:
    """Paired comparison, `first` minus `second`.

    Returns:
        `accuracy` and `macs_fraction` (differences of means), each with `..._interval` (95 %, bootstrap) and
        `..._p` (McNemar's exact test; Wilcoxon's signed ranks), `only_first_right` and `only_second_right`.

    Raises:
        ValueError: If the rows are not the same images.
    """
    _check_paired(first, second)
    differences = np.stack(
        [first.correct.astype(float) - second.correct, first.macs_fraction - second.macs_fraction], axis=1
    )
    low_high = bootstrap_interval(differences, seed, resamples).T.tolist()
    return {
        "accuracy": float(differences[:, 0].mean()),
        "accuracy_interval": low_high[0],
        "accuracy_p": mcnemar(first.correct, second.correct),
        "only_first_right": int((first.correct & ~second.correct).sum()),
        "only_second_right": int((second.correct & ~first.correct).sum()),
        "macs_fraction": float(differences[:, 1].mean()),
        "macs_fraction_interval": low_high[1],
        "macs_fraction_p": wilcoxon_p(first.macs, second.macs),
    }


def regret_to_oracle(
    agent: Outcomes, oracle: Outcomes, macs_weight: float, seed: int = 0, resamples: int = RESAMPLES
) -> dict[str, Any]:
    """What the per-image oracle scores more than an agent, where a score is accuracy - macs_weight * MACs / full MACs.

    Args:
        agent: Evaluation of the agent.
        oracle: Evaluation of the oracle, on the same images.
        macs_weight: Price of the full network's MACs, >= 0.
        seed: Fixes the bootstrap.
        resamples: Samples that the bootstrap draws.

    Returns:
        `regret` with `regret_interval`, and its two parts: `accuracy_gap` (oracle - agent) and `macs_gap`
        (agent - oracle, in fractions of the full network): regret = accuracy_gap + macs_weight * macs_gap.

    Raises:
        ValueError: If the rows are not the same images, or the price is negative.
    """
    _check_paired(agent, oracle)
    if not macs_weight >= 0:
        raise ValueError(f"macs_weight={macs_weight} must be 0 or more.")
    accuracy = oracle.correct.astype(float) - agent.correct
    macs = agent.macs_fraction - oracle.macs_fraction
    regret = accuracy + macs_weight * macs
    return {
        "regret": float(regret.mean()),
        "regret_interval": bootstrap_interval(regret, seed, resamples).tolist(),
        "accuracy_gap": float(accuracy.mean()),
        "macs_gap": float(macs.mean()),
    }


def _check_paired(first: Outcomes, second: Outcomes) -> None:
    if not np.array_equal(first.index, second.index) or not np.array_equal(first.label, second.label):
        raise ValueError(
            f"The evaluations hold {len(first.index)} and {len(second.index)} rows of different images; "
            "evaluate both on the same split."
        )
