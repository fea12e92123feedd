"""Running one group of blocks on a packed batch in which every image has sizes of its own.

Each half of a block (attention, MLP) sorts the images so that those of equal sizes stand together, gathers the rows of
each size with just the channels it needs, computes, and writes the sum with the residual into one new buffer. Where all
images agree, nothing is gathered and nothing copied.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor, nn

from .layers import ElasticBlock, activate, layer_norm, linear, set_width, working_rows
from .macs import block_widths, hidden_dims
from .ragged import Ints, attention, packed_class_scores, places, rows_of, runs, starts, take_rows
from .reduction import TokenMode, combine, total_size

if TYPE_CHECKING:
    from .state import InferenceState
    from .subnet import GroupChoice
    from .vit import Supernet


# Multiply-accumulates that take as long as one more segment of an MLP; measured on CPUs, a guess for GPUs.
SEGMENT_COST = {"cpu": 2_000_000, "cuda": 200_000_000}


@dataclass(frozen=True, eq=False)
class Packed:
    """Tokens of B images, image after image.

    Attributes:
        x: (T, C); channels beyond an image's own are zero.
        lengths: (B,) tokens per image.
        size: (T,) patches that a token stands for; None: one each.
        images: (B,) which image of the state stands at each place.
    """

    x: Tensor
    lengths: Ints
    size: Tensor | None
    images: Ints

    def sorted_by(self, order: Ints) -> Packed:
        """The images in another order."""
        if np.array_equal(order, np.arange(len(order))):
            return self
        rows = rows_of(order, self.lengths)
        size = None if self.size is None else take_rows(self.size, rows)
        return Packed(take_rows(self.x, rows), self.lengths[order], size, self.images[order])


def run_blocks(
    net: Supernet, state: InferenceState, choice: GroupChoice, next_dim: Ints | None
) -> tuple[Packed, Tensor, Ints, Tensor | None]:
    """Runs the group `state.group`.

    Args:
        net: The supernet.
        state: Unchanged.
        choice: Sizes of the group, one per image.
        next_dim: (B,) width of the next block if it is known, see `block_widths`.

    Returns:
        Tokens in the order of the state, `patch_token`, (B,) channels handed on, and (T,) mean keys of the last block
        if the state carries them.
    """
    config, space, group = net.config, net.config.space, state.group
    widths = choice.embed_dim.numpy()
    hidden = hidden_dims(widths, choice.mlp_ratio.numpy())
    reads, gives = block_widths(config, group, widths, state.token_dim, next_dim)
    patch_token, key_mean = state.patch_token, None
    packed = Packed(state.tokens, state.num_tokens, state.size, np.arange(len(state)))
    for i, block_index in enumerate(space.blocks(group)):
        block, last = cast(ElasticBlock, net.blocks[block_index]), i == space.groups[group] - 1
        counts, mode = None, config.token_mode
        if i == 0 and group >= space.first_decided:
            counts = mode.counts(packed.lengths, choice.rates[packed.images], config.num_prefix_tokens)
            if not mode.always and not bool((counts[:, -1] < packed.lengths).any()):
                counts = None
        carries_keys = last and state.key_mean is not None
        with_keys = carries_keys or (counts is not None and mode.metric == "keys")
        with_scores = counts is not None and mode.uses_scores
        at = packed.images
        packed, scores, keys = attention_half(net, block, packed, reads[at, i], widths[at, i], with_scores, with_keys)
        at = packed.images
        means = keys.mean(1) if carries_keys and keys is not None else None
        if counts is not None:
            counts = mode.counts(packed.lengths, choice.rates[at], config.num_prefix_tokens)
            packed, into, means = _reduce(packed, mode, counts, scores, keys, means, config.num_prefix_tokens)
            moved = into[torch.from_numpy(np.argsort(at)).to(into.device)]
            patch_token = torch.where(patch_token < 0, -1, moved.gather(1, patch_token.clamp(min=0)))
        if means is not None:
            key_mean = take_rows(means, rows_of(np.argsort(at), packed.lengths)).float()
        boundary = last and group < len(space.groups) - 1
        packed = mlp_half(net, block, packed, widths[at, i], hidden[at, i], gives[at, i], boundary)
    return packed.sorted_by(np.argsort(packed.images)), patch_token, gives[:, -1].copy(), key_mean


def attention_half(
    net: Supernet,
    block: ElasticBlock,
    packed: Packed,
    reads: Ints,
    widths: Ints,
    with_scores: bool,
    with_keys: bool = False,
) -> tuple[Packed, Tensor | None, Tensor | None]:
    """Residual attention.

    Args:
        net: The supernet.
        block: One of its blocks.
        packed: Tokens.
        reads: (B,) channels that the block reads, in the order of `packed`.
        widths: (B,) its width likewise.
        with_scores: Whether to compute the class attention.
        with_keys: Whether to compute the mean of the keys over heads.

    Returns:
        Tokens in another order; (T,) class attention and (T, head_dim) keys in that order, None if not asked for.
    """
    config = net.config
    order = np.lexsort((packed.lengths, reads, widths))
    out, size = _permuted(packed, order)
    log_size = None if size is None else size.log()
    stack = _Stack(packed.x, int(widths.max()))
    scores, keys = [], []
    channels = 3 * net.space.heads(int(widths.max())) * config.head_dim
    for images, rows, x in _segments(packed, order, (widths, reads), reads, channels):
        w = int(widths[order[images.start]])
        heads = net.space.heads(w)
        qkv = linear(block.qkv, layer_norm(block.norm1, x, net.zoom(w)), 3 * heads * config.head_dim)
        bias = None if log_size is None else log_size[rows]
        if with_scores:
            scores.append(packed_class_scores(qkv, out[images], heads, bias, config.class_token))
        if with_keys:
            keys.append(qkv.view(len(qkv), heads, 3, config.head_dim)[:, :, 1].mean(1))
        stack.add(x[:, :w], block.proj, attention(qkv, out[images], heads, bias), w)
    new = Packed(stack.result(), out, size, packed.images[order])
    return new, _cat(scores) if with_scores else None, _cat(keys) if with_keys else None


def mlp_half(
    net: Supernet, block: ElasticBlock, packed: Packed, widths: Ints, hidden: Ints, gives: Ints, boundary: bool
) -> Packed:
    """Residual MLP, and the map over a group boundary.

    Args:
        net: The supernet.
        block: One of its blocks.
        packed: Tokens.
        widths: (B,) width of the block, in the order of `packed`.
        hidden: (B,) hidden width of its MLP likewise.
        gives: (B,) channels that it hands on likewise.
        boundary: Whether it ends a group that is not the last.

    Returns:
        Tokens in another order.
    """
    order = np.lexsort((-hidden, gives, widths))
    most = hidden if torch.is_grad_enabled() else _joined(packed, order, widths, hidden, gives)
    stack = _Stack(packed.x, int(gives.max()))
    for images, _, x in _segments(packed, order, (widths, gives, most), widths, int(most.max())):
        first = order[images.start]
        hidden_layer = linear(block.fc1, layer_norm(block.norm2, x, net.zoom(int(widths[first]))), int(most[first]))
        h = activate(net.config.act, hidden_layer)
        _zero_beyond(h, hidden[order[images]], packed.lengths[order[images]])
        if boundary and block.lln is not None:
            x = linear(block.lln, x, int(gives[first]))
        stack.add(x, block.fc2, h, int(gives[first]))
    lengths, size = _permuted(packed, order)
    return Packed(stack.result(), lengths, size, packed.images[order])


def _permuted(packed: Packed, order: Ints) -> tuple[Ints, Tensor | None]:
    """Lengths and sizes of the images in another order."""
    if packed.size is None:
        return packed.lengths[order], None
    return packed.lengths[order], take_rows(packed.size, rows_of(order, packed.lengths))


def _segments(
    packed: Packed, order: Ints, keys: tuple[Ints, ...], channels: Ints, widest: int
) -> Iterator[tuple[slice, slice, Tensor]]:
    """The rows of images that agree in all `keys`, once the images are put into `order`.

    Args:
        packed: Tokens.
        order: Of the images.
        keys: (B,) each, in the order of `packed`.
        channels: (B,) how many the images take, likewise.
        widest: Channels of the widest tensor that is made of a segment: it must not outgrow the working set.

    Yields:
        Slice of the ordered images, slice of the ordered rows, and the (rows, channels) tokens.
    """
    ends = np.cumsum(packed.lengths[order])
    in_place = np.array_equal(order, np.arange(len(order)))
    rows = None if in_place else rows_of(order, packed.lengths)
    limit = len(packed.x) if torch.is_grad_enabled() else working_rows(widest, packed.x.device)
    ranges = runs(*(key[order] for key in keys))
    for a, b in (part for whole in ranges for part in _parts(*whole, ends, limit)):
        span = slice(int(ends[a] - packed.lengths[order[a]]), int(ends[b - 1]))
        c = int(channels[order[a]])
        x = packed.x[:, :c]
        x = x[span] if rows is None else take_rows(x, rows[span])
        yield slice(a, b), span, set_width(x, c)


def _joined(packed: Packed, order: Ints, widths: Ints, hidden: Ints, gives: Ints) -> Ints:
    """(B,) hidden width at which every image is computed, where a few more products cost less than one more segment.

    Args:
        packed: Tokens.
        order: Images by width, then by falling hidden width.
        widths: (B,) in the order of `packed`, likewise the next two.
        hidden: Their own hidden widths.
        gives: Channels they hand on.
    """
    out = hidden.copy()
    rows = packed.lengths[order]
    cost = SEGMENT_COST.get(packed.x.device.type, SEGMENT_COST["cuda"])
    most, before = 0, (-1, -1)
    for a, b in runs(widths[order], gives[order], hidden[order]):
        width, given, own = (int(v[order[a]]) for v in (widths, gives, hidden))
        if before != (width, given) or int(rows[a:b].sum()) * (most - own) * (width + given) > cost:
            most, before = own, (width, given)
        out[order[a:b]] = most
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


class _Stack:
    """Collects `x + layer(y)` of segment after segment in one (T, widest) buffer, zeros beyond a segment's width."""

    def __init__(self, like: Tensor, widest: int) -> None:
        # Writing products straight into their place saves two passes over the tokens; autograd wants them apart.
        self.in_place = not torch.is_grad_enabled() and not torch.is_autocast_enabled(like.device.type)
        self.out = like.new_empty(len(like), widest) if self.in_place else None
        self.parts: list[Tensor] = []
        self.row, self.widest = 0, widest

    def add(self, x: Tensor, layer: nn.Linear, y: Tensor, width: int) -> None:
        """Appends x (rows, any) + layer(y) (rows, width)."""
        if self.out is None:
            self.parts.append(set_width(linear(layer, y, width) + set_width(x, width), self.widest))
            return
        place = self.out[self.row : self.row + len(y)]
        own = place[:, :width]
        self.row += len(y)
        torch.add(set_width(x, width), layer.bias[:width], out=own)
        # Not addmm_, which PyTorch's flop counter does not know.
        torch.addmm(own, y, layer.weight[:width, : y.shape[1]].t(), out=own)
        if width < self.widest:
            place[:, width:].zero_()

    def result(self) -> Tensor:
        """(T, widest)."""
        return _cat(self.parts) if self.out is None else self.out


def _reduce(
    packed: Packed,
    mode: TokenMode,
    counts: Ints,
    scores: Tensor | None,
    keys: Tensor | None,
    means: Tensor | None,
    prefix: int,
) -> tuple[Packed, Tensor, Tensor | None]:
    """The shorter sequences, (B, N) where each token of the longer ones went, and `means` (T,) reduced likewise."""
    lengths, device = packed.lengths, packed.x.device
    valid, index = (torch.from_numpy(a).to(device) for a in places(starts(lengths), lengths, int(lengths.max())))

    def padded(values: Tensor) -> Tensor:
        return values.index_select(0, index.view(-1)).view(*index.shape, *values.shape[1:])

    size = packed.size
    if size is None:
        size = torch.ones(len(packed.x), device=device)
    metric = {None: None, "tokens": packed.x, "keys": keys}[mode.metric]
    into, weight = mode.assign(
        None if scores is None else padded(scores),
        None if metric is None else padded(metric.detach()),
        padded(size),
        lengths,
        counts,
        prefix,
    )
    kept = counts[:, -1]
    first = torch.from_numpy(starts(kept)).to(device)[:, None]
    flat = torch.where(into < 0, -1, into + first)[valid][None]
    total = int(kept.sum())
    shares = None if weight is None else weight[valid][None]
    x = combine(packed.x[None], flat, total, shares, mode.normalise)[0]
    if means is not None:
        means = combine(means[None, :, None], flat, total, shares, mode.normalise)[0, :, 0]
    sizes = total_size(size[None], flat, total)[0] if mode.sized else None
    return Packed(x, kept, sizes, packed.images), into, means


def _cat(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)
