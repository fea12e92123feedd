"""Exact multiply-accumulates and parameters of subnets, by formula.

Counted are the convolutions, linear layers, both attention products, the similarities of merging modes and the sums of
soft ones, as PyTorch's flop counter does (which counts each twice). Not counted, as there: norms, biases, softmax,
activations, sums. Papers call this number FLOPs.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from .arrays import Ints, namespace
from .config import SupernetConfig
from .plan import GroupPlan, check_counted, hidden_dims, plan_subnet
from .stems import OWN_STEMS, make_stem
from .subnet import SubnetConfig
from .tokens.modes import TokenMode


def stem_shapes(config: SupernetConfig) -> list[tuple[int, int, int, int]]:
    """(in_chans, out_chans, kernel, output side) of every convolution of a patch embedding of this package."""
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
    if config.stem not in OWN_STEMS:
        return _foreign_stem(config, config.stands_for)[0]
    return sum(i * o * k * k * side * side for i, o, k, side in stem_shapes(config))


@lru_cache
def _foreign_stem(config: SupernetConfig, stands_for: Any) -> tuple[int, int]:
    """MACs, as PyTorch counts them, and parameters of a patch embedding that is no formula's."""
    with torch.device("meta"):
        stem, image = make_stem(config).eval(), torch.empty(1, config.in_chans, config.img_size, config.img_size)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        stem(image)
    return counter.get_total_flops() // 2, sum(p.numel() for p in stem.parameters())


def group_macs(config: SupernetConfig, plan: GroupPlan) -> Ints:
    """(B,) MACs of one group of blocks.

    Args:
        config: The supernet.
        plan: What the group computes.

    Raises:
        ValueError: If thresholds decide how many tokens remain, and the group has not run.
    """
    check_counted(config, plan)
    left, attended, arrays = plan.num_left, plan.attended, namespace(plan.num_tokens)
    inner = plan.num_heads * config.head_dim
    queries = inner if plan.queries is None else plan.queries
    values = inner if plan.values is None else plan.values
    if values is queries:  # the same in fewer operations, each of which a GPU launches
        attention = attended * queries * (3 * plan.reads + plan.widths + 2 * attended)
    else:
        attention = queries * (2 * plan.reads + attended) + values * (plan.reads + plan.widths + attended)
        attention = attended * attention
    inputs = 2 * plan.widths if config.glu else plan.widths
    macs: Ints = (attention + left[:, None] * plan.hidden * (inputs + plan.gives)).sum(1)
    if plan.carries:
        macs = macs + left * plan.widths[:, -1] * plan.gives[:, -1]
    if plan.counts is not None:
        macs = macs + arrays.where(plan.reduces, _reduction_macs(config, plan, queries[:, 0]), 0)
    return macs


def _reduction_macs(config: SupernetConfig, plan: GroupPlan, queries: Ints) -> Ints:
    """(B,) MACs of the token mode; `queries` are the channels (B,) of those of the group's first block."""
    assert plan.counts is not None
    mode, prefix = config.token_mode, config.num_prefix_tokens
    dims = plan.widths[:, 0] if mode.metric == "tokens" else queries // plan.num_heads[:, 0]
    macs = mode.macs(plan.num_tokens, plan.counts, dims, prefix)
    if mode.uses_scores:
        macs = macs + plan.num_tokens * queries
    if mode.soft:
        macs = macs + (plan.num_tokens - prefix) * (plan.num_left - prefix) * plan.widths[:, 0]
    return macs


def head_macs(config: SupernetConfig, token_dim: Ints, num_tokens: Ints) -> Ints:
    """MACs of pooling and classifier.

    Args:
        config: The supernet.
        token_dim: (B,) width of the tokens after the last block.
        num_tokens: (B,) how many they are, class token and registers included.
    """
    if config.global_pool != "map":
        return _classifier_macs(config, token_dim)
    d, hidden, patches = config.embed_dim, _pool_hidden(config), num_tokens - config.num_prefix_tokens
    return patches * 2 * d * (token_dim + 1) + d * (d + 2 * hidden) + _classifier_macs(config, np.array(d))


def _classifier_macs(config: SupernetConfig, features: Ints) -> Ints:
    """MACs of the classifier on so many features."""
    if config.text_dim is None or not config.num_classes:
        return features * config.num_classes * (1 + config.distilled)
    return (features + config.num_classes) * config.text_dim


def _pool_hidden(config: SupernetConfig) -> int:
    """Hidden units of the MLP behind attention pooling."""
    return int(hidden_dims(np.array(config.embed_dim), np.array(config.space.mlp_ratios[-1])))


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
    plans = plan_subnet(config, subnet, group, num_tokens, token_dim)
    last = num_tokens * 0 + config.embed_dim if subnet is None else subnet.embed_dim[:, -1].numpy()
    total = head_macs(config, last, plans[-1].num_left if plans else num_tokens)
    for plan in plans:
        total = total + group_macs(config, plan)
    return total


def subnet_params(config: SupernetConfig, subnet: SubnetConfig) -> Ints:
    """(B,) parameters of the extracted static networks; without batch norm's statistics."""
    affine = 2 if config.norm == "layer" else 1
    d, head_dim = config.embed_dim, config.head_dim
    embeddings = d * (config.num_tokens + config.num_prefix_tokens + affine * (config.pre_norm + config.patch_norm))
    params = np.full(len(subnet), _stem_params(config) + embeddings, dtype=np.int64)
    for plan in plan_subnet(config, subnet):
        w, hidden, gives, inner = plan.widths, plan.hidden, plan.gives, plan.num_heads * config.head_dim
        params += (2 * affine * w + 3 * inner * (w + 1) + w * (inner + 1)).sum(1)
        params += ((1 + config.glu) * hidden * (w + 1) + gives * (hidden + 1)).sum(1)
        params += affine * (config.qk_norm * 2 * head_dim + config.scale_norm * (inner + hidden)).sum(1)
        if plan.counts is not None and config.token_mode.module is not None:
            learned = [_module_params(config.token_mode, config, int(width)) for width in w[:, 0]]
            params += np.where(plan.reduces, learned, 0)
        if plan.carries:
            params += gives[:, -1] * (w[:, -1] + 1)
    last: Ints = subnet.embed_dim[:, -1].numpy()
    params += affine * config.final_norm * last
    features = last
    if config.global_pool == "map":
        units = _pool_hidden(config)
        params += 2 * d * (last + 1) + d * (d + 3 + affine) + units * (d + 1) + d * units
        features = np.full_like(last, d)
    return params + _classifier_params(config, features)


def _classifier_params(config: SupernetConfig, features: Ints) -> Ints:
    """(B,) parameters of the classifier of static networks with so many features."""
    if config.text_dim is None or not config.num_classes:
        return (1 + config.distilled) * config.num_classes * (features + 1)
    return config.text_dim * (features + 1 + config.num_classes) + 1


def _stem_params(config: SupernetConfig) -> int:
    if config.stem not in OWN_STEMS:
        return _foreign_stem(config, config.stands_for)[1]
    shapes = stem_shapes(config)
    biases = config.embed_dim if config.stem == "patch" else 2 * sum(o for _, o, _, _ in shapes)
    return sum(i * o * k * k for i, o, k, _ in shapes) + biases


@lru_cache
def _module_params(mode: TokenMode, config: SupernetConfig, width: int) -> int:
    """Parameters of a mode's module in a static network, where its block has that width."""
    assert mode.module is not None
    with torch.device("meta"):
        module = mode.module(config, width)
    return sum(p.numel() for p in module.parameters())
