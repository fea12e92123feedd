"""Sizes of the blocks of a static network: of a subnet, or of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from .arrays import Ints
from .config import SupernetConfig
from .macs import group_macs, head_macs, stem_macs
from .plan import GroupPlan, check_counted, plan_subnet
from .subnet import SubnetConfig, check_subnet


@dataclass(frozen=True)
class BlockSizes:
    """Sizes of one block.

    Attributes:
        reads: Channels read.
        embed_dim: Its own width.
        hidden_dim: Hidden width of the MLP.
        gives: Channels handed on.
        num_heads: Heads.
        qk_dim: Channels of a head's queries and keys.
        v_dim: Channels of a head's values.
        tokens: Tokens that come in, class token and registers included.
        counts: Tokens left after every stage of the token mode; None if it does not run here.
        lln: Whether a linear map carries the residual on.
    """

    reads: int
    embed_dim: int
    hidden_dim: int
    gives: int
    num_heads: int
    qk_dim: int
    v_dim: int
    tokens: int
    counts: tuple[int, ...] | None
    lln: bool

    @property
    def left(self) -> int:
        """Tokens that the MLP runs on."""
        return self.tokens if self.counts is None else self.counts[-1]

    @property
    def qkv_dim(self) -> int:
        """Channels of all queries, keys and values."""
        return self.num_heads * (2 * self.qk_dim + self.v_dim)

    @property
    def plan(self) -> GroupPlan:
        """What the block computes, as a group of its own."""

        def one(value: int) -> Ints:
            return np.array([[value]])

        return GroupPlan(
            group=0,
            reads=one(self.reads),
            widths=one(self.embed_dim),
            num_heads=one(self.num_heads),
            hidden=one(self.hidden_dim),
            gives=one(self.gives),
            num_tokens=np.array([self.tokens]),
            counts=None if self.counts is None else np.array([self.counts]),
            reduces=np.array([self.counts is not None]),
            carries=self.lln,
            queries=one(self.num_heads * self.qk_dim),
            values=one(self.num_heads * self.v_dim),
        )


def block_sizes(config: SupernetConfig, subnet: SubnetConfig) -> list[BlockSizes]:
    """Sizes of all blocks of one subnet, which must be in `config.space`.

    Raises:
        ValueError: If it reduces tokens by thresholds, so that its sizes follow from the image.
    """
    return [sizes for plan in plan_subnet(config, subnet) for sizes in group_sizes(config, plan)]


def group_sizes(config: SupernetConfig, plan: GroupPlan) -> list[BlockSizes]:
    """Sizes of the blocks of one group, for the first image of its plan.

    Raises:
        ValueError: As `block_sizes`.
    """
    check_counted(config, plan)
    blocks = plan.widths.shape[1]
    return [
        BlockSizes(
            reads=int(plan.reads[0, i]),
            embed_dim=int(plan.widths[0, i]),
            hidden_dim=int(plan.hidden[0, i]),
            gives=int(plan.gives[0, i]),
            num_heads=int(plan.num_heads[0, i]),
            qk_dim=config.head_dim,
            v_dim=config.head_dim,
            tokens=int(plan.attended[0, i]),
            counts=None if plan.counts is None or i else tuple(int(n) for n in plan.counts[0]),
            lln=plan.carries and i == blocks - 1,
        )
        for i in range(blocks)
    ]


def sizes_from(data: list[dict[str, Any]], head_dim: int) -> list[BlockSizes]:
    """Sizes of blocks from plain data; `head_dim` is for files of version 0.1, which did not say it.

    Raises:
        TypeError: If a key is missing or unknown.
        ValueError: If a size is no whole number of at least 1.
    """
    heads = {"qk_dim": head_dim, "v_dim": head_dim}
    counts = [None if sizes["counts"] is None else tuple(sizes["counts"]) for sizes in data]
    return [BlockSizes(**{**heads, **sizes, "counts": left}) for sizes, left in zip(data, counts, strict=True)]


def check_sizes(config: SupernetConfig, sizes: Sequence[BlockSizes]) -> None:
    """Checks that blocks follow on each other.

    Raises:
        ValueError: If there are none, a size is below 1, or a block is for another number of tokens than come to it.
    """
    tokens = config.num_tokens
    if not sizes:
        raise ValueError("A static network needs at least one block.")
    for number, block in enumerate(sizes):
        numbers = [v for v in asdict(block).values() if isinstance(v, int) and not isinstance(v, bool)]
        if min(numbers) < 1 or block.tokens != tokens or not 0 < block.left <= tokens:
            raise ValueError(f"Block {number} cannot follow on {tokens} tokens with sizes of at least 1: {block}.")
        tokens = block.left


def sizes_of_one(config: SupernetConfig, subnet: SubnetConfig) -> list[BlockSizes]:
    """`block_sizes` of exactly one subnet.

    Raises:
        ValueError: If it is not exactly one, is not in the search space, or reduces tokens by thresholds.
        TypeError: If it is no SubnetConfig.
    """
    check_subnet(subnet, config.space)
    if len(subnet) != 1:
        raise ValueError(f"A static network is one subnet, not {len(subnet)}; index the batch first: subnet[0].")
    return block_sizes(config, subnet)


def sizes_macs(config: SupernetConfig, sizes: Sequence[BlockSizes]) -> int:
    """Multiply-accumulates of a network of such blocks for one image.

    Args:
        config: What is around the blocks.
        sizes: Of all blocks.
    """
    last = sizes[-1]
    blocks = sum(int(group_macs(config, block.plan)[0]) for block in sizes)
    return stem_macs(config) + blocks + int(head_macs(config, np.array([last.gives]), np.array([last.left]))[0])
