"""What a batch takes of a GPU's memory, and what to say when it is too much."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..config import SupernetConfig


def bytes_per_image(config: SupernetConfig, dtype: torch.dtype) -> int:
    """About what a forward pass holds of one image at its fullest point: tokens, their norm and a hidden layer, or
    queries, keys, values and the attention's result."""
    d, space = config.embed_dim, config.space
    inner, hidden = space.max_heads * config.head_dim, int(d * space.mlp_ratios[-1])
    # Tokens before and after, since a state is a value: the one that a step begins with stays; and copies of a graph.
    channels = 6 * d + max(4 * inner, hidden)
    return config.num_tokens * channels * dtype.itemsize


@contextmanager
def said_if_too_large(config: SupernetConfig, dtype: torch.dtype, device: torch.device, batch: int) -> Iterator[None]:
    """Turns an exhausted GPU into an error that says how many images fit.

    Args:
        config: The supernet's.
        dtype: Of its tokens.
        device: The GPU.
        batch: Images at a time.

    Raises:
        RuntimeError: Instead of `torch.cuda.OutOfMemoryError`.
    """
    try:
        yield
    except torch.cuda.OutOfMemoryError as e:
        # What was computed when the memory ran out is free again: only the traceback still holds it.
        traceback.clear_frames(e.__traceback__)
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info(device)
        fit = free // bytes_per_image(config, dtype)
        raise RuntimeError(
            f"{batch} images at a time are too many for {device}, {free / 2**30:.1f} of whose {total / 2**30:.1f} GiB "
            f"are free: about {fit} fit. Take fewer (num_envs), a smaller cache_mb, or dtype='bfloat16'."
        ) from e
