"""Exact multiply-accumulates and parameters of subnets, by formula.

Counted are the convolutions, linear layers, both attention products and the similarities of merging modes, as PyTorch's
flop counter does (which counts each twice). Not counted, as there: norms, biases, softmax, activations, sums. Papers
call this number FLOPs.
"""

from __future__ import annotations

import numpy as np

from .config import SupernetConfig
from .runtime.packing import Ints
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
    """Hidden width of an MLP: int(embed_dim * mlp_ratio), with a slack against float noise."""
    return (embed_dim * mlp_ratio + 1e-6).astype(np.int64)


def block_widths(
    config: SupernetConfig, group: int, embed_dim: Ints, token_dim: Ints | None, next_dim: Ints | None
) -> tuple[Ints, Ints]:
    """Channels that the blocks of a group read and hand on.

    Ours: a block reads its own width and hands it on, but a group's last block hands on the full width. The authors':
    a block hands on the width of the next one, full while that is not decided, and a group's first block reads what it
    was handed.

    Args:
        config: The supernet.
        group: Index of the group.
        embed_dim: (B, blocks) widths of its blocks.
        token_dim: (B,) what the group is handed; None: the width of its first block.
        next_dim: (B,) width of the next group's first block; None: not decided yet.

    Returns:
        Two (B, blocks) arrays.
    """
    reads, gives = embed_dim.copy(), embed_dim.copy()
    last = group == len(config.space.groups) - 1
    if config.prance_embed_dim is None:
        if not last:
            gives[:, -1] = config.embed_dim
        return reads, gives
    gives[:, :-1] = embed_dim[:, 1:]
    if not last:
        gives[:, -1] = config.embed_dim if next_dim is None else next_dim
    if group and token_dim is not None:
        reads[:, 0] = token_dim
    return reads, gives


def group_macs(
    config: SupernetConfig,
    group: int,
    choice: GroupChoice,
    num_tokens: Ints,
    token_dim: Ints | None = None,
    next_dim: Ints | None = None,
) -> tuple[Ints, Ints]:
    """MACs of one group of blocks.

    Args:
        config: The supernet.
        group: Index of the group.
        choice: Its sizes, for B images.
        num_tokens: (B,) tokens before the group, class token included.
        token_dim: See `block_widths`.
        next_dim: See `block_widths`.

    Returns:
        (B,) MACs and (B,) tokens after the group.
    """
    space = config.space
    widths: Ints = choice.embed_dim.numpy()
    reads, gives = block_widths(config, group, widths, token_dim, next_dim)
    hidden = hidden_dims(widths, choice.mlp_ratio.numpy())
    inner = _inner_dims(config, widths)
    macs, left = np.zeros_like(num_tokens), num_tokens
    if group >= space.first_decided:
        mode, prefix = config.token_mode, config.num_prefix_tokens
        counts = mode.counts(num_tokens, choice.rates, prefix)
        left = counts[:, -1]
        if mode.uses_scores:
            macs = np.where((left < num_tokens) | mode.always, num_tokens * inner[:, 0], 0)
        dims = widths[:, 0] if mode.metric == "tokens" else np.full_like(num_tokens, config.head_dim)
        macs = macs + mode.macs(num_tokens, counts, dims, prefix)
    # Patches leave between the two halves of the first block.
    attended = np.repeat(left[:, None], space.groups[group], axis=1)
    attended[:, 0] = num_tokens
    macs = macs + (attended * inner * (3 * reads + widths + 2 * attended)).sum(1)
    macs = macs + left * (hidden * (widths + gives)).sum(1)
    if config.lln and group < len(space.groups) - 1:
        macs = macs + left * widths[:, -1] * gives[:, -1]
    return macs, left


def _inner_dims(config: SupernetConfig, embed_dim: Ints) -> Ints:
    """Channels of all heads together, for widths of any shape."""
    space = config.space
    heads = np.array([space.heads(d) for d in space.embed_dims])
    return heads[np.searchsorted(space.embed_dims, embed_dim)] * config.head_dim


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
        token_dim: See `block_widths`.

    Returns:
        (B,) MACs.
    """
    space, batch = config.space, len(num_tokens)
    subnet = SubnetConfig.full(space, batch) if subnet is None else subnet
    total = head_macs(config, subnet.embed_dim[:, -1].numpy())
    for g in range(group, len(space.groups)):
        next_dim = next_widths(config, g, subnet)
        spent, num_tokens = group_macs(config, g, subnet.group(space, g), num_tokens, token_dim, next_dim)
        token_dim, total = next_dim, total + spent
    return total


def next_widths(config: SupernetConfig, group: int, subnet: SubnetConfig) -> Ints | None:
    """(B,) widths of the first block after `group`, None after the last."""
    if group == len(config.space.groups) - 1:
        return None
    return subnet.embed_dim[:, config.space.blocks(group + 1)[0]].numpy()


def subnet_params(config: SupernetConfig, subnet: SubnetConfig) -> Ints:
    """(B,) parameters of the extracted static networks; without batch norm's statistics."""
    space, d = config.space, config.embed_dim
    convs = sum(i * o * k * k for i, o, k, _ in stem_shapes(config))
    affine = d if config.stem == "patch" else 2 * sum(o for _, o, _, _ in stem_shapes(config))
    embeddings = d * (config.num_tokens + config.num_prefix_tokens) + (2 * d if config.pre_norm else 0)
    widths = subnet.embed_dim.numpy()
    params = np.full(len(subnet), convs + affine + embeddings, dtype=np.int64)
    for group in range(len(space.groups)):
        blocks = list(space.blocks(group))
        w = widths[:, blocks]
        _, out = block_widths(config, group, w, None, next_widths(config, group, subnet))
        inner = _inner_dims(config, w)
        hidden = hidden_dims(w, subnet.mlp_ratio.numpy()[:, blocks])
        params += (4 * w + 3 * inner * (w + 1) + w * (inner + 1) + hidden * (w + 1) + out * (hidden + 1)).sum(1)
        if config.lln and group < len(space.groups) - 1:
            params += out[:, -1] * (w[:, -1] + 1)
    last = widths[:, -1]
    return params + 2 * last + (config.num_classes * (last + 1) if config.num_classes else 0)
