"""Exact multiply-accumulates and parameters of subnets, by formula.

Counted are the convolutions, linear layers and both attention products, as PyTorch's flop counter does (which counts
each twice). Not counted, as there: norms, biases, softmax, activations. Papers call this number FLOPs.
"""

from __future__ import annotations

import numpy as np

from .config import SupernetConfig
from .ragged import Ints
from .reduction import kept_tokens
from .subnet import GroupChoice, SubnetConfig


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


def hidden_dims(embed_dim: Ints, mlp_ratio: Ints) -> Ints:
    """Hidden width of an MLP: int(embed_dim * mlp_ratio)."""
    return (embed_dim * mlp_ratio).astype(np.int64)


def group_macs(config: SupernetConfig, group: int, choice: GroupChoice, num_tokens: Ints) -> tuple[Ints, Ints]:
    """MACs of one group of blocks.

    Args:
        config: The supernet.
        group: Index of the group.
        choice: Its sizes, for B images.
        num_tokens: (B,) tokens before the group, class token included.

    Returns:
        (B,) MACs and (B,) tokens after the group.
    """
    space = config.space
    after = kept_tokens(num_tokens, choice.keep_rate.numpy()) if group else num_tokens
    macs = np.zeros_like(num_tokens)
    for i in range(space.groups[group]):
        w = choice.embed_dim[:, i].numpy()
        inner = (
            np.array([space.heads(d) for d in space.embed_dims])[np.searchsorted(space.embed_dims, w)] * config.head_dim
        )
        hidden = hidden_dims(w, choice.mlp_ratio[:, i].numpy())
        macs += num_tokens * w * inner * 4 + 2 * num_tokens**2 * inner
        if i == 0:
            macs += np.where(after < num_tokens, num_tokens * inner, 0)
            num_tokens = after
        boundary = i == space.groups[group] - 1 and group < len(space.groups) - 1
        out = config.embed_dim if boundary else w
        macs += num_tokens * hidden * (w + out)
        if boundary and config.lln:
            macs += num_tokens * w * out
    return macs, num_tokens


def head_macs(config: SupernetConfig, embed_dim: Ints) -> Ints:
    """MACs of the classifier on a class token of width `embed_dim` (B,)."""
    return embed_dim * config.num_classes


def remaining_macs(config: SupernetConfig, group: int, num_tokens: Ints, subnet: SubnetConfig | None = None) -> Ints:
    """MACs of everything from `group` to the logits.

    Args:
        config: The supernet.
        group: The next group to run.
        num_tokens: (B,) tokens before it, class token included.
        subnet: Sizes of the groups to come; None is full size.

    Returns:
        (B,) MACs.
    """
    space, batch = config.space, len(num_tokens)
    subnet = SubnetConfig.full(space, batch) if subnet is None else subnet
    total = head_macs(config, subnet.embed_dim[:, -1].numpy())
    for g in range(group, len(space.groups)):
        spent, num_tokens = group_macs(config, g, subnet.group(space, g), num_tokens)
        total = total + spent
    return total


def subnet_params(config: SupernetConfig, embed_dim: Ints, mlp_ratio: Ints) -> Ints:
    """Parameters of the extracted static networks, (B,) for (B, depth) sizes; without batch norm's statistics."""
    space = config.space
    d = config.embed_dim
    convs = sum(i * o * k * k for i, o, k, _ in stem_shapes(config))
    affine = d if config.stem == "patch" else 2 * sum(o for _, o, _, _ in stem_shapes(config))
    params = np.full(len(embed_dim), convs + affine + d * (config.num_patches + 2), dtype=np.int64)
    heads = np.array([space.heads(c) for c in space.embed_dims])
    ends = {space.blocks(g)[-1] for g in range(len(space.groups) - 1)}
    for i in range(space.depth):
        w = embed_dim[:, i]
        inner = heads[np.searchsorted(space.embed_dims, w)] * config.head_dim
        hidden = hidden_dims(w, mlp_ratio[:, i])
        out = np.full_like(w, d) if i in ends else w
        params += 4 * w + 3 * inner * (w + 1) + w * (inner + 1) + hidden * (w + 1) + out * (hidden + 1)
        if i in ends and config.lln:
            params += out * (w + 1)
    return params + embed_dim[:, -1] * (2 + config.num_classes) + config.num_classes
