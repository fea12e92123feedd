"""Subnets as paths through a layered graph: nodes are token counts, an arc is a way of a group from one to another.

MACs are sums over arcs and over the blocks on them: the counter's (`supernet.macs`), not derived again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch

from .arrays import Floats, Ints
from .config import SupernetConfig
from .macs import group_macs, head_macs, remaining_macs, stem_macs
from .plan import GroupPlan, plan_group
from .subnet import GroupChoice, SubnetConfig


@dataclass(frozen=True)
class Arc:
    """A way of a group from one token count to another.

    Attributes:
        before: Tokens before the group, class token included.
        after: Tokens after it.
        rates: Keep rates.
        base: MACs of the group, and of the classifier behind the last, if all its blocks have the first of the sizes.
        more: (blocks, sizes) by how much the MACs grow where a block has another size.
    """

    before: int
    after: int
    rates: tuple[float, ...]
    base: int
    more: Ints


Graph = list[list[Arc]]


Path = list[tuple[tuple[float, ...], Ints]]
"""Of every decided group its keep rates and (..., blocks) numbers of sizes."""


def size_list(config: SupernetConfig) -> list[tuple[int, float]]:
    """Widths and MLP ratios that a block can have."""
    return list(product(config.space.embed_dims, config.space.mlp_ratios))


def size_choice(sizes: Ints, rates: Floats, config: SupernetConfig) -> GroupChoice:
    """Sizes by number (B, blocks), and keep rates (B, num_rates)."""
    dims, ratios = (np.array(values) for values in zip(*size_list(config), strict=True))
    keep = rates[:, 0] if config.space.num_rates == 1 else rates
    return GroupChoice(*(torch.from_numpy(np.ascontiguousarray(a)) for a in (dims[sizes], ratios[sizes], keep)))


def full_macs(config: SupernetConfig) -> int:
    """MACs of the full network."""
    return int(macs_of(config, SubnetConfig.full(config.space))[0])


def check_sums(config: SupernetConfig) -> None:
    """Checks that MACs are sums over the groups of a path.

    Raises:
        ValueError: If the supernet follows the authors' rules, by which the MACs of a group depend on the next one.
    """
    if config.prance_embed_dim is not None:
        raise ValueError(
            "Choosing a subnet for a budget adds up the MACs of groups, which by the authors' rules (prance_embed_dim) "
            "depend on the next group; it takes supernets by our rules."
        )


def token_graph(config: SupernetConfig, levels: int) -> Graph:
    """The arcs of every decided group, from all token counts that can come before it."""
    counts, graph = {config.num_tokens}, []
    for group in range(config.space.first_decided, len(config.space.groups)):
        graph.append([arc for n in sorted(counts) for arc in _arcs(config, group, n, levels)])
        counts = {arc.after for arc in graph[-1]}
    return graph


def _arcs(config: SupernetConfig, group: int, before: int, levels: int) -> list[Arc]:
    """All ways of a group from a token count, of those to the same count the cheapest."""
    rates = np.array(_rates(config, before - config.num_prefix_tokens, levels))
    blocks, sizes = config.space.groups[group], len(size_list(config))
    # MACs of a group are a sum over its blocks: one size at a time is changed.
    tried = np.zeros((1 + blocks * sizes, blocks), dtype=np.int64)
    tried[1 + np.arange(blocks * sizes), np.repeat(np.arange(blocks), sizes)] = np.tile(np.arange(sizes), blocks)
    choice = size_choice(np.tile(tried, (len(rates), 1)), np.repeat(rates, len(tried), axis=0), config)
    plan = plan_group(config, group, choice, np.full(len(rates) * len(tried), before))
    macs = group_macs(config, plan)
    if group == len(config.space.groups) - 1:
        macs = macs + head_macs(config, plan.widths[:, -1], plan.num_left)
    macs = macs.reshape(len(rates), len(tried))
    left = plan.num_left.reshape(len(rates), len(tried))[:, 0]
    arcs: dict[int, Arc] = {}
    for rate, row, after in zip(rates.tolist(), macs, left.tolist(), strict=True):
        if after not in arcs or row[0] < arcs[after].base:
            arcs[after] = Arc(before, after, tuple(rate), int(row[0]), (row[1:] - row[0]).reshape(blocks, sizes))
    return list(arcs.values())


def _rates(config: SupernetConfig, patches: int, levels: int) -> list[tuple[float, ...]]:
    """Keep rates, one for each stage of the token mode, that lead from a number of patches to those of the levels."""
    wanted = np.maximum(np.round(np.arange(1, levels + 1) / levels * config.num_patches), 1).astype(int).tolist()
    ways: list[tuple[int, tuple[float, ...]]] = [(patches, ())]
    for _ in range(config.space.num_rates):
        ways = [
            (to, (*rates, to / left))
            for left, rates in ways
            for to in sorted({left, *(n for n in wanted if n < left)})
            if to / left >= config.space.min_keep_rate
        ]
    return [rates for _, rates in ways]


def plan_before_decisions(config: SupernetConfig) -> GroupPlan | None:
    """The plan of the group that is not decided, if there is one."""
    if config.space.first_decided == 0:
        return None
    return plan_group(config, 0, GroupChoice.full(config.space, 0, 1), np.array([config.num_tokens]))


def fixed_macs(config: SupernetConfig) -> int:
    """MACs before the first decision."""
    plan = plan_before_decisions(config)
    return stem_macs(config) + (0 if plan is None else int(group_macs(config, plan)[0]))


def least_macs(config: SupernetConfig, graph: Graph) -> int:
    """MACs of the cheapest path."""
    least = {config.num_tokens: fixed_macs(config)}
    for arcs in graph:
        after: dict[int, int] = {}
        for arc in arcs:
            macs = least[arc.before] + arc.base + int(arc.more.min(axis=1).sum())
            after[arc.after] = min(macs, after.get(arc.after, macs))
        least = after
    return min(least.values())


def check_budget(config: SupernetConfig, graph: Graph, mac_budget: float) -> None:
    """Checks that a budget can be kept to.

    Raises:
        ValueError: If no subnet of the graph is within it.
    """
    least = least_macs(config, graph)
    if least > mac_budget:
        raise ValueError(
            f"mac_budget={mac_budget:,} is not enough: the smallest subnet takes {least:,} MACs an image, the full "
            f"network {full_macs(config):,}. Pass a number of MACs, such as half of the latter."
        )


def count_paths(graph: Graph) -> int:
    """How many ways lead through the graph."""
    ways = {arc.before: 1 for arc in graph[0]}
    for arcs in graph:
        after: dict[int, int] = {}
        for arc in arcs:
            after[arc.after] = after.get(arc.after, 0) + ways[arc.before]
        ways = after
    return sum(ways.values())


def all_paths(graph: Graph, before: int | None = None) -> Iterator[list[Arc]]:
    """All ways through the graph, from tokens `before` if given."""
    if not graph:
        yield []
        return
    for arc in graph[0]:
        if before is None or arc.before == before:
            yield from ([arc, *rest] for rest in all_paths(graph[1:], arc.after))


def macs_of(config: SupernetConfig, subnets: SubnetConfig) -> Ints:
    """(B,) MACs of subnets, patch embedding and classifier included."""
    tokens = np.full(len(subnets), config.num_tokens, dtype=np.int64)
    macs: Ints = stem_macs(config) + remaining_macs(config, 0, tokens, subnets)
    return macs


def subnets_of(config: SupernetConfig, path: Path) -> SubnetConfig:
    """The subnets of a path; groups that are not decided are full."""
    count = np.atleast_2d(path[0][1]).shape[0]
    choices = [size_choice(np.atleast_2d(sizes), np.tile(rates, (count, 1)), config) for rates, sizes in path]
    full = SubnetConfig.full(config.space, count)
    begin = config.space.blocks(config.space.first_decided).start
    return SubnetConfig(
        torch.cat([full.embed_dim[:, :begin], *(choice.embed_dim for choice in choices)], dim=1),
        torch.cat([full.mlp_ratio[:, :begin], *(choice.mlp_ratio for choice in choices)], dim=1),
        torch.stack([choice.keep_rate for choice in choices], dim=1),
    )
