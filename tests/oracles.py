"""Token reduction written out slowly from the formulas, one image at a time, in plain loops and double precision.

Nothing here imports the package: these are what its operators are compared with.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Token:
    """A token of the shorter sequence.

    Attributes:
        x: (C,) its value.
        size: Number of patches it stands for.
        members: Positions, before the reduction, of the tokens in it.
    """

    x: Floats
    size: float
    members: tuple[int, ...]


def cosine(a: Floats, b: Floats) -> float:
    """Cosine of the angle between two vectors."""
    return float(sum(p * q for p, q in zip(a, b, strict=True))) / (math.hypot(*a) * math.hypot(*b))


def by_rank(scores: Floats, prefix: int) -> list[int]:
    """Patches by descending score, of equal ones the earlier first."""
    return sorted(range(prefix, len(scores)), key=lambda i: (-scores[i], i))


def alone(x: Floats, size: Floats, i: int) -> Token:
    """A token that stays as it is."""
    return Token(x[i], float(size[i]), (i,))


def mean_of(x: Floats, size: Floats, members: Sequence[int], weighted: bool = True) -> Token:
    """The mean of some tokens, weighted by size or plain; sizes are summed either way."""
    weights = [float(size[i]) if weighted else 1.0 for i in members]
    value = sum(w * x[i] for w, i in zip(weights, members, strict=True)) / sum(weights)
    return Token(np.asarray(value), float(sum(size[i] for i in members)), tuple(members))


def evit(x: Floats, scores: Floats, size: Floats, keep: int, prefix: int) -> list[Token]:
    """EViT's top-k: the `keep` patches of the highest scores, here in the order they had."""
    kept = sorted(by_rank(scores, prefix)[:keep])
    return [alone(x, size, i) for i in [*range(prefix), *kept]]


def evit_mass(x: Floats, scores: Floats, size: Floats, share: float, prefix: int) -> list[Token]:
    """`evit` with the fewest patches, at least one, that have a share of the attention of all patches together."""
    order = by_rank(scores, prefix)
    total, keep, mass = sum(scores[i] for i in order), 0, 0.0
    while keep < len(order) and (keep == 0 or share >= 1 or mass < share * total):
        mass += scores[order[keep]]
        keep += 1
    return evit(x, scores, size, keep, prefix)


def evit_fused(x: Floats, scores: Floats, size: Floats, keep: int, prefix: int) -> list[Token]:
    """EViT with its fused token: the sum of a_i * x_i over what is dropped; the weights are not normalised."""
    dropped = by_rank(scores, prefix)[keep:]
    fused = sum(scores[i] * x[i] for i in dropped)
    return [*evit(x, scores, size, keep, prefix), Token(np.asarray(fused), 1.0, tuple(dropped))]


def prune_then_merge(
    x: Floats,
    scores: Floats,
    metric: Floats,
    size: Floats,
    survive: int,
    keep: int,
    prefix: int,
    weighted: bool = True,
    ranked: bool = False,
) -> list[Token]:
    """DiffRate: of the patches the first `survive` by rank stay; the last of them are merged into the first `keep`.

    Args:
        x: (N, C).
        scores: (N,).
        metric: (N, M).
        size: (N,).
        survive: Patches that are not pruned.
        keep: Patches that remain.
        prefix: Class token and registers.
        weighted: Whether the mean is weighted by size, as ToMe's; DiffRate and PRANCE take the plain one.
        ranked: Whether the result is in the order of the ranks, as DiffRate's and PRANCE's, or in the old order.
    """
    order = by_rank(scores, prefix)
    into: dict[int, list[int]] = {i: [i] for i in order[:keep]}
    for source in order[keep:survive]:
        best = max(order[:keep], key=lambda target: cosine(metric[source], metric[target]))
        into[best].append(source)
    kept = order[:keep] if ranked else sorted(order[:keep])
    return [alone(x, size, i) for i in range(prefix)] + [mean_of(x, size, into[i], weighted) for i in kept]


def tome(x: Floats, metric: Floats, size: Floats, num_out: int, prefix: int) -> list[Token]:
    """ToMe's bipartite soft matching, repeated while one matching is not enough.

    Even positions point to the most alike odd one, the class token to none; the best edges merge; what is left of the
    even ones comes first, then the odd ones. Features of merged tokens are averaged, too, weighted by size.
    """
    groups = [[i] for i in range(len(x))]
    while (now := len(groups)) > num_out:
        edges = edges_of(groups, metric, size, prefix)[: min(now - num_out, (now - prefix) // 2)]
        groups = joined(groups, edges, prefix)
    return [mean_of(x, size, members) for members in groups]


def tome_above(x: Floats, metric: Floats, size: Floats, least: float, prefix: int) -> list[Token]:
    """`tome` in which all pairs merge that are more alike than `least`, until a matching has none."""
    groups, alike = [[i] for i in range(len(x))], True
    while alike:
        edges = edges_of(groups, metric, size, prefix)
        alike = bool(edges) and least < 1 and edges[0][0] > least
        if alike:
            groups = joined(groups, [edge for edge in edges if edge[0] > least], prefix)
    return [mean_of(x, size, members) for members in groups]


def edges_of(groups: list[list[int]], metric: Floats, size: Floats, prefix: int) -> list[tuple[float, int, int]]:
    """Every even position with the most alike odd one and how alike that is, the most alike first.

    Positions are counted from the last of the first tokens, or from the first patch if there are none.
    """
    now, edges, zero = len(groups), [], max(prefix - 1, 0)
    feature = [mean_of(metric, size, members).x for members in groups]
    for even in range(zero + 2 * min(prefix, 1), now if now > zero + 1 else 0, 2):
        likeness = {odd: cosine(feature[even], feature[odd]) for odd in range(zero + 1, now, 2)}
        best = max(likeness, key=lambda odd: likeness[odd])
        edges.append((likeness[best], even, best))
    return sorted(edges, key=lambda edge: (-edge[0], edge[1]))


def joined(groups: list[list[int]], edges: list[tuple[float, int, int]], prefix: int) -> list[list[int]]:
    """The groups after the even ends of some edges went into the odd ends."""
    now, merged, zero = len(groups), {even: odd for _, even, odd in edges}, max(prefix - 1, 0)
    odd_groups = {odd: list(groups[odd]) for odd in range(zero + 1, now, 2)}
    for even, odd in merged.items():
        odd_groups[odd] += groups[even]
    rest = [groups[even] for even in range(zero, now, 2) if even not in merged]
    return groups[:zero] + rest + list(odd_groups.values())
