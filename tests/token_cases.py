"""Padded batches for token modes, what a mode makes of them, and what the slow oracles do.

The authors' modes sort their tokens by score even if all stay, so for them "keeping all is the identity" does not hold
and "permuting patches permutes the result" becomes "changes nothing"; both are tested as such.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from hypothesis import strategies as st
from oracles import Token, evit, evit_fused, prune_then_merge, tome
from torch import Tensor

from supernet import token_mode
from supernet.arrays import Ints
from supernet.tokens.modes import combine, total_size

OURS = ["prune", "prune_fused", "merge", "prune_merge", "tome"]
AUTHORS = ["authors_prune", "authors_merge", "authors_prune_merge"]
SIZED = ["merge", "prune_merge", "tome", "authors_merge", "authors_prune_merge"]
MODES = {m: token_mode(m.removeprefix("authors_"), authors=m in AUTHORS) for m in OURS + AUTHORS}
CHANNELS, FEATURES = 5, 4


def ints(*values: int) -> Ints:
    return np.array(values, dtype=np.int64)


@dataclass(frozen=True)
class Case:
    """Arguments of a reduction: a padded batch of B images of up to N tokens.

    Attributes:
        x: (B, N, C).
        scores: (B, N).
        metric: (B, N, M).
        size: (B, N).
        lengths: (B,).
        counts: (B, stages).
        prefix: Class tokens.
    """

    x: Tensor
    scores: Tensor
    metric: Tensor
    size: Tensor
    lengths: Ints
    counts: Ints
    prefix: int

    def alone(self, i: int) -> Case:
        """Image i without padding."""
        n = int(self.lengths[i])
        cut = {name: getattr(self, name)[i : i + 1, :n] for name in ("x", "scores", "metric", "size")}
        return replace(self, **cut, lengths=self.lengths[i : i + 1], counts=self.counts[i : i + 1])

    def permuted(self, order: Tensor) -> Case:
        """The same tokens in another order, `order[j]` at place j."""
        cut = {name: getattr(self, name)[:, order] for name in ("x", "scores", "metric", "size")}
        return replace(self, **cut)


@dataclass(frozen=True)
class Reduced:
    """A reduced batch: `into` (B, N), `x` (B, K, C) and `size` (B, K); beyond an image's count is padding."""

    into: Tensor
    x: Tensor
    size: Tensor


def reduce(mode: str, case: Case) -> Reduced:
    """What the network does with a batch."""
    operator = MODES[mode]
    num_out = int(case.counts[:, -1].max())
    into, weight = operator.assign(
        case.scores if operator.uses_scores else None,
        None if operator.metric is None else case.metric,
        case.size,
        case.lengths,
        case.counts,
        case.prefix,
    )
    x = combine(case.x, into, num_out, weight, operator.normalise)
    return Reduced(into, x, total_size(case.size, into, num_out))


def make_case(mode: str, prefix: int, lengths: list[int], counts: list[list[int]], seed: int) -> Case:
    """Random tokens; class tokens have size 1, as they always do."""
    generator = torch.Generator().manual_seed(seed)
    shape = (len(lengths), max(lengths))
    scores = torch.rand(shape, generator=generator, dtype=torch.float64)
    size = torch.randint(1, 6, shape, generator=generator).double()
    size[:, :prefix] = 1
    return Case(
        torch.randn(*shape, CHANNELS, generator=generator, dtype=torch.float64),
        scores / scores.sum(1, keepdim=True),
        torch.randn(*shape, FEATURES, generator=generator, dtype=torch.float64),
        size if mode in SIZED else torch.ones_like(size),
        ints(*lengths),
        np.array(counts, dtype=np.int64),
        prefix,
    )


@st.composite
def cases(draw: st.DrawFn, mode: str) -> Case:
    """Batches in which every image has its own length and counts; some keep all, some as little as possible."""
    prefix = 1 if mode in AUTHORS else draw(st.integers(0, 1))
    lengths = draw(st.lists(st.integers(prefix + 1, 14), min_size=1, max_size=4))
    counts = []
    for n in lengths:
        least = min(n, prefix + 1 + (mode == "prune_fused"))
        last = draw(st.sampled_from([least, n]) | st.integers(least, n))
        first = [draw(st.sampled_from([last, n]) | st.integers(last, n))] if MODES[mode].num_rates == 2 else []
        counts.append([*first, last])
    return make_case(mode, prefix, lengths, counts, draw(st.integers(0, 2**31)))


def groups_of(into: Tensor, length: int) -> list[set[int]]:
    """For every token of the shorter sequence of one image, which tokens went into it."""
    places = into[:length].tolist()
    return [{i for i, place in enumerate(places) if place == new} for new in range(max(places) + 1)]


def oracle(mode: str, case: Case, i: int) -> list[Token]:
    """One image by the formulas."""
    n, prefix = int(case.lengths[i]), case.prefix
    x, scores, metric, size = (getattr(case, name)[i, :n].numpy() for name in ("x", "scores", "metric", "size"))
    patches = [int(count) - prefix for count in case.counts[i]]
    survive = patches[0] if len(patches) == 2 else n - prefix
    if mode == "prune":
        return evit(x, scores, size, patches[-1], prefix)
    if mode == "prune_fused":
        whole = patches[-1] == n - prefix
        return (evit if whole else evit_fused)(x, scores, size, patches[-1] - (not whole), prefix)
    if mode == "tome":
        return tome(x, metric, size, patches[-1] + prefix, prefix)
    survive = patches[-1] if mode == "authors_prune" else survive
    ours = mode in OURS
    return prune_then_merge(x, scores, metric, size, survive, patches[-1], prefix, weighted=ours, ranked=not ours)
