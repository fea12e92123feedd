"""Numbers between users and the environment: numpy arrays on the host or tensors on a device, each in one go."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from supernet.arrays import sent

_ALIGNMENT = 8


def as_array(value: Any) -> NDArray[Any]:
    """An array of whatever numbers a user may pass, tensors on any device included.

    Raises:
        ValueError: If it is ragged.
    """
    if isinstance(value, Tensor):
        value = value.detach()
        return (value.double() if value.is_floating_point() else value).cpu().numpy()
    try:
        return np.asarray(value)
    except ValueError as e:
        raise ValueError(f"{value!r} is no array of numbers ({e}).") from e


def to_host(tree: Any) -> Any:
    """A nest of dicts, tuples and lists with its tensors as numpy arrays, fetched from a device in a single copy."""
    tensors: list[Tensor] = []

    def fetch(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            if leaf.device.type == "cpu":
                return leaf.detach().numpy()
            tensors.append(leaf.detach())
        return leaf

    tree = _mapped(tree, fetch)
    if not tensors:
        return tree
    offsets = _offsets([t.nbytes for t in tensors])
    packed = torch.empty(offsets[-1], dtype=torch.uint8, device=tensors[0].device)
    for tensor, offset in zip(tensors, offsets, strict=False):
        packed[offset : offset + tensor.nbytes].view(tensor.dtype).copy_(tensor.reshape(-1), non_blocking=True)
    fetched = packed.cpu()
    arrays = iter(
        [
            fetched[offset : offset + tensor.nbytes].view(tensor.dtype).view(tensor.shape).numpy()
            for tensor, offset in zip(tensors, offsets, strict=False)
        ]
    )
    return _mapped(tree, lambda leaf: next(arrays) if isinstance(leaf, Tensor) else leaf)


def _offsets(sizes: list[int]) -> list[int]:
    """Where buffers of so many bytes begin in a common one, and where that ends."""
    out: list[int] = np.cumsum([0, *(-(-size // _ALIGNMENT) * _ALIGNMENT for size in sizes)]).tolist()
    return out


def to_device(tree: Any, device: torch.device) -> Any:
    """A nest of dicts and tuples with its numpy arrays as tensors on `device`, sent there in a single copy.

    Floating-point arrays become float32, which is what networks compute with and all that some devices have. Every
    tensor can be changed without the others, and autograd can save it, even if the caller is in inference mode.
    """
    arrays: list[NDArray[Any]] = []

    def note(leaf: Any) -> Any:
        if isinstance(leaf, np.ndarray):
            arrays.append(leaf.astype(np.float32 if np.issubdtype(leaf.dtype, np.floating) else leaf.dtype))
        return leaf

    _mapped(tree, note)
    with torch.inference_mode(False):
        tensors = iter([torch.from_numpy(a) for a in arrays] if device.type == "cpu" else sent_together(arrays, device))

        def converted(leaf: Any) -> Any:
            if isinstance(leaf, np.ndarray):
                return next(tensors)
            return leaf.float() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf

        return _mapped(tree, converted)


def sent_together(arrays: list[NDArray[Any]], device: torch.device) -> list[Tensor]:
    """The arrays as tensors on a device, sent there in a single copy; none is a view of another."""
    offsets = _offsets([a.nbytes for a in arrays])
    packed = np.empty(offsets[-1], dtype=np.uint8)
    for array, offset in zip(arrays, offsets, strict=False):
        packed[offset : offset + array.nbytes].view(array.dtype)[:] = array.ravel()
    received = sent(packed, device).untyped_storage()
    return [_placed(array, received, offset) for array, offset in zip(arrays, offsets, strict=False)]


def _placed(array: NDArray[Any], memory: torch.UntypedStorage, offset: int) -> Tensor:
    """The tensor that lies at a byte of a memory: no view of another, for autograd, and nothing is launched for it."""
    dtype = torch.from_numpy(array[:0]).dtype
    strides = [stride // array.itemsize for stride in np.ascontiguousarray(array).strides]
    return torch.empty(0, dtype=dtype, device=memory.device).set_(
        memory, offset // dtype.itemsize, array.shape, strides
    )


def _mapped(tree: Any, convert: Callable[[Any], Any]) -> Any:
    if isinstance(tree, dict):
        return {key: _mapped(value, convert) for key, value in tree.items()}
    if isinstance(tree, tuple | list):
        return type(tree)(_mapped(value, convert) for value in tree)
    return convert(tree)
