"""Numbers between users and the environment: numpy arrays on the host or tensors on a device, each in one go."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

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
    """A nest of dicts and tuples with its tensors as numpy arrays."""
    return _mapped(tree, lambda leaf: leaf.detach().cpu().numpy() if isinstance(leaf, Tensor) else leaf)


def to_device(tree: Any, device: torch.device) -> Any:
    """A nest of dicts and tuples with its numpy arrays as tensors on `device`, sent there in a single copy.

    Floating-point arrays become float32, which is what networks compute with and all that some devices have.
    """
    arrays: list[NDArray[Any]] = []

    def note(leaf: Any) -> Any:
        if isinstance(leaf, np.ndarray):
            arrays.append(leaf.astype(np.float32) if np.issubdtype(leaf.dtype, np.floating) else leaf)
        return leaf

    _mapped(tree, note)
    offsets = np.cumsum([0, *(-(-a.nbytes // _ALIGNMENT) * _ALIGNMENT for a in arrays)]).tolist()
    packed = np.empty(offsets[-1], dtype=np.uint8)
    for array, offset in zip(arrays, offsets, strict=False):
        packed[offset : offset + array.nbytes].view(array.dtype)[:] = array.ravel()
    sent = torch.from_numpy(packed).to(device)
    tensors = iter(
        [
            sent[offset : offset + array.nbytes].view(torch.from_numpy(array[:0]).dtype).view(array.shape)
            for array, offset in zip(arrays, offsets, strict=False)
        ]
    )
    return _mapped(tree, lambda leaf: next(tensors) if isinstance(leaf, np.ndarray) else leaf)


def _mapped(tree: Any, convert: Callable[[Any], Any]) -> Any:
    if isinstance(tree, dict):
        return {key: _mapped(value, convert) for key, value in tree.items()}
    if isinstance(tree, tuple):
        return tuple(_mapped(value, convert) for value in tree)
    return convert(tree)
