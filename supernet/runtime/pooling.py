"""What is computed of few rows an image: one width at a time, and means of patches."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ..arrays import Ints
from .attention import attention_shares
from .packing import first_rows, row_images, runs, take_rows


def by_width(rows: Tensor, width: Ints, function: Callable[[Tensor, int], Tensor]) -> Tensor:
    """Applies a function to rows of different widths, once per width.

    Args:
        rows: (R, C).
        width: (R,) active channels of each row.
        function: Takes rows (any, width) of one width, and the width.

    Returns:
        What it gives for every row, in their order.
    """
    if len(width) == 1 or width.min() == width.max():
        return function(rows[:, : width[0]], int(width[0]))
    order = np.argsort(width, kind="stable")
    out = [
        function(take_rows(rows, order[a:b])[:, : width[order[a]]], int(width[order[a]])) for a, b in runs(width[order])
    ]
    return take_rows(torch.cat(out), np.argsort(order))


def patches_alike(rows: Tensor, size: Tensor | None, lengths: Ints, prefix: int) -> tuple[Tensor, Tensor | None] | None:
    """(B, N, C) patches and (B, N) sizes of images that have equally many; None of others.

    They stay as they lie: nothing is sent to a device.

    Args:
        rows: (T, C) packed tokens.
        size: (T,) weight of each token; None: one each.
        lengths: (B,) tokens per image.
        prefix: So many first tokens of an image are no patches.
    """
    shape = len(lengths), int(lengths[0])
    if (lengths != shape[1]).any():
        return None
    return rows.unflatten(0, shape)[:, prefix:], None if size is None else size.unflatten(0, shape)[:, prefix:]


def mean_alike(patches: Tensor, size: Tensor | None) -> Tensor:
    """(B, C) mean over patches (B, N, C), each counting as often as `size` (B, N) says; None: once."""
    if size is None:
        return patches.mean(1)
    # In single precision, which sizes are in: a sum may be beyond half precision where the mean is not.
    weight = size[..., None]
    return ((patches * weight).sum(1) / weight.sum(1)).to(patches.dtype)


def mean_patches(rows: Tensor, lengths: Ints, size: Tensor | None, prefix: int) -> Tensor:
    """Mean over the patches of every image.

    Args:
        rows: (T, C) packed tokens.
        lengths: (B,) tokens per image.
        size: (T,) weight of each token; None: one each.
        prefix: So many first tokens of an image are no patches.

    Returns:
        (B, C).
    """
    alike = patches_alike(rows, size, lengths, prefix)
    if alike is not None:
        return mean_alike(*alike)
    weight = torch.ones(len(rows), device=rows.device) if size is None else size
    weight = weight.clone()
    if prefix:
        weight[torch.from_numpy(first_rows(lengths, prefix)).to(rows.device)] = 0
    image = row_images(lengths, rows.device)
    total = weight.new_zeros(len(lengths)).index_add(0, image, weight)
    share = (weight / total[image])[:, None].to(rows.dtype)
    return rows.new_zeros(len(lengths), rows.shape[1]).scatter_add(0, image[:, None].expand_as(rows), rows * share)


def attend_once(query: Tensor, k: Tensor, v: Tensor, lengths: Ints, log_size: Tensor | None) -> Tensor:
    """What one query, the same for all, finds in every image of a packed batch.

    Args:
        query: (H, head_dim).
        k: (T, H, head_dim) keys.
        v: (T, H, head_dim) values.
        lengths: (B,) tokens per image.
        log_size: (T,) added to the logits of every key; None adds nothing.

    Returns:
        (B, H * head_dim).
    """
    shares = attention_shares(query[None], k, lengths, log_size).to(v.dtype)
    found = v.new_zeros(len(lengths), *v.shape[1:])
    return found.index_add(0, row_images(lengths, k.device), v * shares[..., None]).flatten(1)
