"""What a static network of any sizes costs: MACs, or milliseconds by a table that `prance profile` wrote."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from prance_env.rewards.latency import LatencyTable
from supernet import SubnetConfig, SupernetConfig
from supernet.block_sizes import BlockSizes, block_sizes, sizes_macs
from supernet.macs import group_macs

SizeCost = Callable[[Sequence[BlockSizes]], float]


def macs_cost(config: SupernetConfig) -> SizeCost:
    """Multiply-accumulates of an image."""
    return lambda sizes: sizes_macs(config, sizes)


def milliseconds_cost(config: SupernetConfig, table: LatencyTable) -> SizeCost:
    """Milliseconds of an image.

    A block's are those of the table at its width, its ratio and its tokens, linear in between. For what the table does
    not have, sizes beyond its ends and heads other than the width's, they are in proportion to the block's MACs. On
    the grid, at the heads that belong to the width, they are the table's. A first group without times of its own is
    taken for the second.

    Raises:
        ValueError: If the table is about another supernet.
    """
    table.check(config)
    groups = np.repeat(np.arange(len(config.space.groups)), config.space.groups).tolist()

    def blocks_ms(sizes: Sequence[BlockSizes], numbers: Sequence[int]) -> float:
        return sum(_block_ms(config, table, groups[n], sizes[n]) for n in numbers)

    full = block_sizes(config, SubnetConfig.full(config.space))
    fixed = range(sum(config.space.groups[: table.first_group]))
    stem = max(table.prefix_ms - blocks_ms(full, fixed), 0.0)
    return lambda sizes: stem + blocks_ms(sizes, range(len(sizes))) + table.head_ms


def _block_ms(config: SupernetConfig, table: LatencyTable, group: int, block: BlockSizes) -> float:
    width = float(np.clip(block.embed_dim, table.embed_dims[0], table.embed_dims[-1]))
    ratio = float(np.clip(block.hidden_dim / block.embed_dim, table.mlp_ratios[0], table.mlp_ratios[-1]))
    times = [table.block_ms(group, width, ratio, tokens) for tokens in (block.tokens, block.left)]
    heads = np.interp(width, table.embed_dims, [config.space.heads(d) for d in table.embed_dims])
    inner, scale = round(heads * config.head_dim), width / block.embed_dim
    at_table = replace(
        block,
        reads=round(block.reads * scale),
        embed_dim=round(width),
        gives=round(block.gives * scale),
        hidden_dim=int(width * ratio + 1e-6),
        num_heads=1,
        qk_dim=inner,
        v_dim=inner,
    )
    macs, there = (int(group_macs(config, _unreduced(b).plan)[0]) for b in (block, at_table))
    return sum(times) / 2 * macs / there


def _unreduced(block: BlockSizes) -> BlockSizes:
    """Tokens left without the reduction, whose own MACs the table does not follow."""
    return replace(block, tokens=block.left, counts=None)
