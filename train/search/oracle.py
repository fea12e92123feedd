"""The per-image oracle: which of many subnets suits an image best, by someone who knows its label.

On the image itself the choice is lucky: among hundreds of subnets, some cheap one guesses nearly every label. The
yardstick is the cross-fitted oracle: it chooses on copies of the image with other noise, and is judged on the image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from prance_env.engine import InferenceEngine
from supernet.arrays import Bools, Floats, Ints

from .shared_runs import Actions, SharedRuns
from .static import SearchResult

# How many votes of copies the average over the stratum counts as; infinitely many make a choice per stratum.
PRIOR_VOTES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, np.inf)


def useful_subnets(found: SearchResult, stratum: Ints, prices: Floats, count: int) -> Ints:
    """The subnets that come nearest to being the best one for some stratum at some price.

    Args:
        found: What was searched.
        stratum: (N,) of the images that it was searched on.
        prices: (P,) of the full network's MACs, in accuracy.
        count: How many.

    Returns:
        (count,) numbers in `found`, fewer if it holds fewer; the best ones for all images at these prices come first.
    """
    parts = [np.ones(len(stratum), dtype=bool), *(stratum == s for s in np.unique(stratum))]
    gap = np.full(len(found.macs_fraction), np.inf)
    for rows in parts:
        score = found.correct[:, rows].mean(axis=1) - prices[:, None] * found.macs_fraction
        gap = np.minimum(gap, (score.max(axis=1, keepdims=True) - score).min(axis=0))
    first = np.unique(found.best_at(prices))
    gap[first] = -1
    return np.argsort(gap, kind="stable")[:count]


def judge_subnets(
    engine: InferenceEngine, index: Ints, subnets: Actions, progress: Callable[[int], object] = lambda done: None
) -> tuple[Bools, Floats]:
    """Every subnet on every image.

    Args:
        engine: Supernet and images.
        index: (N,) images.
        subnets: (K, num_decisions, A) in [0, 1].
        progress: Called with the number of subnets done.

    Returns:
        (K, N) whether it is right, and (K, N) how right: the mean of that and of the label's probability, which tells
        sure from lucky.
    """
    correct, prob = SharedRuns(engine).verdicts(index, subnets, progress)
    return correct, (correct + prob) / 2


def choose_lucky(correct: Bools, macs: Floats, price: float) -> Ints:
    """(N,) the subnet with the highest correct - price * macs on the image itself; correct (K, N), macs (K,)."""
    return (correct - price * macs[:, None]).argmax(axis=0)


def stratum_votes(votes: Floats, stratum: Ints, asked: Ints) -> Floats:
    """(K, M) mean votes (K, N) over the stratum of each of M asked images; over all images where it is unknown."""
    mean = np.repeat(votes.mean(axis=1, keepdims=True), len(asked), axis=1)
    for s in np.intersect1d(stratum, asked):
        mean[:, asked == s] = votes[:, stratum == s].mean(axis=1, keepdims=True)
    return mean


def choose_crossfitted(
    votes: Floats, copies: int, prior: Floats, prior_votes: float, macs: Floats, price: float
) -> Ints:
    """(N,) the subnet with the highest expected vote - price * macs.

    The expected vote is the mean over the image's copies, drawn towards that of its stratum: few votes alone would
    again be luck.

    Args:
        votes: (K, N) mean over the copies of an image.
        copies: How many there are.
        prior: (K, N) mean over the image's stratum, of other images.
        prior_votes: How many copies that counts as, > 0; infinity leaves the copies out.
        macs: (K,) fractions of the full network.
        price: Of the full network's MACs, in accuracy.
    """
    share = copies / (copies + prior_votes)
    expected = share * votes + (1 - share) * prior
    return (expected - price * macs[:, None]).argmax(axis=0)


def tune_prior_votes(
    votes: Floats,
    copies: int,
    prior: Floats,
    correct: Bools,
    macs: Floats,
    price: float,
    options: Sequence[float] = PRIOR_VOTES,
) -> float:
    """The `prior_votes` with which the choice is best on the images themselves, correct (K, N): validation images."""

    def score(prior_votes: float) -> float:
        choice = choose_crossfitted(votes, copies, prior, prior_votes, macs, price)
        return float((correct[choice, np.arange(len(choice))] - price * macs[choice]).mean())

    return max(options, key=score)
