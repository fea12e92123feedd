"""Subnets without training or images: DeepMAD's mathematical architecture design (arXiv 2303.02165), for ViTs.

DeepMAD takes a network for an information channel. The entropy of a layer's output grows with the logarithm of its
volume times the sum of the logarithms of all fan-ins before it; a network is to have as much of it as a budget of MACs
allows, as long as it is not too deep for its width. The paper does this for convolutions. Carried over to a ViT (our
reading, in no paper), with the fan-ins of a block's four linear layers (qkv: d; proj: heads * head_dim; fc1, and the
gate of a gated MLP: d; fc2: hidden) and n tokens of width d at the end of group j:

    H_j = log(n_j * d_j) * sum of log fan-in over all layers up to the end of group j
    maximise sum_j weight_j * H_j    subject to MACs <= budget    and, if asked for, rho <= max_effectiveness

with rho = depth / geometric mean of the fan-ins, DeepMAD's effectiveness. At a fixed depth a bound on rho is a bound on
the fan-ins from below; for every DeiT it is inactive (rho is 0.18, 0.09 and 0.04 for tiny, small and base, and DeepMAD
allows 0.3 to 0.5), so that it is off unless asked for.

The choice is a path through a layered graph, whose nodes are token counts, with one size for every block on the way: an
integer program. The product of a logarithm and a sum is linear once there is a variable for every volume that a group
can have, so that the solution is exact.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from itertools import product
from typing import Literal

import numpy as np

from .arrays import Floats, Ints
from .config import SupernetConfig
from .integer_program import IntegerProgram, Terms
from .path_program import PathProgram
from .plan import GroupPlan, hidden_dims, plan_subnet
from .subnet import SubnetConfig
from .token_graph import (
    Arc,
    Graph,
    all_paths,
    check_budget,
    check_sums,
    count_paths,
    macs_of,
    plan_before_decisions,
    size_list,
    subnets_of,
    token_graph,
)

LEVELS = 8
LAST_WEIGHT = 8.0
MOST_SUBNETS = 2_000_000
CHUNK = 50_000
# Of the objective: what is within it of the best counts as equal.
PRECISION = 1e-7


def entropy(config: SupernetConfig, subnet: SubnetConfig, weights: Sequence[float] | None = None) -> Floats:
    """(B,) the weighted sum of the entropies of all groups, what `design` maximises.

    Args:
        config: The supernet.
        subnet: B subnets of its space.
        weights: One per group; None: 1, and 8 for the last, as DeepMAD weighs its last stage.
    """
    plans = plan_subnet(config, subnet)
    depths = np.cumsum([_log_fan_ins(config, plan).sum(axis=1) for plan in plans], axis=0)
    volumes = np.log([plan.num_left * plan.widths[:, -1] for plan in plans])
    total: Floats = np.array(_weights(config, weights)) @ (volumes * depths)
    return total


def effectiveness(config: SupernetConfig, subnet: SubnetConfig) -> Floats:
    """(B,) DeepMAD's rho: layers over the geometric mean of their fan-ins, the largest over the ends of groups."""
    plans = plan_subnet(config, subnet)
    depths = np.cumsum([_log_fan_ins(config, plan).sum(axis=1) for plan in plans], axis=0)
    layers = _layers(config) * np.cumsum(config.space.groups)[:, None]
    rho: Floats = (layers / np.exp(depths / layers)).max(axis=0)
    return rho


def design(
    config: SupernetConfig,
    mac_budget: float,
    *,
    solver: Literal["milp", "brute_force"] = "milp",
    levels: int = LEVELS,
    weights: Sequence[float] | None = None,
    max_effectiveness: float | None = None,
) -> SubnetConfig:
    """The subnet with the largest entropy within a budget; looks at neither weights nor images.

    Args:
        config: The supernet.
        mac_budget: Most multiply-accumulates for an image.
        solver: "milp" (HiGHS) or "brute_force", which tries every subnet and is there to check the other.
        levels: Token counts to choose from: after a decision 1/levels, 2/levels, ... of all patches are left, or all
            that were.
        weights: Of the groups' entropies; see `entropy`.
        max_effectiveness: Most that rho may be at the end of every group; see `effectiveness`. None: anything.

    Returns:
        Exactly one subnet of the space, which has an action (`SubnetConfig.to_actions`).

    Raises:
        ValueError: If no subnet is within the budget or the effectiveness, an argument is out of range, the space is
            too large for brute force, or the supernet follows the authors' rules, by which the MACs of a group depend
            on the next one.
    """
    check_sums(config)
    if not mac_budget > 0 or levels < 1 or solver not in ("milp", "brute_force"):
        raise ValueError(f"{mac_budget=} and {levels=} must be above 0, {solver=} one of 'milp' and 'brute_force'.")
    if max_effectiveness is not None and not max_effectiveness > 0:
        raise ValueError(f"{max_effectiveness=} must be above 0; None allows anything.")
    graph = token_graph(config, levels)
    check_budget(config, graph, mac_budget)
    solve = _program if solver == "milp" else _brute_force
    found = solve(config, graph, mac_budget, _weights(config, weights), max_effectiveness)
    if found is None:
        full = float(effectiveness(config, SubnetConfig.full(config.space))[0])
        raise ValueError(
            f"max_effectiveness={max_effectiveness} cannot be reached with {mac_budget:,} MACs: fan-ins would have to "
            f"be larger. The full network has {full:.3f}; pass more, a larger budget, or None."
        )
    return found


def _weights(config: SupernetConfig, weights: Sequence[float] | None) -> list[float]:
    groups = len(config.space.groups)
    weights = [1.0] * (groups - 1) + [LAST_WEIGHT] if weights is None else [*weights]
    if len(weights) != groups or not all(math.isfinite(w) and w >= 0 for w in weights):
        raise ValueError(f"weights={weights} must be {groups} numbers of at least 0, one for each group.")
    return weights


def _log_fan_ins(config: SupernetConfig, plan: GroupPlan) -> Floats:
    """(B, blocks) sum of the logarithms of the fan-ins of a block's linear layers."""
    inner = plan.num_heads * config.head_dim
    logs: Floats = np.log(plan.reads) + np.log(inner) + (1 + config.glu) * np.log(plan.widths) + np.log(plan.hidden)
    return logs


def _layers(config: SupernetConfig) -> int:
    """Linear layers of a block."""
    return 4 + config.glu


def _size_logs(config: SupernetConfig) -> Floats:
    """(sizes,) the same for a block of each size."""
    dims, ratios = (np.array(values) for values in zip(*size_list(config), strict=True))
    inner = np.array([config.space.heads(width) for width in dims.tolist()]) * config.head_dim
    logs: Floats = (2 + config.glu) * np.log(dims) + np.log(inner) + np.log(hidden_dims(dims, ratios))
    return logs


# ---- solvers --------------------------------------------------------------------------------------------------------


def _program(
    config: SupernetConfig, graph: Graph, budget: float, weights: list[float], most: float | None
) -> SubnetConfig | None:
    """The best path, by HiGHS; None if the effectiveness cannot be reached."""
    gains, before = _size_logs(config), plan_before_decisions(config)
    given = 0.0 if before is None else float(_log_fan_ins(config, before).sum())
    program, depth = PathProgram(config, graph), list[Terms]()
    for number, (arcs, (_, sized)) in enumerate(zip(graph, program.picked, strict=True)):
        group = config.space.first_decided + number
        depth.append((sized, gains))
        if most is not None:
            layers = _layers(config) * sum(config.space.groups[: group + 1])
            program.row(layers * math.log(layers / most) - given, np.inf, *depth)
        _add_entropy(program, config, arcs, sized, depth, given, weights[group])
    return program.within(budget, PRECISION)


def _add_entropy(
    program: IntegerProgram,
    config: SupernetConfig,
    arcs: list[Arc],
    sized: Ints,
    depth: list[Terms],
    given: float,
    weight: float,
) -> None:
    """Adds weight * log(volume) * depth to the gain: the depth is spread over one column for each volume, and only the
    column of the volume that the group has may be above 0."""
    widths = np.array([width for width, _ in size_list(config)])
    after = np.array([arc.after for arc in arcs])
    volumes = list(product(np.unique(after), np.unique(widths)))
    shares = program.columns(len(volumes), integral=False, gain=[weight * math.log(n * width) for n, width in volumes])
    program.row(given, given, (shares, 1), *((columns, -gains) for columns, gains in depth))
    least, most = (given + sum(at.shape[1] * float(end(gains)) for at, gains in depth) for end in (np.min, np.max))
    for share, (n, width) in zip(shares, volumes, strict=True):
        has_it = sized[after == n][:, -1][:, widths == width]
        program.row(-np.inf, 0, (share[None], 1), (has_it, -most))
        program.row(0, np.inf, (share[None], 1), (has_it, -least))


def _brute_force(
    config: SupernetConfig, graph: Graph, budget: float, weights: list[float], most: float | None
) -> SubnetConfig | None:
    """The best of all subnets of the graph.

    Raises:
        ValueError: If there are too many.
    """
    blocks = [config.space.groups[config.space.first_decided + g] for g in range(len(graph))]
    sizes, begun = len(size_list(config)), time.perf_counter()
    total = count_paths(graph) * sizes ** sum(blocks)
    best, found = -np.inf, None
    for arcs in all_paths(graph):
        for begin in range(0, sizes ** sum(blocks), CHUNK):
            numbers = np.arange(begin, min(begin + CHUNK, sizes ** sum(blocks)))
            digits = np.stack([numbers // sizes**k % sizes for k in range(sum(blocks))], axis=1)
            parts = np.split(digits, np.cumsum(blocks)[:-1], axis=1)
            subnets = subnets_of(config, [(arc.rates, part) for arc, part in zip(arcs, parts, strict=True)])
            good = macs_of(config, subnets) <= budget
            if most is not None:
                good &= effectiveness(config, subnets) <= most
            value = np.where(good, entropy(config, subnets, weights), -np.inf)
            if value.max() > best:
                best, found = float(value.max()), subnets[int(value.argmax())]
            if total > MOST_SUBNETS:
                hours = (time.perf_counter() - begun) / len(numbers) * total / 3600
                raise ValueError(
                    f"solver='brute_force' would try {total:,} subnets, which takes about {hours:,.1f} hours here; it "
                    f"tries at most {MOST_SUBNETS:,}. Take solver='milp', fewer levels, or a smaller space."
                )
    return found
