"""Running one group of blocks on a packed batch in which every image has sizes of its own.

Each half of a block (attention, MLP) sorts the images so that those of equal sizes stand together, gathers the rows of
each size with just the channels it needs, computes, and writes the sum with the residual into one new buffer. Where all
images agree, nothing is gathered and nothing copied.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from ..arrays import Ints
from ..config import SupernetConfig
from ..eager import transformed
from ..layers import ElasticBlock, hidden_units, linear, normed_heads, prefix_norm, prefix_weights, set_width
from ..plain import check_blocks
from ..plan import GroupPlan
from .attention import attention, packed_class_scores
from .devices import device_costs, working_rows
from .packing import Packed, rows_of, runs, take_rows
from .reduction import places_after, reduce_tokens
from .together import cheaper_together, run_together


def run_blocks(
    config: SupernetConfig,
    blocks: nn.ModuleList,
    plan: GroupPlan,
    packed: Packed,
    patch_token: Tensor,
    with_key_mean: bool = False,
    head_only: bool = False,
) -> tuple[Packed, Tensor, Tensor | None, GroupPlan]:
    """Runs one group.

    Args:
        config: The supernet's.
        blocks: All blocks of the supernet.
        plan: What the group computes for every image.
        packed: Tokens before the group, in the order of the plan; unchanged.
        patch_token: (B, num_patches) which token holds each patch, -1 none; unchanged.
        with_key_mean: Whether to compute the mean keys of the last block.
        head_only: Whether nothing but the class tokens is needed of the last block; the others are left out where that
            is simple.

    Returns:
        Tokens in the order of the plan, `patch_token` after the group, (T,) keys of the last block, mean over heads and
        channels, or None if not asked for; and the plan, with the counts that its thresholds led to, if it has any.

    Raises:
        ValueError: If a block or a layer has hooks, or must be called for another reason.
    """
    if _few(config, plan, packed):
        return run_together(config, blocks, plan, packed, patch_token, with_key_mean, head_only)
    mode, key_mean = config.token_mode, None
    indices = config.space.blocks(plan.group)
    check_blocks(blocks, indices)
    for i, block_index in enumerate(indices):
        block, last = cast(ElasticBlock, blocks[block_index]), i == len(indices) - 1
        reducing = i == 0 and plan.counts is not None
        carries_keys = last and with_key_mean
        with_keys = carries_keys or (reducing and mode.metric == "keys")
        with_scores = reducing and mode.uses_scores
        packed, scores, keys = attention_half(config, block, packed, plan, i, with_scores, with_keys)
        at = packed.images
        means = keys.mean(1) if carries_keys and keys is not None else None
        if i == 0 and plan.counts is not None:
            packed, into, means, plan = reduce_tokens(config, block.reduce, plan, packed, scores, keys, means)
            moved = into[torch.from_numpy(np.argsort(at)).to(into.device)]
            patch_token = places_after(patch_token, moved)
        if means is not None:
            key_mean = take_rows(means, rows_of(np.argsort(at), packed.lengths)).float()
        packed = mlp_half(config, block, packed, plan, i)
    return packed.sorted_by(_order(packed.images)), patch_token, key_mean, plan


def _few(config: SupernetConfig, plan: GroupPlan, packed: Packed) -> bool:
    """Whether all images are computed in one piece: where nothing is recorded, of plain blocks, if that is cheaper."""
    device = packed.x.device.type
    records = torch.is_grad_enabled() or torch.is_autocast_enabled(device)
    return config.plain_blocks and not records and cheaper_together(plan, device)


def attention_half(
    config: SupernetConfig,
    block: ElasticBlock,
    packed: Packed,
    plan: GroupPlan,
    i: int,
    with_scores: bool,
    with_keys: bool = False,
) -> tuple[Packed, Tensor | None, Tensor | None]:
    """Residual attention.

    Args:
        config: The supernet's.
        block: The block to run.
        packed: Tokens, their images in any order.
        plan: What the block's group computes.
        i: Which block of the group it is.
        with_scores: Whether to compute the class attention.
        with_keys: Whether to compute the mean of the keys over heads.

    Returns:
        Tokens in another order; (T,) class attention and (T, head_dim) keys in that order, None if not asked for.
    """
    reads, widths = plan.reads[packed.images, i], plan.widths[packed.images, i]
    order = _order(packed.lengths, reads, widths)
    new, where = packed.listed(order)
    reads, widths = _in_order(order, reads, widths)
    num_heads = plan.num_heads[new.images, i]
    log_size = None if new.size is None else new.size.log()
    stack = _Stack(packed.x, int(widths[-1]))
    scores, keys = [], []
    channels = 3 * int(num_heads[-1]) * config.head_dim
    for images, rows, x in _segments(packed.x, where, new.lengths, (widths, reads), reads, channels):
        w, heads, lengths = int(widths[images.start]), int(num_heads[images.start]), new.lengths[images]
        qkv = linear(block.qkv, prefix_norm(block.norm1, x, config.zoom(w)), 3 * heads * config.head_dim)
        qkv = normed_heads(block, qkv, heads)
        bias = None if log_size is None else log_size[rows]
        if with_scores:
            scores.append(packed_class_scores(qkv, lengths, heads, bias, config.class_token, config.reg_tokens))
        if with_keys:
            keys.append(qkv.view(len(qkv), heads, 3, config.head_dim)[:, :, 1].mean(1))
        out = attention(qkv, lengths, heads, bias)
        out = out if block.attn_norm is None else prefix_norm(block.attn_norm, out)
        stack.add(x[:, :w], block.proj, out, w, _kept_paths(block, lengths, x))
    new = new.holding(stack.result())
    return new, _cat(scores) if with_scores else None, _cat(keys) if with_keys else None


def mlp_half(config: SupernetConfig, block: ElasticBlock, packed: Packed, plan: GroupPlan, i: int) -> Packed:
    """Residual MLP, and the map over a group boundary.

    Args:
        config: Architecture of the supernet.
        block: What holds the weights.
        packed: Tokens after attention and reduction, their images in any order.
        plan: Sizes of the group that the block is in.
        i: Number of the block in that group, 0-based.

    Returns:
        Tokens in another order.
    """
    at = packed.images
    widths, hidden, gives = plan.widths[at, i], plan.hidden[at, i], plan.gives[at, i]
    order = _order(-hidden, gives, widths)
    new, where = packed.listed(order)
    widths, hidden, gives = _in_order(order, widths, hidden, gives)
    # A norm over hidden units must not see those of another width.
    apart = torch.is_grad_enabled() or block.mlp_norm is not None
    most = hidden if apart else _joined(new, widths, hidden, gives)
    lln = block.lln if plan.carries and i == plan.widths.shape[1] - 1 else None
    stack = _Stack(packed.x, int(gives.max()))
    for images, _, x in _segments(packed.x, where, new.lengths, (widths, gives, most), widths, int(most.max())):
        w, inner, given = (int(size[images.start]) for size in (widths, most, gives))
        h = hidden_units(block, config.act, prefix_norm(block.norm2, x, config.zoom(w)), inner)
        h = h if block.mlp_norm is None else prefix_norm(block.mlp_norm, h)
        _zero_beyond(h, hidden[images], new.lengths[images])
        kept = _kept_paths(block, new.lengths[images], x)
        stack.add(x if lln is None else linear(lln, x, given), block.fc2, h, given, kept)
    return new.holding(stack.result())


def _order(*keys: Ints) -> Ints | None:
    """Images sorted by (B,) keys, the last one first; None if they are already."""
    if len(keys[0]) == 1:
        return None
    order = np.lexsort(keys)
    return None if (order[1:] > order[:-1]).all() else order


def _in_order(order: Ints | None, *sizes: Ints) -> tuple[Ints, ...]:
    """(B,) each, in another order; None the same one."""
    return sizes if order is None else tuple(size[order] for size in sizes)


def _segments(
    x: Tensor, rows: Ints | None, lengths: Ints, keys: tuple[Ints, ...], channels: Ints, widest: int
) -> Iterator[tuple[slice, slice, Tensor]]:
    """The rows of images that agree in all `keys`.

    Args:
        x: (T, C) tokens.
        rows: (T,) where the tokens of image after image lie in `x`; None: as they come.
        lengths: (B,) of the images.
        keys: (B,) each.
        channels: (B,) how many the images take.
        widest: Channels of the widest tensor that is made of a segment: it must not outgrow the working set.

    Yields:
        Slice of the images, slice of their rows, and the (rows, channels) tokens.
    """
    ends, begin = np.cumsum(lengths), 0
    limit = x.shape[0] if torch.is_grad_enabled() else working_rows(widest, x.device.type)
    for a, b in (part for whole in runs(*keys) for part in _parts(*whole, ends, limit)):
        span, c = slice(begin, int(ends[b - 1])), int(channels[a])
        begin = span.stop
        narrow = set_width(x, min(c, x.shape[1]))
        yield slice(a, b), span, set_width(narrow[span] if rows is None else take_rows(narrow, rows[span]), c)


def _joined(packed: Packed, widths: Ints, hidden: Ints, gives: Ints) -> Ints:
    """(B,) hidden width at which every image is computed, where a few more products cost less than one more segment.

    Args:
        packed: Images by width, channels handed on, and falling hidden width.
        widths: (B,) widths of their block.
        hidden: (B,) hidden widths of their own.
        gives: (B,) channels that they hand on.
    """
    if (hidden == hidden[0]).all():
        return hidden
    out = hidden.copy()
    cost = device_costs(packed.x.device.type).segment
    most, before = 0, (-1, -1)
    for a, b in runs(widths, gives, hidden):
        width, given, own = int(widths[a]), int(gives[a]), int(hidden[a])
        if before != (width, given) or int(packed.lengths[a:b].sum()) * (most - own) * (width + given) > cost:
            most, before = own, (width, given)
        out[a:b] = most
    return out


def _zero_beyond(h: Tensor, hidden: Ints, lengths: Ints) -> None:
    """Zeroes the channels of (rows, C) activations beyond each image's own, in place."""
    if hidden[-1] == h.shape[1]:
        return
    ends = np.cumsum(lengths)
    for a, b in runs(hidden):
        if hidden[a] < h.shape[1]:
            h[int(ends[a] - lengths[a]) : int(ends[b - 1]), int(hidden[a]) :].zero_()


def _parts(begin: int, end: int, ends: Ints, limit: int) -> list[tuple[int, int]]:
    """Cuts a range of images, whose rows end at `ends`, into even parts of about `limit` rows, if it has more."""
    first = int(ends[begin - 1]) if begin else 0
    total = int(ends[end - 1]) - first
    count = -(-total // limit)
    if count == 1:
        return [(begin, end)]
    cuts = begin + np.searchsorted(ends[begin:end], first + total * np.arange(1, count) // count)
    return list(pairwise(sorted({begin, *cuts.tolist(), end})))


def _kept_paths(block: ElasticBlock, lengths: Ints, like: Tensor) -> Tensor | None:
    """(rows, 1) factors on what a half of a block adds: 0 for images that skip it, and more than 1 for the others."""
    if not block.drop_path:
        return None
    # Drawn on the CPU, so that one seed means the same on every device.
    kept = (torch.rand(len(lengths), device="cpu") >= block.drop_path).to(like) / (1 - block.drop_path)
    return kept.repeat_interleave(torch.from_numpy(lengths).to(like.device))[:, None]


class _Stack:
    """Collects `x + layer(y)` of segment after segment in one (T, widest) buffer, zeros beyond a segment's width."""

    def __init__(self, like: Tensor, widest: int) -> None:
        # Writing products straight into their place saves two passes over the tokens; autograd wants them apart.
        self.in_place = not (torch.is_grad_enabled() or torch.is_autocast_enabled(like.device.type) or transformed())
        self.out = like.new_empty(like.shape[0], widest) if self.in_place else None
        self.parts: list[Tensor] = []
        self.row, self.widest = 0, widest

    def add(self, x: Tensor, layer: nn.Linear, y: Tensor, width: int, kept: Tensor | None = None) -> None:
        """Appends x (rows, any) + layer(y) (rows, width), the latter times `kept` (rows, 1) where gradients are."""
        if self.out is None:
            branch = linear(layer, y, width)
            branch = branch if kept is None else branch * kept
            self.parts.append(set_width(branch + set_width(x, width), self.widest))
            return
        place = self.out[self.row : self.row + y.shape[0]]
        own = set_width(place, width)
        self.row += y.shape[0]
        weight, bias = prefix_weights(layer, width, y.shape[1])
        torch.add(set_width(x, width), bias, out=own)
        # Not addmm_, which PyTorch's flop counter does not know.
        torch.addmm(own, y, weight.t(), out=own)
        if width < self.widest:
            place[:, width:].zero_()

    def result(self) -> Tensor:
        """(T, widest)."""
        return _cat(self.parts) if self.out is None else self.out


def _cat(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)
