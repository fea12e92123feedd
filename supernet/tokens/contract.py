"""What a user's token mode must give; wrong places would mix the tokens of different images."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..arrays import Ints
from ..eager import values_are_known

OURS = __name__.partition(".")[0] + "."


def check_kinds(where: Any, answer: Any, soft: bool, threshold: bool) -> None:
    """Checks of what kind the answer of a mode is; its numbers are not looked at.

    Args:
        where: The mode's function or module, for the message.
        answer: What it gave.
        soft: See `TokenMode`.
        threshold: See `TokenMode`.

    Raises:
        ValueError: If it is no tuple of as many as it should be, or the first of them is no tensor of places or shares.
    """
    if not isinstance(answer, tuple | list) or len(answer) != 2 + threshold:
        what = f"{len(answer)} things" if isinstance(answer, tuple | list) else f"one {type(answer).__name__}"
        raise ValueError(
            f"{where!r} gave {what}; with threshold={threshold} a token mode gives "
            f"{'places, weights and counts' if threshold else 'places and weights, such as (places, None)'}."
        )
    into = answer[0]
    if not isinstance(into, Tensor):
        raise ValueError(f"{where!r} gave places of the type {type(into).__name__}; expected a tensor.")
    if (into.ndim == 3) != soft:
        raise ValueError(
            f"{where!r} gave the shape {tuple(into.shape)}; with soft={soft} a token mode gives "
            f"{'shares (B, N, K)' if soft else 'places (B, N)'}. Register it with soft={not soft}."
        )
    if not (into.is_floating_point() if soft else into.dtype == torch.int64):
        raise ValueError(
            f"{where!r} gave {into.dtype}; with soft={soft} a token mode gives "
            f"{'shares that are floats' if soft else 'places that are torch.int64, as .long() makes them'}."
        )


def check_places(where: Any, into: Tensor, weight: Tensor | None, lengths: Any, counts: Any, prefix: int) -> None:
    """Checks the places of a hard mode, where their values may be looked at; not those of this package's own modes.

    Args:
        where: The mode's function or module, for the message.
        into: (B, N) places.
        weight: (B, N), None if no two tokens are to come together.
        lengths: (B,) or (1,) tokens per image; an int is one for all.
        counts: (B, stages) or (1, stages) tokens to remain; a tuple of ints is one for all.
        prefix: First tokens that are no patches.

    Raises:
        ValueError: If an image's places are not 0 to its count - 1, each of them taken, with the prefix as it was; or
            two tokens have one place and no weights.
    """
    if not values_are_known(into) or isinstance(lengths, Tensor) or isinstance(counts, Tensor):
        return
    made_of = where.func if isinstance(where, partial) else where
    if str(getattr(made_of, "__module__", "")).startswith(OURS):
        return  # the tests have looked at all of them
    asked: Ints = np.atleast_2d(counts)[:, -1]
    places = into.detach().cpu().numpy()
    batch, longest = places.shape
    position = np.arange(longest)
    places = np.where(position < np.atleast_1d(lengths)[:, None], places, -1)
    taken = np.zeros((batch, longest + 1), dtype=np.int64)
    np.add.at(taken, (np.arange(batch)[:, None], np.clip(places, -1, longest - 1)), 1)
    taken = taken[:, :-1]
    given = (taken > 0).sum(1)
    moved = (places[:, :prefix] != position[:prefix]).any(1) | (taken[:, :prefix] != 1).any(1)
    wrong = (given != asked) | (places.max(1) >= asked) | moved
    if weight is None:
        wrong |= (taken > 1).any(1)
    if wrong.any():
        row = int(wrong.argmax())
        used = np.unique(places[row][places[row] >= 0]).tolist()
        shown = f"{used[:8]}{'...' if len(used) > 8 else ''}"
        alone = ", and no place by two tokens without weights" if weight is None else ""
        raise ValueError(
            f"{where!r} gave image {row} of the {batch} that it was given {int(given[row])} tokens, in the places "
            f"{shown}; asked were {int(asked[row % len(asked)])}: every place from 0 on must be taken, the first "
            f"{prefix} by the first {prefix} tokens alone{alone}."
        )
