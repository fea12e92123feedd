"""Padded batches for token modes, what a mode makes of them, and what the slow oracles do.

The authors' modes sort their tokens by score even if all stay, so for them "keeping all is the identity" does not hold
and "permuting patches permutes the result" becomes "changes nothing"; both are tested as such.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from hypothesis import strategies as st
from oracles import Token, evit, evit_fused, evit_mass, prune_then_merge, tome, tome_above
from torch import Tensor

from supernet import token_mode
from supernet.arrays import Floats, Ints
from supernet.tokens.modes import combine, total_size

OURS = ["prune", "prune_fused", "merge", "prune_merge", "tome"]
THRESHOLD = ["prune_mass", "merge_above"]
AUTHORS = ["authors_prune", "authors_merge", "authors_prune_merge"]
SIZED = ["merge", "prune_merge", "tome", "merge_above", "authors_merge", "authors_prune_merge"]
MODES = {m: token_mode(m.removeprefix("authors_"), authors=m in AUTHORS) for m in OURS + THRESHOLD + AUTHORS}
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
        asked: (B, stages) counts; or (B, 1) thresholds.
        prefix: Class token and registers.
    """

    x: Tensor
    scores: Tensor
    metric: Tensor
    size: Tensor
    lengths: Ints
    asked: Ints | Floats
    prefix: int

    def alone(self, i: int) -> Case:
        """Image i without padding."""
        n = int(self.lengths[i])
        cut = {name: getattr(self, name)[i : i + 1, :n] for name in ("x", "scores", "metric", "size")}
        return replace(self, **cut, lengths=self.lengths[i : i + 1], asked=self.asked[i : i + 1])

    def permuted(self, order: Tensor) -> Case:
        """The same tokens in another order, `order[j]` at place j."""
        cut = {name: getattr(self, name)[:, order] for name in ("x", "scores", "metric", "size")}
        return replace(self, **cut)


@dataclass(frozen=True)
class Reduced:
    """A reduced batch: `into` (B, N), `x` (B, K, C), `size` (B, K), and (B,) `kept`, beyond which is padding."""

    into: Tensor
    x: Tensor
    size: Tensor
    kept: Ints


def reduce(mode: str, case: Case) -> Reduced:
    """What the network does with a batch."""
    operator = MODES[mode]
    into, weight, counts = operator.assignment(
        None,
        case.scores if operator.uses_scores else None,
        None if operator.metric is None else case.metric,
        case.size,
        case.lengths,
        case.asked,
        case.prefix,
    )
    kept = np.broadcast_to(counts[:, -1], len(case.x))
    num_out = int(kept.max())
    x = combine(case.x, into, num_out, weight, operator.normalise)
    return Reduced(into, x, total_size(case.size, into, num_out), kept)


def asked_for(mode: str, lengths: list[int], kept: int) -> list[list[float]]:
    """What to ask of a mode for every image: as many tokens as `kept`, of two stages twice that before; or one half."""
    stages = [0.5] if mode in THRESHOLD else [2 * kept, kept] if MODES[mode].num_rates == 2 else [kept]
    return [stages for _ in lengths]


def make_case(mode: str, prefix: int, lengths: list[int], asked: Sequence[Sequence[float]], seed: int) -> Case:
    """Random tokens; class tokens and registers have size 1, as they always do."""
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
        np.array(asked, dtype=np.float64 if mode in THRESHOLD else np.int64),
        prefix,
    )


@st.composite
def cases(draw: st.DrawFn, mode: str) -> Case:
    """Batches in which every image has its own length and counts or threshold; some keep all, some next to nothing."""
    prefix = 1 if mode in AUTHORS else draw(st.integers(0, 3))
    lengths = draw(st.lists(st.integers(prefix + 1, 14), min_size=1, max_size=4))
    asked: list[list[float]] = []
    for n in lengths:
        if mode in THRESHOLD:
            asked.append([draw(st.sampled_from([1e-9, 1.0]) | st.floats(1e-3, 1))])
            continue
        least = min(n, prefix + 1 + (mode == "prune_fused"))
        last = draw(st.sampled_from([least, n]) | st.integers(least, n))
        first = [draw(st.sampled_from([last, n]) | st.integers(last, n))] if MODES[mode].num_rates == 2 else []
        asked.append([*first, last])
    return make_case(mode, prefix, lengths, asked, draw(st.integers(0, 2**31)))


def groups_of(into: Tensor, length: int) -> list[set[int]]:
    """For every token of the shorter sequence of one image, which tokens went into it."""
    places = into[:length].tolist()
    return [{i for i, place in enumerate(places) if place == new} for new in range(max(places) + 1)]


def oracle(mode: str, case: Case, i: int) -> list[Token]:
    """One image by the formulas."""
    n, prefix = int(case.lengths[i]), case.prefix
    x, scores, metric, size = (getattr(case, name)[i, :n].numpy() for name in ("x", "scores", "metric", "size"))
    if mode in THRESHOLD:
        share = float(case.asked[i, 0])
        if mode == "prune_mass":
            return evit_mass(x, scores, size, share, prefix)
        return tome_above(x, metric, size, share, prefix)
    patches = [int(count) - prefix for count in case.asked[i]]
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
