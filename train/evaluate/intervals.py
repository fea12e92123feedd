"""What can be said about an evaluation beyond its means: intervals, strata, classes, and the link to difficulty."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest, spearmanr

from .evaluation import Evaluation

RESAMPLES = 1000
LEVEL = 0.95
DRAWN_AT_ONCE = 2**21


def bootstrap_interval(
    values: NDArray[np.float64], seed: int = 0, resamples: int = RESAMPLES, level: float = LEVEL
) -> NDArray[np.float64]:
    """Percentile interval of the mean by the bootstrap over rows (Efron and Tibshirani, 1993, chapter 13).

    It takes images as independent. Where several share their source, as scenes of Digits share handwritings, the
    uncertainty about new sources is larger.

    Args:
        values: (N,) or (N, K), one row per image; columns are resampled together.
        seed: Fixes the interval.
        resamples: How many samples of N rows are drawn.
        level: Coverage, in (0, 1).

    Returns:
        (2,) or (2, K): the lower and the upper end.

    Raises:
        ValueError: If there are no rows, or an argument is out of range.
    """
    values = np.asarray(values, dtype=np.float64)
    if not len(values):
        raise ValueError("A bootstrap needs at least one row; values has none.")
    if resamples < 1 or not 0 < level < 1:
        raise ValueError(f"resamples={resamples} must be at least 1, and level={level} lie in (0, 1).")
    return ends(np.concatenate([values[drawn].mean(axis=1) for drawn in draws(len(values), seed, resamples)]), level)


def share_interval(right: NDArray[np.bool_], level: float = LEVEL) -> list[float]:
    """Wilson's interval of a share, which has a width also where all are right or none is: a bootstrap then has none.

    Args:
        right: (N,) whether, N at least 1.
        level: Coverage, in (0, 1).

    Returns:
        The lower and the upper end.
    """
    found = binomtest(int(right.sum()), len(right)).proportion_ci(level, method="wilson")
    return [float(found.low), float(found.high)]


def draws(total: int, seed: int, resamples: int) -> Iterator[NDArray[np.int64]]:
    """The bootstrap's draws with replacement: (n, total) row numbers at a time, `resamples` rows of them in all.

    Args:
        total: How many rows there are to draw from.
        seed: Fixes the draws.
        resamples: How many samples are drawn.
    """
    rng = np.random.default_rng(seed)
    at_once = max(1, DRAWN_AT_ONCE // total)
    for begin in range(0, resamples, at_once):
        yield rng.integers(total, size=(min(at_once, resamples - begin), total))


def ends(means: NDArray[np.float64], level: float = LEVEL) -> NDArray[np.float64]:
    """(2, ...) lower and upper end of the percentile interval of resampled means (resamples, ...); NaN are left out."""
    return np.nanquantile(means, [(1 - level) / 2, (1 + level) / 2], axis=0)


def difficulty_correlation(evaluation: Evaluation) -> float | None:
    """Spearman's rank correlation of the MACs with the stratum; None where either is the same for all images."""
    spent, difficulty = evaluation.macs, evaluation.difficulty
    if len(np.unique(spent)) < 2 or len(np.unique(difficulty)) < 2:
        return None
    return float(spearmanr(spent, difficulty).statistic)


def describe(evaluation: Evaluation, seed: int = 0, resamples: int = RESAMPLES) -> dict[str, Any]:
    """The summary with intervals, and the same for every stratum and class.

    Args:
        evaluation: One row per image.
        seed: Fixes the bootstrap.
        resamples: Samples that the bootstrap draws.

    Returns:
        Plain data: `accuracy`, `macs_fraction`, `params_fraction`, `patches_fraction`, `n_images`; `patches_after` (one
        entry a decision); for accuracy (Wilson's), MACs and `patches_after` (the bootstrap's) the 95 % interval as
        `..._interval`;
        `macs_difficulty_spearman`; `by_difficulty` and `by_class`, by number as text.
    """
    return {
        **_part(evaluation, np.ones(len(evaluation.index), dtype=bool), seed, resamples),
        "macs_difficulty_spearman": difficulty_correlation(evaluation),
        "by_difficulty": _parts(evaluation, evaluation.difficulty, seed, resamples),
        "by_class": _parts(evaluation, evaluation.label, seed, resamples),
    }


def _parts(evaluation: Evaluation, key: NDArray[np.int64], seed: int, resamples: int) -> dict[str, dict[str, Any]]:
    return {str(k): _part(evaluation, key == k, seed, resamples) for k in np.unique(key)}


def _part(evaluation: Evaluation, rows: NDArray[np.bool_], seed: int, resamples: int) -> dict[str, Any]:
    columns = [evaluation.macs_fraction[rows, None], evaluation.patches[rows]]
    low_high = bootstrap_interval(np.concatenate(columns, axis=1), seed, resamples).T.tolist()
    return {
        **evaluation.summary(rows),
        "patches_after": evaluation.patches[rows].mean(axis=0).tolist(),
        "accuracy_interval": share_interval(evaluation.correct[rows]),
        "macs_fraction_interval": low_high[0],
        "patches_after_interval": low_high[1:],
    }
