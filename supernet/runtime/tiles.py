"""Running one group of blocks on a GPU: one launch per layer for images of any sizes, and nothing to wait for.

The other way than `supernet.runtime.blocks`, with the same results. Tokens lie packed, image after image, in a buffer
with room for all that there could be; how many rows are in use, where images begin and how wide they are stands in
device memory. Kernels (`supernet.runtime.kernels`) read their sizes there. The host knows none of them, so that it
never waits, launches as much for one size as for a thousand, and can record all of it as a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
import triton
from torch import Tensor, nn

from ..config import SupernetConfig
from ..layers import ElasticBlock
from ..plan import GroupPlan
from . import devices, kernels
from .choice import ACTIVATION_CODES, precision
from .devices import TileSizes
from .tile_reduction import mean_keys, reduce_tiles
from .tiled import TileBatch

LOG2_E = 1.4426950408889634
Rows = tuple[Tensor, Tensor]
"""Rows of a batch in some order, and the image of each: (capacity,) int32 both."""


@dataclass(frozen=True, eq=False)
class _Sizes:
    """A plan as kernels read it.

    Attributes:
        reads: Of every block, (B,) int32, as are all further sizes.
        widths: Channels of the block.
        heads: Heads.
        inner: Channels of all heads.
        qkv: Channels of all queries, keys and values.
        hidden: Hidden units.
        gives: Channels handed on.
        zoom: (B,) float32 factors of norms of every block; None: ones.
        by: Two of (2 * blocks, B) int32, by which rows are listed: for the attention of every block, then for its MLP;
            None: all images are alike, and nothing is listed.
    """

    reads: Sequence[Tensor]
    widths: Sequence[Tensor]
    heads: Sequence[Tensor]
    inner: Sequence[Tensor]
    qkv: Sequence[Tensor]
    hidden: Sequence[Tensor]
    gives: Sequence[Tensor]
    zoom: Sequence[Tensor] | None
    by: tuple[Tensor, Tensor] | None

    @classmethod
    def of(cls, config: SupernetConfig, plan: GroupPlan, batch: TileBatch) -> _Sizes:
        """Sizes of a plan: tensors of the device, or arrays for one image if all are of full size as that one."""
        if isinstance(plan.widths, np.ndarray):
            return cls._alike(config, plan, batch)
        names = ("reads", "widths", "hidden", "num_heads", "gives")
        sizes = torch.stack([torch.as_tensor(getattr(plan, name)) for name in names])
        sizes = sizes.transpose(1, 2).to(torch.int32, memory_format=torch.contiguous_format)
        reads, widths, hidden, heads, gives = sizes.unbind()
        inner, zoom, full = heads * config.head_dim, None, config.prance_embed_dim
        if full is not None:
            zoom = (widths.double() / full).sqrt().float()
        by = sizes[1:3].flatten(0, 1), sizes[:2].flatten(0, 1)  # widths and hidden, reads and widths
        return cls(reads, widths, heads, inner, 3 * inner, hidden, gives, zoom, by)

    @classmethod
    def _alike(cls, config: SupernetConfig, plan: GroupPlan, batch: TileBatch) -> _Sizes:
        # Products of full size look nothing up, so that one tensor stands for sizes that nobody reads.
        full, heads = [batch.have] * plan.widths.shape[1], torch.full_like(batch.have, config.space.max_heads)
        return cls(full, full, [heads] * len(full), full, full, full, full, None, None)

    def rows(self, batch: TileBatch, most: int | None = None) -> list[Rows | None]:
        """The rows of the batch in every order, or in the first few; None: as they lie."""
        if self.by is None:
            return [None] * (2 * len(self.widths))
        first, second = self.by
        return [*permutations(batch, first[:most], second[:most])]


def run_tiles(
    config: SupernetConfig,
    blocks: nn.ModuleList,
    plan: GroupPlan,
    batch: TileBatch,
    patch_token: Tensor,
    with_key_mean: bool = False,
    head_only: bool = False,
) -> tuple[TileBatch, Tensor, Tensor | None]:
    """Runs one group.

    Args:
        config: The supernet's.
        blocks: All blocks of the supernet.
        plan: What the group computes for every image; tensors of the device, or arrays for one image if all are of full
            size and no patch leaves.
        batch: Tokens before the group; unchanged.
        patch_token: (B, num_patches) which token holds each patch, -1 none; unchanged.
        with_key_mean: Whether to compute the mean keys of the last block.
        head_only: Whether nothing but the class tokens is needed of the last block.

    Returns:
        Tokens after the group, `patch_token` after it, and (capacity,) float32 keys of the last block, mean over heads
        and channels, or None if not asked for. With `head_only` there may be class tokens alone.
    """
    mode, indices, key_mean = config.token_mode, config.space.blocks(plan.group), None
    sizes, depth = _Sizes.of(config, plan, batch), len(indices)
    shapes = devices.tile_sizes(batch.x.device.type, batch.x.dtype)
    perms = sizes.rows(batch, 1 if plan.counts is not None else None)
    for i, index in enumerate(indices):
        block, last = cast(ElasticBlock, blocks[index]), i == depth - 1
        reducing, carries_keys = i == 0 and plan.counts is not None, with_key_mean and last
        alone = head_only and last and not (reducing or carries_keys)
        qkv, batch, scores = _attention_half(
            config, block, batch, sizes, i, perms[i], reducing and mode.uses_scores, shapes, alone
        )
        keys = None
        if carries_keys or (reducing and mode.metric == "keys"):
            keys = mean_keys(qkv, sizes.heads[i], batch, config.head_dim)
        key_mean = keys.mean(1) if carries_keys and keys is not None else None
        del qkv  # the MLP's hidden units take its memory
        if reducing:
            batch, patch_token, key_mean = reduce_tiles(config, plan, batch, scores, keys, key_mean, patch_token)
            perms = sizes.rows(batch)
        perm = perms[depth + i]
        if alone and perm is not None:
            perm = batch.image, batch.image
        batch = _mlp_half(config.act, block, batch, sizes, i, perm, plan.carries and last, shapes)
    return batch, patch_token, None if key_mean is None else key_mean.float()


def _attention_half(
    config: SupernetConfig,
    block: ElasticBlock,
    batch: TileBatch,
    sizes: _Sizes,
    i: int,
    perm: Rows | None,
    with_scores: bool,
    shapes: TileSizes,
    alone: bool,
) -> tuple[Tensor, TileBatch, Tensor | None]:
    """Residual attention; with `alone` of the class tokens, which are all that is handed on.

    Returns:
        (capacity, 3 * inner) queries, keys and values, the tokens, and (capacity,) class attention if asked for.
    """
    reads, widths, head = sizes.reads[i], sizes.widths[i], config.head_dim
    y = norm(batch, cast(nn.LayerNorm, block.norm1), reads, None if sizes.zoom is None else sizes.zoom[i])
    qkv = product(batch, y, block.qkv, perm, reads, sizes.qkv[i], shapes)
    del y
    looked = (config.space.max_heads, with_scores, config.class_token)
    out, scores = attention(batch, qkv, sizes.heads[i], head, *looked, shapes, first_tile=alone)
    if alone:
        batch, out = _class_tokens(batch, out)
        perm = None if perm is None else (batch.image, batch.image)
    # By our rules a block reads what it is wide, beyond which nothing is added anyway.
    there = batch.have if config.prance_embed_dim is None else torch.minimum(batch.have, reads)
    x = product(
        batch, out, block.proj, perm, sizes.inner[i], widths, shapes,
        residual=batch.x, have=there, padded=head % 16 == 0,
    )  # fmt: skip
    return qkv, replace(batch, x=x, have=widths), scores


def _class_tokens(batch: TileBatch, rows: Tensor) -> tuple[TileBatch, Tensor]:
    """The first token of every image as a batch of its own, and what `rows` (capacity, C) holds of them."""
    first = batch.cu[:-1]
    return TileBatch.of_rows(batch.x.index_select(0, first), batch.have), rows.index_select(0, first)


def _mlp_half(
    act: str,
    block: ElasticBlock,
    batch: TileBatch,
    sizes: _Sizes,
    i: int,
    perm: Rows | None,
    lln: bool,
    shapes: TileSizes,
) -> TileBatch:
    """Residual MLP, and the map over a group boundary."""
    widths, hidden, gives = sizes.widths[i], sizes.hidden[i], sizes.gives[i]
    zoom = None if sizes.zoom is None else sizes.zoom[i]
    y = norm(batch, cast(nn.LayerNorm, block.norm2), widths, zoom)
    h = product(batch, y, block.fc1, perm, widths, hidden, shapes, act=ACTIVATION_CODES[act])
    del y
    residual, there = batch.x, widths
    if lln and block.lln is not None:
        residual, there = product(batch, residual, block.lln, perm, widths, gives, shapes), gives
    x = product(batch, h, block.fc2, perm, hidden, gives, shapes, residual=residual, have=there)
    return replace(batch, x=x, have=gives)


def permutations(batch: TileBatch, first: Tensor, second: Tensor) -> list[Rows]:
    """Rows of the batch and their images, (capacity,) int32 each, the images by size: one order for each line of sizes.

    Args:
        batch: The tokens.
        first: (orders, B) int32.
        second: (orders, B) int32, which decides between images of the same `first`; below 2 ** 20.
    """
    orders, images = first.shape
    out = torch.empty(2, orders, len(batch.x), dtype=torch.int32, device=batch.x.device)
    kernels.permutation_kernel[(images, orders)](
        first, second, batch.lengths, batch.cu, out[0], out[1], images, len(batch.x),
        MOST=triton.next_power_of_2(batch.most), CHUNK=256,
    )  # fmt: skip
    return [*zip(out[0], out[1], strict=True)]


def as_rows(layer: nn.Linear | nn.LayerNorm) -> tuple[Tensor, Tensor]:
    """Weight and bias as kernels read them: row by row. Weights that lie in another order are copied in every call."""
    return layer.weight.contiguous(), layer.bias.contiguous()


def norm(
    batch: TileBatch,
    layer: nn.LayerNorm | None,
    width: Tensor,
    zoom: Tensor | None,
    first: bool = False,
) -> Tensor:
    """Layer norm over the channels that each image has: (capacity, C), or (B, C) of every image's first token.

    Args:
        batch: The tokens.
        layer: Gain, shift and epsilon; None: no gain, no shift, and 1e-5.
        width: (B,) int32 channels.
        zoom: (B,) float32 factors of the gain; None: ones.
        first: Whether only the first tokens are normalised; there are zeros beyond an image's channels then.
    """
    rows = len(batch.have) if first else len(batch.x)
    at_a_time = devices.tile_sizes(batch.x.device.type, batch.x.dtype).normed
    out = batch.x.new_empty(rows, batch.x.shape[1])
    gain, shift = (out, out) if layer is None else as_rows(layer)
    kernels.norm_kernel[(triton.cdiv(rows, at_a_time),)](
        batch.x, out, gain, shift, batch.cu if first else batch.image, width, batch.have,
        width if zoom is None else zoom, batch.total, rows, batch.x.stride(0), out.stride(0), out.shape[1],
        1e-5 if layer is None else layer.eps, FIRST=first, GAIN=layer is not None, ZOOM=zoom is not None,
        BLOCK=triton.next_power_of_2(out.shape[1]), ROWS=at_a_time, num_warps=4,
    )  # fmt: skip
    return out


def product(
    batch: TileBatch,
    a: Tensor,
    layer: nn.Linear,
    perm: Rows | None,
    kdim: Tensor,
    ndim: Tensor,
    shapes: TileSizes,
    act: int = 0,
    residual: Tensor | None = None,
    have: Tensor | None = None,
    padded: bool = True,
) -> Tensor:
    """A linear layer over the first `kdim` inputs and `ndim` outputs of each image.

    Args:
        batch: Which row belongs to which image.
        a: (capacity, C) operand.
        layer: Weights at full size, used in place.
        perm: Rows by size; None: all images have all inputs and outputs of the layer, and rows are taken as they lie.
        kdim: (B,) int32.
        ndim: (B,) int32.
        shapes: Of the tiles.
        act: Code of an activation of the result, 0 for none.
        residual: (capacity, C) is added after it; None: nothing.
        have: (B,) int32 channels of the residual that are there.
        padded: Whether `a` is zero up to the next multiple of 16 beyond an image's `kdim`.

    Returns:
        (capacity, out_features), zero up to the next multiple of 16 beyond an image's `ndim`.
    """
    capacity, features, whole = len(a), layer.out_features, padded and layer.in_features % 16 == 0
    # Reading value by value takes registers: half as deep with more warps, ptxas spills a tenth to a quarter (sm_90).
    depth, warps = (shapes.depth, shapes.warps) if whole else (min(shapes.depth, 32), max(shapes.warps, 8))
    out = torch.empty(capacity, features, device=a.device, dtype=a.dtype)
    weight, bias = as_rows(layer)
    other = out if residual is None else residual
    tiles_m, tiles_n = triton.cdiv(capacity, shapes.rows), triton.cdiv(features, shapes.columns)
    grid = (triton.cdiv(tiles_m, shapes.group) * shapes.group * tiles_n,)
    strides = a.stride(0), weight.stride(0), other.stride(0), out.stride(0)
    how: Any = {"ACT": act, "RESIDUAL": residual is not None, "PRECISION": precision(a.dtype)}
    how |= {"BM": shapes.rows, "BN": shapes.columns, "BK": depth, "GROUP": shapes.group}
    how |= {"num_warps": warps, "num_stages": shapes.stages}
    if perm is None:
        kernels.full_product_kernel[grid](
            a, weight, bias, other, out, batch.total, *strides, layer.in_features, features, tiles_n, **how
        )
    else:
        sizes = kdim, ndim, kdim if have is None else have
        kernels.product_kernel[grid](
            a, weight, bias, other, out, *perm, *sizes, batch.total, *strides, features, tiles_n, PAD=whole, **how
        )
    return out


def attention(
    batch: TileBatch,
    qkv: Tensor,
    heads: Tensor,
    head_dim: int,
    max_heads: int,
    with_scores: bool,
    class_token: bool,
    shapes: TileSizes,
    first_tile: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Softmax attention within every image: (capacity, max_heads * head_dim), and (capacity,) class attention if asked.

    Args:
        batch: Which rows belong to which image, and the sizes of its tokens.
        qkv: (capacity, 3 * max_heads * head_dim), ordered (head, q|k|v, channel).
        heads: (B,) int32.
        head_dim: Channels of a head.
        max_heads: Most heads of an image.
        with_scores: Whether to compute the class attention, mean over heads.
        class_token: Whether there is a class token; else the mean query takes its place.
        shapes: Of the tiles.
        first_tile: Whether the first queries of an image are enough: rows of the others then hold anything.
    """
    capacity = len(qkv)
    out = torch.empty(capacity, max_heads * head_dim, device=qkv.device, dtype=qkv.dtype)
    scores = torch.empty(max_heads, capacity, device=qkv.device) if with_scores else None
    log_size = None if batch.size is None else batch.size.log()
    # Tiles of an image side by side, as they read the same keys; only the first extent may be larger than 65,535.
    tiles = 1 if first_tile else triton.cdiv(batch.most, shapes.queries)
    grid = (len(heads) * tiles, max_heads)
    kernels.attention_kernel[grid](
        qkv, out, qkv if scores is None else scores, qkv if log_size is None else log_size, batch.cu, heads,
        head_dim**-0.5 * LOG2_E, qkv.stride(0), out.stride(0), capacity, tiles,
        SIZED=log_size is not None, SCORES=with_scores, CLASS=class_token, PRECISION=precision(qkv.dtype),
        BM=shapes.queries, BN=shapes.keys, HEAD=head_dim, BLOCK=max(triton.next_power_of_2(head_dim), 16),
        num_warps=4, num_stages=2,
    )  # fmt: skip
    if scores is None:
        return out, None
    return out, scores.sum(0)
