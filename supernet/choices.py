"""Whether sizes and keep rates are those that a search space has."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .config import SearchSpace


def allowed_values(name: str, values: Tensor, allowed: tuple[float, ...], note: str = "") -> Tensor:
    """The (B, blocks) values, each of which is allowed; what was rounded to float32 is what it was before.

    Args:
        name: What they are, for the message.
        values: On the CPU.
        allowed: All that there are.
        note: The end of the message.

    Raises:
        ValueError: With the value, its place and what is allowed.
    """
    # numpy's calls cost a fraction of torch's, and this is asked in every group of every inference.
    found, known = values.double().numpy()[..., None], np.array(allowed)
    same = found == known
    bad = ~same.any(-1)
    if not bad.any():
        return values
    if values.is_floating_point():
        with np.errstate(over="ignore"):
            same |= bad[..., None] & (found.astype(np.float32) == known.astype(np.float32))
        bad = ~same.any(-1)
    if bad.any():
        image, block = (int(v) for v in np.argwhere(bad)[0])
        raise ValueError(
            f"{name}={values[image, block].item()} of image {image}, block {block} is not one of {list(allowed)}{note}."
        )
    return torch.from_numpy(known[same.argmax(-1)])


def check_keep_rate(keep_rate: Tensor) -> None:
    """Checks that keep rates lie in (0, 1].

    Raises:
        ValueError: If one does not.
    """
    bad = ~((keep_rate > 0) & (keep_rate <= 1))
    if bool(bad.any()):
        raise ValueError(f"keep_rate holds {keep_rate[bad].tolist()[:4]}; every entry must lie in (0, 1].")


def rates_shape(space: SearchSpace) -> tuple[int, ...]:
    """Shape of the keep rates of one decision: none of its own where it is one."""
    return () if space.num_rates == 1 else (space.num_rates,)


def check_rates_shape(shape: tuple[int, ...], space: SearchSpace, leading: tuple[int, ...]) -> None:
    """Checks the shape of keep rates, `leading` and that of one decision.

    Raises:
        ValueError: If it is another.
    """
    if shape != leading + rates_shape(space):
        raise ValueError(
            f"keep_rate has the shape {shape}; token_mode={space.token_mode!r} takes {leading + rates_shape(space)}."
        )
