"""Running one group of blocks on a packed batch in which every image has sizes of its own."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor

from .layers import ACTIVATIONS, ElasticBlock, layer_norm, linear, set_width
from .macs import block_widths, hidden_dims
from .ragged import Ints, attention, rows_of, runs, starts, take_rows
from .reduction import TokenMode, combine, total_size

if TYPE_CHECKING:
    from .state import InferenceState
    from .subnet import GroupChoice
    from .vit import Supernet


@dataclass(frozen=True, eq=False)
class Packed:
    """Tokens of B images, image after image.

    Attributes:
        x: (T, C).
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
    num_blocks = space.groups[group]
    patch_token, key_mean = state.patch_token, None
    packed = Packed(state.tokens, state.num_tokens, state.size, np.arange(len(state)))
    for i, block_index in enumerate(space.blocks(group)):
        block = cast(ElasticBlock, net.blocks[block_index])
        at = packed.images
        packed = packed.sorted_by(np.lexsort((gives[at, i], hidden[at, i], reads[at, i], widths[at, i])))
        at = packed.images
        counts, mode = None, config.token_mode
        if i == 0 and group >= space.first_decided:
            counts = mode.counts(packed.lengths, choice.rates[at], config.num_prefix_tokens)
            if not mode.always and not bool((counts[:, -1] < packed.lengths).any()):
                counts = None
        carries_keys = state.key_mean is not None and i == num_blocks - 1
        wants_keys = carries_keys or (counts is not None and mode.metric == "keys")
        x, scores, keys = attention_half(
            net,
            block,
            packed,
            reads[at, i],
            widths[at, i],
            with_scores=counts is not None and mode.uses_scores,
            with_keys=wants_keys,
        )
        packed = replace(packed, x=x)
        if carries_keys and keys is not None:
            key_mean = take_rows(keys.mean(1), rows_of(np.argsort(at), packed.lengths)).float()
        if counts is not None:
            packed, into = _reduce(packed, mode, counts, scores, keys, config.num_prefix_tokens)
            moved = into[torch.from_numpy(np.argsort(at)).to(into.device)]
            patch_token = torch.where(patch_token < 0, -1, moved.gather(1, patch_token.clamp(min=0)))
        boundary = i == num_blocks - 1 and group < len(space.groups) - 1
        x = mlp_half(net, block, packed, widths[at, i], hidden[at, i], gives[at, i], boundary)
        packed = replace(packed, x=x)
    return packed.sorted_by(np.argsort(packed.images)), patch_token, gives[:, -1].copy(), key_mean


def attention_half(
    net: Supernet,
    block: ElasticBlock,
    packed: Packed,
    reads: Ints,
    widths: Ints,
    with_scores: bool,
    with_keys: bool = False,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Residual attention; images must be sorted by (width, channels read).

    Returns:
        (T, C) of the widest image's width, zeros beyond an image's own; (T,) class attention; (T, head_dim) keys, mean
        over heads. The last two None if not asked for.
    """
    config = net.config
    ends = np.cumsum(packed.lengths)
    log_size = None if packed.size is None else packed.size.log()
    outs, scores, keys = [], [], []
    for a, b in runs(widths, reads):
        w, heads = int(widths[a]), net.space.heads(int(widths[a]))
        rows = slice(int(ends[a] - packed.lengths[a]), int(ends[b - 1]))
        residual = set_width(packed.x[rows], int(reads[a]))
        normed = layer_norm(block.norm1, residual, net.zoom(w))
        qkv = linear(block.qkv, normed, 3 * heads * config.head_dim)
        size = None if log_size is None else log_size[rows]
        out, score = attention(qkv, packed.lengths[a:b], heads, size, with_scores, config.class_token)
        outs.append(set_width(residual[:, :w] + linear(block.proj, out, w), int(widths[-1])))
        if score is not None:
            scores.append(score)
        if with_keys:
            keys.append(qkv.view(len(qkv), heads, 3, config.head_dim)[:, :, 1].mean(1))
    return _cat(outs), _cat(scores) if with_scores else None, _cat(keys) if with_keys else None


def mlp_half(
    net: Supernet, block: ElasticBlock, packed: Packed, widths: Ints, hidden: Ints, gives: Ints, boundary: bool
) -> Tensor:
    """Residual MLP, and the map over a group boundary; images must be sorted by (width, hidden, channels given)."""
    activation = ACTIVATIONS[net.config.act]
    ends = np.cumsum(packed.lengths)
    widest = int(gives.max())
    outs = []
    for a, b in runs(widths, hidden, gives):
        w, out_dim = int(widths[a]), int(gives[a])
        residual = packed.x[int(ends[a] - packed.lengths[a]) : int(ends[b - 1]), :w]
        h = activation(linear(block.fc1, layer_norm(block.norm2, residual, net.zoom(w)), int(hidden[a])))
        if boundary and block.lln is not None:
            residual = linear(block.lln, residual, out_dim)
        outs.append(set_width(set_width(residual, out_dim) + linear(block.fc2, h, out_dim), widest))
    return _cat(outs)


def _reduce(
    packed: Packed, mode: TokenMode, counts: Ints, scores: Tensor | None, keys: Tensor | None, prefix: int
) -> tuple[Packed, Tensor]:
    """The shorter sequences, and (B, N) where each token of the longer ones went."""
    lengths, device = packed.lengths, packed.x.device
    position = np.arange(int(lengths.max()))
    valid = torch.from_numpy(position < lengths[:, None]).to(device)
    index = torch.from_numpy(starts(lengths)[:, None] + np.minimum(position, lengths[:, None] - 1)).to(device)

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
    x = combine(packed.x[None], flat, total, None if weight is None else weight[valid][None], mode.normalise)[0]
    sizes = total_size(size[None], flat, total)[0] if mode.sized else None
    return Packed(x, kept, sizes, packed.images), into


def _cat(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)
