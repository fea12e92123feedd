"""Names for the types of numpy arrays, and arithmetic that runs on them and on tensors alike.

Sizes of images (tokens, widths, costs) are numpy arrays where the CPU plans with them, and tensors where a GPU does and
nobody may wait for it. What derives one size from another is written once, for both.
"""

from __future__ import annotations

from functools import cache, lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Ints = NDArray[np.int64]
"""Whole numbers: widths, counts, indices."""

Floats = NDArray[np.float64]
"""Numbers that are computed with on the CPU: rates, shares, costs. Tensors of a network are single precision."""

Bools = NDArray[np.bool_]
"""Flags, one per image or place."""


STAGED = 2**16
"""Most bytes that CUDA takes from pageable memory at once; with more, a copy may wait for the device."""


def namespace(array: Any) -> Any:
    """The module, numpy or torch, whose functions take this array."""
    return torch if isinstance(array, Tensor) else np


def whole(values: Any) -> Any:
    """Numbers cut to int64, in an array of the same kind."""
    return values.long() if isinstance(values, Tensor) else values.astype(np.int64)


def constant(values: tuple[float, ...], like: Any) -> Any:
    """Numbers as a read-only array of the kind of `like`, on its device; int64 if all are of type int, else float64."""
    if not isinstance(like, Tensor):
        return _on_host(values, all(isinstance(v, int) for v in values))
    return _on_device(values, all(isinstance(v, int) for v in values), like.device)


@lru_cache(maxsize=256)
def _on_host(values: tuple[float, ...], integers: bool) -> NDArray[Any]:
    array = np.array(values, dtype=np.int64 if integers else np.float64)
    array.setflags(write=False)
    return array


@cache  # without a bound: CUDA graphs hold their addresses, and there are few, the sizes of search spaces
def _on_device(values: tuple[float, ...], integers: bool, device: torch.device) -> Tensor:
    # Kept, since a copy to the device would wait for it, and cannot be part of a CUDA graph. Whether they are integers
    # is part of the key, since 8 and 8.0 are one to a dictionary.
    return torch.tensor(values, dtype=torch.int64 if integers else torch.float64, device=device)


@cache  # without a bound, as above: there are few numbers of channels and of places
def counting(count: int, device: torch.device) -> Tensor:
    """(count,) int64: 0, 1, 2, ... on a device, made once."""
    return torch.arange(count, device=device)


def sent(values: NDArray[Any], device: torch.device) -> Tensor:
    """An array as a tensor on a device, which is not waited for; on a CPU it is the same memory."""
    tensor = torch.from_numpy(np.ascontiguousarray(values))
    if device.type == "cuda" and tensor.nbytes > STAGED:
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def most(values: Any, bound: int) -> int:
    """The largest of some sizes; of those on a device, which nobody may wait for, the bound that is known of them."""
    return bound if isinstance(values, Tensor) else int(values.max())


def evenly(total: int, count: int) -> Ints:
    """At most `count` of `total` places, evenly spaced from the first to the last."""
    return np.unique(np.linspace(0, total - 1, min(count, total)).round().astype(np.int64))
