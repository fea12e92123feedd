"""What a token mode says, done to a batch whose sizes stand on the device."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from ..arrays import counting
from ..config import SupernetConfig
from ..plan import GroupPlan
from ..tokens.modes import combine, total_size
from . import devices, kernels
from .reduction import places_after
from .tiled import TileBatch, images_of_rows, offsets


def mean_keys(qkv: Tensor, heads: Tensor, batch: TileBatch, head_dim: int) -> Tensor:
    """(capacity, head_dim) keys of (capacity, 3 * max_heads * head_dim), mean over the heads that an image has."""
    keys = qkv.view(len(qkv), -1, 3, head_dim)[:, :, 1]
    own = heads[batch.image.long()][:, None]
    there = counting(keys.shape[1], qkv.device) < own
    return torch.where(there[..., None], keys, 0).sum(1) / own.to(keys.dtype)


def reduce_tiles(
    config: SupernetConfig,
    plan: GroupPlan,
    batch: TileBatch,
    scores: Tensor | None,
    keys: Tensor | None,
    means: Tensor | None,
    patch_token: Tensor,
) -> tuple[TileBatch, Tensor, Tensor | None]:
    """Reduces the tokens of every image as the plan says; as `supernet.runtime.reduction.reduce_tokens`.

    Args:
        config: The supernet's; its token mode is hard, has no parameters, and says `on_device`.
        plan: What the group computes.
        batch: Tokens after attention.
        scores: (capacity,) class attention, None if the mode reads none.
        keys: (capacity, head_dim) mean keys, None if nobody reads them.
        means: (capacity,) numbers that are reduced as the tokens are; None: none.
        patch_token: (B, num_patches) which token holds each patch.

    Returns:
        The shorter sequences in buffers of the same capacity, `patch_token` and `means` after the reduction.
    """
    assert plan.counts is not None
    mode, counts = config.token_mode, torch.as_tensor(plan.counts)
    there, rows = batch.padded()
    size = torch.ones(rows.shape, device=rows.device) if batch.size is None else batch.size[rows]
    metric = keys[rows] if mode.metric == "keys" and keys is not None else None
    if mode.metric == "tokens":
        own = counting(batch.x.shape[1], rows.device) < batch.have[:, None]
        metric = torch.where(own[:, None], batch.x[rows], 0)
    into, weight, _ = mode.assignment(
        None,
        None if scores is None else scores[rows],
        metric,
        size,
        batch.lengths,  # type: ignore[arg-type]
        counts,  # type: ignore[arg-type]
        config.num_prefix_tokens,
    )
    lengths = counts[:, -1].contiguous()
    cu = offsets(lengths)
    image = images_of_rows(cu, len(batch.x))

    def packed(values: Tensor) -> Tensor:
        """(capacity,) of (B, most) values of the shorter sequences."""
        own = image.long()
        place = torch.arange(len(image), device=cu.device) - cu[own]
        return values[own, place.clamp(max=batch.most - 1)]

    share = _shares(into, weight, mode.normalise)
    if share is None:
        x = moved(batch, into, cu)
    else:
        x = _combined(batch, there & (into >= 0), rows, into + cu[:-1, None], share)
    if means is not None:
        means = packed(combine(means[rows][..., None], into, batch.most, weight, mode.normalise)[..., 0])
    new_size = packed(total_size(size, into, batch.most)) if mode.sized else None
    patch_token = places_after(patch_token, into)
    return TileBatch(x, cu, image, batch.have, lengths, new_size, batch.most), patch_token, means


def _shares(into: Tensor, weight: Tensor | None, normalise: bool) -> Tensor | None:
    """(B, most) factors of the tokens in the sum over what comes together; None: nothing does."""
    if weight is None or not normalise:
        return weight
    return weight / total_size(weight, into, into.shape[1]).gather(1, into.clamp(min=0))


def moved(batch: TileBatch, into: Tensor, cu: Tensor) -> Tensor:
    """(capacity, C) the rows that stay, no two of which have one target.

    Args:
        batch: The tokens.
        into: (B, most) place of every token in the shorter sequence, -1 if it leaves.
        cu: (B + 1,) int32 first row of every shorter sequence.
    """
    x, (capacity, channels) = batch.x, batch.x.shape
    out, into, rows = torch.empty_like(x), into.contiguous(), devices.tile_sizes(x.device.type, x.dtype).normed
    kernels.move_kernel[(triton.cdiv(capacity, rows),)](
        x, out, into, batch.image, batch.cu, cu, batch.total, into.shape[1], x.stride(0), out.stride(0), channels,
        BLOCK=triton.next_power_of_2(channels), ROWS=rows,
    )  # fmt: skip
    return out


def _combined(batch: TileBatch, stays: Tensor, rows: Tensor, target: Tensor, share: Tensor) -> Tensor:
    """(capacity, C) sums of the rows that go into one target.

    Args:
        batch: The tokens.
        stays: (B, most) which tokens go anywhere.
        rows: (B, most) their rows.
        target: (B, most) their row in the new buffer.
        share: (B, most) their factors.
    """
    x, (capacity, channels) = batch.x, batch.x.shape
    spare = torch.full((), capacity, device=x.device)
    source, target = torch.where(stays, rows, spare).flatten(), torch.where(stays, target, spare).flatten()
    # By target, and of one target by row: sums then have the same bits every time.
    order = target.argsort(stable=True)
    begins = torch.searchsorted(target[order], torch.arange(capacity + 1, device=x.device))
    shares = torch.zeros(capacity + 1, device=x.device).scatter(0, source, share.float().flatten())
    out = torch.empty_like(x)
    kernels.combine_kernel[(capacity,)](
        x, out, source[order], begins, shares, batch.total, x.stride(0), out.stride(0), channels,
        BLOCK=triton.next_power_of_2(channels),
    )  # fmt: skip
    return out
