"""Exact multiply-accumulates and parameters of subnets, by formula.

Counted are the convolutions, linear layers, both attention products, the similarities of merging modes and the sums of
soft ones, as PyTorch's flop counter does (which counts each twice). Not counted, as there: norms, biases, softmax,
activations, sums. Papers call this number FLOPs.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch

from .arrays import Ints, namespace
from .config import SupernetConfig
from .plan import GroupPlan, check_counted, plan_subnet
from .subnet import SubnetConfig
from .tokens.modes import TokenMode


def stem_shapes(config: SupernetConfig) -> list[tuple[int, int, int, int]]:
    """(in_chans, out_chans, kernel, output side) of every convolution of the patch embedding."""
    side = config.img_size // config.patch_size
    d = config.embed_dim
    if config.stem == "patch":
        return [(config.in_chans, d, config.patch_size, side)]
    half, quarter = config.img_size // 2, config.img_size // 4
    return [
        (config.in_chans, d // 4, 3, half),
        (d // 4, d // 2, 3, quarter),
        (d // 2, d, max(config.patch_size // 4, 3), side),
    ]


def stem_macs(config: SupernetConfig) -> int:
    """MACs of the patch embedding of one image; always computed at full width."""
    return sum(i * o * k * k * side * side for i, o, k, side in stem_shapes(config))


def group_macs(config: SupernetConfig, plan: GroupPlan) -> Ints:
    """(B,) MACs of one group of blocks.

    Args:
        config: The supernet.
        plan: What the group computes.

    Raises:
        ValueError: If thresholds decide how many tokens remain, and the group has not run.
    """
    check_counted(config, plan)
    inner, left, arrays = plan.num_heads * config.head_dim, plan.num_left, namespace(plan.num_tokens)
    macs = arrays.zeros_like(left)
    if plan.counts is not None:
        mode, prefix = config.token_mode, config.num_prefix_tokens
        dims = plan.widths[:, 0] if mode.metric == "tokens" else arrays.full_like(left, config.head_dim)
        macs = mode.macs(plan.num_tokens, plan.counts, dims, prefix)
        if mode.uses_scores:
            macs = macs + plan.num_tokens * inner[:, 0]
        if mode.soft:
            macs = macs + (plan.num_tokens - prefix) * (left - prefix) * plan.widths[:, 0]
        macs = arrays.where(plan.reduces, macs, 0)
    attended = plan.attended
    macs = macs + (attended * inner * (3 * plan.reads + plan.widths + 2 * attended)).sum(1)
    macs = macs + left * (plan.hidden * (plan.widths + plan.gives)).sum(1)
    if plan.carries:
        macs = macs + left * plan.widths[:, -1] * plan.gives[:, -1]
    return macs


def head_macs(config: SupernetConfig, token_dim: Ints) -> Ints:
    """MACs of the classifier on pooled tokens of width `token_dim` (B,)."""
    return token_dim * config.num_classes


def remaining_macs(
    config: SupernetConfig,
    group: int,
    num_tokens: Ints,
    subnet: SubnetConfig | None = None,
    token_dim: Ints | None = None,
) -> Ints:
    """MACs of everything from `group` to the logits.

    Args:
        config: The supernet.
        group: The next group to run.
        num_tokens: (B,) tokens before it, class token included.
        subnet: Sizes of the groups to come; None is full size.
        token_dim: (B,) channels that the group is handed; None: the width of its first block.

    Returns:
        (B,) MACs.

    Raises:
        ValueError: If the subnet reduces tokens by thresholds.
    """
    last = num_tokens * 0 + config.embed_dim if subnet is None else subnet.embed_dim[:, -1].numpy()
    total = head_macs(config, last)
    for plan in plan_subnet(config, subnet, group, num_tokens, token_dim):
        total = total + group_macs(config, plan)
    return total


def subnet_params(config: SupernetConfig, subnet: SubnetConfig) -> Ints:
    """(B,) parameters of the extracted static networks; without batch norm's statistics."""
    d = config.embed_dim
    convs = sum(i * o * k * k for i, o, k, _ in stem_shapes(config))
    affine = d if config.stem == "patch" else 2 * sum(o for _, o, _, _ in stem_shapes(config))
    embeddings = d * (config.num_tokens + config.num_prefix_tokens) + (2 * d if config.pre_norm else 0)
    params = np.full(len(subnet), convs + affine + embeddings, dtype=np.int64)
    for plan in plan_subnet(config, subnet):
        w, hidden, gives, inner = plan.widths, plan.hidden, plan.gives, plan.num_heads * config.head_dim
        params += (4 * w + 3 * inner * (w + 1) + w * (inner + 1) + hidden * (w + 1) + gives * (hidden + 1)).sum(1)
        if plan.counts is not None and config.token_mode.module is not None:
            learned = [_module_params(config.token_mode, config, int(width)) for width in w[:, 0]]
            params += np.where(plan.reduces, learned, 0)
        if plan.carries:
            params += gives[:, -1] * (w[:, -1] + 1)
    last: Ints = subnet.embed_dim[:, -1].numpy()
    return params + 2 * last + (config.num_classes * (last + 1) if config.num_classes else 0)


@lru_cache
def _module_params(mode: TokenMode, config: SupernetConfig, width: int) -> int:
    """Parameters of a mode's module in a static network, where its block has that width."""
    assert mode.module is not None
    with torch.device("meta"):
        module = mode.module(config, width)
    return sum(p.numel() for p in module.parameters())
