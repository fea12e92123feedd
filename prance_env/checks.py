"""What callers pass to `reset` and `step`, and in place of settings, checked."""

from __future__ import annotations

import reprlib
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from supernet.arrays import Floats, Ints

from .arrays import as_array
from .settings import EnvSettings


def check_settings(settings: Any) -> None:
    """Checks that something is what an environment was, or is to be, made with.

    Raises:
        TypeError: If it is something else, such as an id or an environment; the message says how to come by settings.
    """
    if not isinstance(settings, EnvSettings):
        raise TypeError(
            f"settings={reprlib.repr(settings)} must be EnvSettings, which say what split is meant: "
            "EnvSettings.from_id('Prance-Digits-v0', split='test'), or env.unwrapped.settings of an environment."
        )


def check_options(
    options: dict[str, Any] | None, settings: EnvSettings, shape: tuple[int, ...], other: tuple[str, ...] = ()
) -> tuple[Ints | None, Floats | None]:
    """The images and the prices that `reset(options=)` asks for, None where it does not.

    Args:
        options: What the user passed.
        settings: What the environment was made with.
        shape: Shape that images and prices must have.
        other: Further keys that are allowed.

    Raises:
        ValueError: If there is an unknown key, or a value has another shape or lies out of range.
    """
    conditioning = settings.conditioning
    allowed = ["index", *(["macs_weight"] if conditioning else []), *other]
    if options is not None and not isinstance(options, dict):
        raise ValueError(f"options={options!r} must be None or a dict with keys among {allowed}.")
    options = options or {}
    if unknown := [key for key in options if key not in allowed]:
        hint = " (macs_weight needs an environment with cost_conditioning)" if "macs_weight" in unknown else ""
        raise ValueError(f"options has the unknown keys {unknown}; allowed are {allowed}{hint}.")
    index, price = options.get("index"), options.get("macs_weight")
    return (
        None if index is None else check_index(index, shape),
        None if price is None or conditioning is None else conditioning.check(price, shape),
    )


def check_index(index: Any, shape: tuple[int, ...]) -> Ints:
    """`options["index"]` as an array.

    Raises:
        ValueError: If its shape is not `shape` or it holds no whole numbers.
    """
    array = as_array(index)
    if array.shape != shape or not np.issubdtype(array.dtype, np.integer) or array.dtype == np.uint64:
        raise ValueError(
            f"options['index']={index!r} has the shape {array.shape} and type {array.dtype}; "
            f"expected whole numbers of shape {shape}."
        )
    return array.astype(np.int64)


def check_actions_of(action: Any, shape: tuple[int, ...], device: torch.device) -> NDArray[np.floating] | Tensor:
    """`check_action_shape`, but that a tensor which lies on the device stays there.

    Raises:
        ValueError: If its shape is not `shape` or it holds no real numbers.
    """
    if not isinstance(action, Tensor) or action.device.type == "cpu" or action.device.type != device.type:
        return check_action_shape(action, shape)
    if tuple(action.shape) != shape or action.is_complex() or action.dtype == torch.bool:
        raise ValueError(f"The action is {action.dtype} of shape {tuple(action.shape)}; expected numbers of {shape}.")
    return action


def check_action_shape(action: Any, shape: tuple[int, ...]) -> NDArray[np.floating]:
    """The action, an array or a tensor on any device, as an array.

    Raises:
        ValueError: If its shape is not `shape` or it holds no real numbers.
    """
    array = as_array(action)
    numbers = np.issubdtype(array.dtype, np.floating) or np.issubdtype(array.dtype, np.integer)
    if array.shape != shape or not numbers:
        raise ValueError(f"The action is {array.dtype} of shape {array.shape}; expected numbers of shape {shape}.")
    return array
