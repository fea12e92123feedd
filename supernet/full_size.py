"""Groups at full size, as which the network is finished after every decision: what they compute and cost is looked up.

There it depends on the number of tokens alone, but where tokens leave even at full size, and under the authors' rules,
by which a group's first block reads what it is handed; there it is derived as for any other choice.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np
from torch import Tensor

from .arrays import Ints
from .config import SupernetConfig
from .macs import group_macs, remaining_macs
from .plan import GroupPlan, plan_group
from .subnet import GroupChoice
from .tokens.modes import TokenMode


def full_plan(
    config: SupernetConfig, group: int, num_tokens: Ints, token_dim: Ints, next_dim: Ints | None = None
) -> tuple[GroupPlan, Ints]:
    """What a group computes at full size, and (B,) its multiply-accumulates.

    Args:
        config: The supernet.
        group: Index of the group.
        num_tokens: (B,) tokens before it, class token included.
        token_dim: (B,) channels that it is handed.
        next_dim: As for `plan_group`.
    """
    table = _tables(config, config.token_mode)[0][group]
    if table is None:
        choice = GroupChoice.full(config.space, group, len(num_tokens))
        plan = plan_group(config, group, choice, num_tokens, token_dim, next_dim)
        return plan, group_macs(config, plan)
    return replace(_sizes(config, config.token_mode, group, len(num_tokens)), num_tokens=num_tokens), table[num_tokens]


def full_macs_to_go(config: SupernetConfig, group: int, num_tokens: Ints, token_dim: Ints) -> Ints:
    """(B,) multiply-accumulates of everything from `group` to the logits; the arguments are those of `full_plan`."""
    table = _tables(config, config.token_mode)[1][group]
    if table is None:
        return remaining_macs(config, group, num_tokens, token_dim=token_dim)
    return table[num_tokens]


def costs_are_known(config: SupernetConfig) -> bool:
    """Whether what groups cost at full size depends on the number of tokens alone."""
    return _polynomials(config, config.token_mode) is not None


def full_macs_of(config: SupernetConfig, group: int, num_tokens: Tensor, to_the_end: bool = False) -> Tensor:
    """(B,) multiply-accumulates of a group at full size, or of everything from it to the logits, in four operations.

    Attention costs the square of the tokens, everything else as many times them.

    Args:
        config: The supernet, whose `costs_are_known`.
        group: Index of the group.
        num_tokens: (B,) int64 tokens before it, class token included.
        to_the_end: Whether what follows is counted.
    """
    factors = _polynomials(config, config.token_mode)
    assert factors is not None, "costs at full size depend on more than tokens"
    squared, linear, constant = factors[to_the_end][group]
    return (num_tokens * squared + linear) * num_tokens + constant


def reduces_at_full_size(config: SupernetConfig) -> bool:
    """Whether tokens leave, or change places, even at full size."""
    return _reduces(config, config.token_mode)


@lru_cache(maxsize=16)
def _polynomials(config: SupernetConfig, mode: TokenMode) -> tuple[list[list[int]], list[list[int]]] | None:
    """`_tables` as factors of the square of the number of tokens, of the number, and what is added."""
    if _tables(config, mode)[0][0] is None:
        return None
    tokens, groups = config.num_prefix_tokens + np.arange(1, 4), range(len(config.space.groups))
    # The inverse has halves.
    doubled_inverse = np.round(np.linalg.inv(np.vander(tokens)) * 2).astype(np.int64)

    def factors(macs: Ints) -> list[int]:
        doubled = doubled_inverse @ macs
        assert not (doubled % 2).any(), doubled
        return (doubled // 2).tolist()

    plans = [plan_group(config, g, GroupChoice.full(config.space, g, 3), tokens) for g in groups]
    return [factors(group_macs(config, p)) for p in plans], [factors(remaining_macs(config, g, tokens)) for g in groups]


Table = Ints | None
"""By number of tokens; None where it does not depend on that alone."""


@lru_cache(maxsize=16)
def _tables(config: SupernetConfig, mode: TokenMode) -> tuple[list[Table], list[Table]]:
    """Multiply-accumulates of every group, and of everything from it to the logits. A name may get another mode."""
    plans = _plans(config)
    if config.prance_embed_dim is not None or _reduces(config, mode):
        nothing: list[Table] = [None] * len(plans)
        return nothing, nothing
    # No image has no token at all; a row for it spares a subtraction at every look.
    before = np.zeros(config.num_prefix_tokens, dtype=np.int64)
    return (
        [np.concatenate([before, group_macs(config, plan)]) for plan in plans],
        [np.concatenate([before, remaining_macs(config, plan.group, plan.num_tokens)]) for plan in plans],
    )


@lru_cache(maxsize=16)
def _reduces(config: SupernetConfig, mode: TokenMode) -> bool:
    return any(plan.counts is not None for plan in _plans(config))


def _plans(config: SupernetConfig) -> list[GroupPlan]:
    """Of every group at full size, for every number of tokens that an image can have."""
    space, tokens = config.space, np.arange(config.num_prefix_tokens, config.num_tokens + 1)
    choices = (GroupChoice.full(space, group, len(tokens)) for group in range(len(space.groups)))
    return [plan_group(config, group, choice, tokens) for group, choice in enumerate(choices)]


@lru_cache(maxsize=64)
def _sizes(config: SupernetConfig, mode: TokenMode, group: int, batch: int) -> GroupPlan:
    """The plan of a group at full size for so many images, whatever tokens they have."""
    tokens = np.full(batch, config.num_tokens, dtype=np.int64)
    return plan_group(config, group, GroupChoice.full(config.space, group, batch), tokens)
