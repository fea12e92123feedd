"""What a token mode says, done to a packed batch."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..arrays import Floats, Ints
from ..config import SupernetConfig
from ..layers import set_width
from ..plan import GroupPlan
from ..tokens.modes import TokenMode, combine, holders, total_size
from .packing import Packed, Padding, runs, starts, take_rows

Reduced = tuple[Packed, Tensor, Tensor | None, Ints]
"""The shorter sequences, (B, N) where each token of the longer ones went, means (T,) reduced with the tokens, and
(B, stages) tokens that remain after every stage."""


def reduce_tokens(
    config: SupernetConfig,
    module: nn.Module | None,
    plan: GroupPlan,
    packed: Packed,
    scores: Tensor | None,
    keys: Tensor | None,
    means: Tensor | None,
) -> tuple[Packed, Tensor, Tensor | None, GroupPlan]:
    """Reduces the tokens of every image as its plan says.

    Args:
        config: The supernet's.
        module: The one that stands in the block, if the token mode has learned parameters.
        plan: What the block's group computes; its mode runs for some image.
        packed: Tokens after attention, their images in any order; their channels beyond a block's width are zero.
        scores: (T,) class attention, None if the mode reads none.
        keys: (T, head_dim) mean keys, None if nobody reads them.
        means: (T,) numbers that are reduced as the tokens are; None: none.

    Returns:
        The shorter sequences, (B, N) where each token of the longer ones went, the means, all in the order of `packed`;
        and the plan, with the counts that its thresholds led to, if it has any.
    """
    assert plan.counts is not None
    mode, prefix = config.token_mode, config.num_prefix_tokens
    asked = (plan.counts if plan.thresholds is None else plan.thresholds)[packed.images]
    if mode.module is None and not mode.soft:
        reduced = _reduce(mode, module, packed, asked, scores, keys, means, prefix)
    else:
        reduced = _reduce_by_width(mode, module, plan, packed, asked, scores, keys, means, prefix)
    packed, into, means, counts = reduced
    if plan.thresholds is not None:
        plan = plan.counted(counts[np.argsort(packed.images)])
    return packed, into, means, plan


def _reduce_by_width(
    mode: TokenMode,
    module: nn.Module | None,
    plan: GroupPlan,
    packed: Packed,
    asked: Ints | Floats,
    scores: Tensor | None,
    keys: Tensor | None,
    means: Tensor | None,
    prefix: int,
) -> Reduced:
    """`_reduce` for images of one width at a time, and only for those that are to be reduced."""
    # Weights are cut to one width, and shares leave no image as it is.
    widths, reduces = plan.widths[packed.images, 0], plan.reduces[packed.images]
    ends, parts = np.cumsum(packed.lengths), []
    for a, b in runs(widths, reduces.astype(np.int64)):
        rows = slice(int(ends[a] - packed.lengths[a]), int(ends[b - 1]))
        size, score, key, mean = (None if t is None else t[rows] for t in (packed.size, scores, keys, means))
        part = Packed(packed.x[rows, : widths[a]], packed.lengths[a:b], size, packed.images[a:b])
        if reduces[a]:
            parts.append(_reduce(mode, module, part, asked[a:b], score, key, mean, prefix))
        else:
            parts.append(_untouched(mode, part, mean))
    return _joined(parts, packed.x.shape[1])


def places_after(patch_token: Tensor, into: Tensor) -> Tensor:
    """(B, num_patches) which token holds each patch after a reduction, -1 none.

    Args:
        patch_token: (B, num_patches) which one held it before.
        into: (B, N) where each token went, images in the same order.
    """
    return torch.where(patch_token < 0, -1, into.gather(1, patch_token.clamp(min=0)))


def _reduce(
    mode: TokenMode,
    module: nn.Module | None,
    packed: Packed,
    asked: Ints | Floats,
    scores: Tensor | None,
    keys: Tensor | None,
    means: Tensor | None,
    prefix: int,
) -> Reduced:
    """Reduces all images, in one call of the mode; counts or thresholds `asked` (B, any) are in their order."""
    lengths, device = packed.lengths, packed.x.device
    padding = Padding(lengths, device)
    padded = padding.padded
    size = packed.size
    if size is None:
        size = torch.ones(len(packed.x), device=device)
    metric = {None: None, "tokens": packed.x, "keys": keys}[mode.metric]
    if metric is not None and not mode.soft and mode.module is None:
        metric = metric.detach()
    into, weight, counts = mode.assignment(
        module,
        None if scores is None else padded(scores),
        None if metric is None else padded(metric),
        padded(size),
        lengths,
        asked,
        prefix,
    )
    kept = counts[:, -1]
    if into.ndim == 3:
        rows, longest = _real_rows(kept), int(kept.max())

        def mixed(values: Tensor) -> Tensor:
            new = combine(padded(values), into, longest, weight, mode.normalise, prefix)
            return take_rows(new.flatten(0, 1), rows)

        means = None if means is None else mixed(means[:, None])[:, 0]
        sizes = take_rows(total_size(padded(size), into, longest).flatten(), rows) if mode.sized else None
        return Packed(mixed(packed.x), kept, sizes, packed.images), holders(into), means, counts
    first = torch.from_numpy(starts(kept)).to(device)[:, None]
    flat = padding.packed(torch.where(into < 0, -1, into + first))[None]
    total = int(kept.sum())
    shares = None if weight is None else padding.packed(weight)[None]
    x = combine(packed.x[None], flat, total, shares, mode.normalise)[0]
    if means is not None:
        means = combine(means[None, :, None], flat, total, shares, mode.normalise)[0, :, 0]
    sizes = total_size(size[None], flat, total)[0] if mode.sized else None
    return Packed(x, kept, sizes, packed.images), into, means, counts


def _real_rows(lengths: Ints) -> Ints:
    """Rows of a flattened batch, padded to the longest, that hold a token."""
    longest = int(lengths.max())
    return np.flatnonzero(np.arange(longest) < lengths[:, None])


def _untouched(mode: TokenMode, packed: Packed, means: Tensor | None) -> Reduced:
    """The images as they are, with what `_reduce` says of them."""
    size, longest = packed.size, int(packed.lengths.max())
    if mode.sized and size is None:
        size = torch.ones(len(packed.x), device=packed.x.device)
    place = np.arange(longest)
    into = np.where(place < packed.lengths[:, None], place, -1)
    same = Packed(packed.x, packed.lengths, size, packed.images)
    return same, torch.from_numpy(into).to(packed.x.device), means, packed.lengths[:, None]


def _joined(parts: list[Reduced], channels: int) -> Reduced:
    """All images of the parts, in that order, in one buffer of so many channels."""
    longest, stages = max(into.shape[1] for _, into, _, _ in parts), max(counts.shape[1] for *_, counts in parts)
    sizes = [part.size for part, *_ in parts if part.size is not None]
    means = [mean for _, _, mean, _ in parts if mean is not None]
    packed = Packed(
        torch.cat([set_width(part.x, channels) for part, *_ in parts]),
        np.concatenate([part.lengths for part, *_ in parts]),
        torch.cat(sizes) if sizes else None,
        np.concatenate([part.images for part, *_ in parts]),
    )
    into = torch.cat([F.pad(into, (0, longest - into.shape[1]), value=-1) for _, into, _, _ in parts])
    counts = np.concatenate([np.pad(n, ((0, 0), (0, stages - n.shape[1])), mode="edge") for *_, n in parts])
    return packed, into, torch.cat(means) if means else None, counts
