"""NViT's global structural pruning (arXiv 2110.04869): all units of all blocks in one ranking, step by step.

After every step the units are scored anew (`train.networks.saliency`), and the score follows them as a moving average.
A unit's score is its share of all saliency - latency_weight * the share of the network's cost that it saves. Units of
a layer are sorted and bundled, so that what remains is a multiple of the bundle, and the bundles with the lowest sums
go, wherever they are; one stays in every layer.

As published: the saliency and its divisors, the cost of one unit at the current sizes, sums over bundles, the moving
average, two bundles a step. Ours: shares instead of absolute numbers, so that the weight means the same for every
network; units are cut out instead of zeroed; the weights stay as they are in between (prune, train with `prance train
static`, and prune on); and tokens as a further kind of unit, which no paper has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import torch
from torch import Tensor

from supernet.block_sizes import BlockSizes
from supernet.cutting import Units, all_units, cut_units, sizes_after
from supernet.static_vit import StaticViT

from ..networks.saliency import Batches, Saliency, each, saliency
from .size_costs import SizeCost

# NViT's: units that go together, and what a sum over a unit's weights is divided by.
BUNDLES = {"embed_dim": 16, "heads": 2, "qk": 8, "v": 8, "hidden": 16, "tokens": 8}
DIVISORS = {"heads": 12.0, "qk": 2.0, "v": 2.0}
MOMENTUM = 0.9
# Chosen on Digits, see docs/designs.md.
LATENCY_WEIGHT = 0.001
PER_STEP = 2


@dataclass(frozen=True)
class PruneOptions:
    """How units are taken out.

    Attributes:
        saliency: "taylor" or "hutchinson".
        latency_weight: Of the cost that a unit saves, against its saliency; both are shares. 0: cost does not matter.
        bundles: How many units of each kind go together; kinds that are missing stay.
        per_step: Bundles that go before units are scored anew.
        momentum: Of the moving average of scores.
        seed: Of the random signs of "hutchinson".

    Raises:
        ValueError: If a number is out of range, or a kind is unknown.
    """

    saliency: Saliency = "taylor"
    latency_weight: float = LATENCY_WEIGHT
    bundles: Mapping[str, int] = field(default_factory=lambda: {k: n for k, n in BUNDLES.items() if k != "tokens"})
    per_step: int = PER_STEP
    momentum: float = MOMENTUM
    seed: int = 0

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.bundles) - set(BUNDLES)):
            raise ValueError(f"bundles are of unknown kinds {unknown}; known are {[*BUNDLES]}.")
        if not self.bundles or min(*self.bundles.values(), self.per_step) < 1:
            raise ValueError(f"bundles={self.bundles} and per_step={self.per_step} must be at least 1.")
        if not self.latency_weight >= 0 or not 0 <= self.momentum < 1:
            raise ValueError(
                f"latency_weight={self.latency_weight} must be at least 0, momentum={self.momentum} in [0, 1)."
            )


@dataclass(frozen=True)
class Pruned:
    """A network at one of the targets.

    Attributes:
        network: The smaller network.
        cost: What it costs.
        steps: Steps until then.
    """

    network: StaticViT
    cost: float
    steps: int


@dataclass(frozen=True)
class _Bundle:
    kind: str
    layer: int
    units: Tensor
    score: float


def usual_bundles(static: StaticViT) -> dict[str, int]:
    """NViT's bundles, but at most a quarter of the units that a layer has."""
    units = all_units(static) | {"tokens": (torch.arange(static.config.num_patches // 4),)}
    return {kind: max(1, min(size, min(map(len, units[kind])) // 4)) for kind, size in BUNDLES.items()}


def global_prune(
    static: StaticViT,
    batches: Batches,
    cost: SizeCost,
    targets: Sequence[float],
    options: PruneOptions | None = None,
    progress: Callable[[float], object] = lambda cost: None,
    partly: bool = False,
) -> list[Pruned]:
    """Takes units out until the network costs no more than each of the targets.

    Args:
        static: The network to begin with, unchanged, such as `train.networks.importance.full_network(net)`.
        batches: Images and labels that units are scored on after every step.
        cost: Of `train.search.size_costs`.
        targets: Costs, in its unit.
        options: How; None: as NViT does, with `usual_bundles`, tokens excepted.
        progress: Called with the cost after each step.
        partly: Whether targets that cannot be reached are left out.

    Returns:
        One network for each target, as sorted from the largest.

    Raises:
        ValueError: If a target cannot be reached (unless `partly`), there are no images, or tokens are to leave by a
            mode that does not drop them.
    """
    if options is None:
        options = PruneOptions(bundles={k: n for k, n in usual_bundles(static).items() if k != "tokens"})
    network, average, steps = _ready(static, options), None, 0
    full = now = cost(_running(network.block_sizes))
    open_targets, reached = sorted(targets, reverse=True), list[Pruned]()

    def note(kept: Units) -> None:
        while open_targets and now <= open_targets[0]:
            open_targets.pop(0)
            reached.append(Pruned(_finished(cut_units(network, _consistent(network, kept))), now, steps))

    note(_units(network))
    while open_targets:
        fresh = _comparable(saliency(network, batches, options.saliency, seed=options.seed + steps))
        mixed = fresh if average is None else each(lambda a, b: a.lerp(b, 1 - options.momentum), average, fresh)
        bundles = sorted(_bundles(network, mixed, cost, full, options), key=lambda b: b.score)
        if not bundles and partly:
            return reached
        if not bundles:
            raise _unreachable(open_targets[0], now, full)
        kept: Units = _units(network)
        steps += 1
        for bundle in bundles[: options.per_step]:
            own = kept[bundle.kind][bundle.layer]
            kept = _with_layer(kept, bundle.kind, bundle.layer, own[~torch.isin(own, bundle.units)])
            now = cost(_running(sizes_after(network.config, network.block_sizes, kept)))
            note(kept)
        progress(now)
        kept = _consistent(network, kept)
        network = cut_units(network, kept)
        average = {kind: tuple(s[k] for s, k in zip(mixed[kind], kept[kind], strict=True)) for kind in mixed}
    return reached


def _unreachable(target: float, now: float, full: float) -> ValueError:
    return ValueError(
        f"A cost of {target:,.6g} cannot be reached: with one bundle of every kind left in every block the network "
        f"still costs {now:,.6g} of {full:,.6g}. Pass a larger target, smaller bundles, or more kinds."
    )


def _bundles(
    network: StaticViT, scores: Units, cost: SizeCost, full: float, options: PruneOptions
) -> Iterator[_Bundle]:
    """All bundles that may go, of every layer in the order in which they leave, with scores that rise in it."""
    units = _units(network)
    now = cost(_running(network.block_sizes))
    total = float(sum(part.sum() for kind in options.bundles for part in scores.get(kind, ())))
    for kind, size in options.bundles.items():
        for layer, values in enumerate(scores.get(kind, ())):
            # Class token and registers are no units.
            first = network.config.num_prefix_tokens if kind == "tokens" else 0
            count = len(values) - first
            if count <= size:
                continue
            fewer = _with_layer(units, kind, layer, units[kind][layer][:-1])
            saved = now - cost(_running(sizes_after(network.config, network.block_sizes, fewer)))
            worth = values / max(total, 1e-30) - options.latency_weight * saved / full
            # Tokens leave from the last rank on; so many units first that a multiple of the bundle remains.
            order = torch.arange(len(values)).flip(0) if kind == "tokens" else worth.argsort(stable=True)
            ends = range(count % size or size, count - size + 1, size)
            members = [order[begin:end] for begin, end in pairwise([0, *ends])]
            for units_of_one, score in zip(members, _rising([float(worth[m].sum()) for m in members]), strict=True):
                yield _Bundle(kind, layer, units_of_one, score)


def _rising(scores: Sequence[float]) -> list[float]:
    """Scores of a layer's bundles such that none leaves before those ahead of it.

    Inner ranks of tokens may be worth less than the last ones, and where worths are negative, a whole bundle less than
    a first one of fewer units. Such bundles count their mean (isotonic regression). That is an order and no more: with
    equal scores they stand in a row, but only `per_step` bundles leave before everything is scored anew, and what is
    left of the row counts as it does then.
    """
    pools: list[tuple[float, int]] = []
    for score in scores:
        mean, count = score, 1
        while pools and pools[-1][0] > mean:
            before, ahead = pools.pop()
            mean, count = (mean * count + before * ahead) / (count + ahead), count + ahead
        pools.append((mean, count))
    return [mean for mean, count in pools for _ in range(count)]


def _comparable(scores: Units) -> Units:
    """Sums over more weights are divided, as NViT does; on the CPU, where the numbers of units are."""
    depth = len(scores["heads"])
    return {
        kind: tuple(part.cpu() / DIVISORS.get(kind, depth if kind == "embed_dim" else 1.0) ** 2 for part in parts)
        for kind, parts in scores.items()
    }


# ---- tokens as units ------------------------------------------------------------------------------------------------


def _ready(static: StaticViT, options: PruneOptions) -> StaticViT:
    """The network with the token mode at every decision, where it drops nothing yet."""
    if "tokens" not in options.bundles:
        return static
    config = static.config
    if config.space.token_mode != "prune":
        raise ValueError(
            f"Tokens can be taken out by token_mode='prune', not by {config.space.token_mode!r}; leave 'tokens' out of "
            "the kinds."
        )
    starts = {config.space.blocks(g).start for g in range(config.space.first_decided, len(config.space.groups))}
    left = tuple(torch.arange(s.left if n in starts else 0) for n, s in enumerate(static.block_sizes))
    return cut_units(static, all_units(static) | {"tokens": left})


def _units(network: StaticViT) -> dict[str, tuple[Tensor, ...]]:
    """The numbers of all units, tokens included."""
    left = tuple(torch.arange(0 if s.counts is None else s.left) for s in network.block_sizes)
    return all_units(network) | {"tokens": left}


def _with_layer(units: Units, kind: str, layer: int, numbers: Tensor) -> dict[str, tuple[Tensor, ...]]:
    parts = [*units[kind]]
    parts[layer] = numbers
    return {**units, kind: (*parts,)}


def _consistent(network: StaticViT, kept: Units) -> Units:
    """No block keeps more tokens than come to it."""
    after = sizes_after(network.config, network.block_sizes, kept)
    left = tuple(part[: size.left] for part, size in zip(kept["tokens"], after, strict=True))
    return {**kept, "tokens": left}


def _running(sizes: Sequence[BlockSizes]) -> list[BlockSizes]:
    """Sizes without token modes that would drop nothing."""
    return [replace(s, counts=None) if s.counts is not None and s.left == s.tokens else s for s in sizes]


def _finished(network: StaticViT) -> StaticViT:
    """The network without such token modes."""
    left = tuple(torch.arange(0 if s.counts is None else s.left) for s in _running(network.block_sizes))
    return cut_units(network, all_units(network) | {"tokens": left})
