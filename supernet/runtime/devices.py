"""What calls, copies and padding cost on a device: the numbers by which the runtime decides how to cut a batch.

They change how fast a batch is computed, never what comes out of it (beyond the last bits of sums in another order).
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class DeviceCosts:
    """Costs on one type of device, in multiply-accumulates unless said otherwise.

    Attributes:
        call: One more call of attention, over all channels; in multiply-accumulates of query-key products.
        copy: A token that is copied into a padded sequence of attention, per channel.
        segment: One more segment of an MLP: a matrix product for images of a hidden width of their own.
        piece: One more segment of either half of a block, where all images could be computed in one piece with masks.
        shared_length: Tokens of the sequences that images no longer than that share in attention; 1: none share.
        working_set: Most numbers in a temporary tensor; larger layers are computed in parts.
    """

    call: int
    copy: int
    segment: int
    piece: int
    shared_length: int
    working_set: int


DEVICES = {
    # Measured on x86-64 with one and two threads in float32, on Digits and DeiT-Tiny (docs/runtime.md):
    # - shared_length: the fused kernel takes 2.2 microseconds a head for 15 tokens and 0.8 for 16, and a call for each
    #   of the 16 lengths of Digits would cost more than the arithmetic;
    # - piece: at Digits' sizes 64 different images take as long in one piece as in 45 segments;
    # - working_set: larger tensors leave the caches, and beyond 32 MB the allocator asks the system for new pages each
    #   time, which made the full network 8 to 20 % slower.
    "cpu": DeviceCosts(
        call=800_000, copy=64, segment=2_000_000, piece=800_000, shared_length=32, working_set=2_000_000
    ),
    # Guesses, nothing is measured yet: calls cost much, padding and copies little, and larger tensors are faster.
    "cuda": DeviceCosts(
        call=200_000_000, copy=0, segment=200_000_000, piece=0, shared_length=1, working_set=1_000_000_000
    ),
}
"""Costs by type of device."""


def device_costs(device_type: str) -> DeviceCosts:
    """Costs on a type of device (`torch.device.type`); of one that is not listed, those of "cuda"."""
    return DEVICES.get(device_type, DEVICES["cuda"])


def working_rows(channels: int, device_type: str) -> int:
    """Rows of so many channels that are computed at a time."""
    return max(device_costs(device_type).working_set // channels, 1)


def current(device: torch.device) -> AbstractContextManager[object]:
    """Around launches of Triton, streams and graphs, which are on the current GPU, wherever their tensors lie."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


@dataclass(frozen=True)
class TileSizes:
    """How kernels of the tiled runtime cut their work.

    Attributes:
        rows: Tokens of a tile of a product.
        columns: Its outputs.
        depth: Inputs that are multiplied at a time.
        group: Tiles over the tokens that are run one after the other, so that they find the weights in the cache.
        warps: Warps of a product's program.
        stages: Loads of a product that are under way at a time.
        queries: Tokens of a tile of attention.
        keys: Tokens that it looks at at a time.
        normed: Tokens of a tile of a layer norm, and of those that are moved at a time when others leave.
    """

    rows: int
    columns: int
    depth: int
    group: int
    warps: int
    stages: int
    queries: int
    keys: int
    normed: int


def tile_sizes(device_type: str, dtype: torch.dtype) -> TileSizes:
    """Tiles for tokens of a type on a type of device; "cpu" is Triton's interpreter."""
    if device_type == "cpu":
        return TileSizes(rows=64, columns=64, depth=32, group=2, warps=4, stages=1, queries=64, keys=32, normed=64)
    if dtype == torch.float32:
        # Half the depth: twice the bytes, and shared memory is as large as before.
        return TileSizes(rows=128, columns=128, depth=32, group=8, warps=8, stages=2, queries=64, keys=32, normed=4)
    # On an H100 in bf16, DeiT-S: 8.3 ms for 256 images; 64 rows 8.9, 256 rows 8.8, 64 columns 9.2, 256 columns 10.2
    # (with four warps; the prototype of these kernels).
    return TileSizes(rows=128, columns=128, depth=64, group=8, warps=4, stages=3, queries=64, keys=64, normed=4)
