"""Computing images of different lengths and widths in one batch, without masks over what is not there.

Tokens of B images are packed into one (T, C) buffer, image after image. Linear layers run once per distinct width
over a contiguous slice of rows; attention runs over chunks of images of (nearly) equal length.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from ..arrays import Bools, Ints


@dataclass(frozen=True, eq=False)
class Packed:
    """Tokens of B images, image after image.

    Attributes:
        x: (T, C); channels beyond an image's own are zero.
        lengths: (B,) tokens per image.
        size: (T,) patches that a token stands for; None: one each.
        images: (B,) which image of the plan stands at each place.
    """

    x: Tensor
    lengths: Ints
    size: Tensor | None
    images: Ints

    def listed(self, order: Ints | None) -> tuple[Packed, Ints | None]:
        """The images in another order, None the same one, with their tokens as they lie; and at which rows these do."""
        if order is None:
            return self, None
        rows = rows_of(order, self.lengths)
        size = None if self.size is None else take_rows(self.size, rows)
        return Packed(self.x, self.lengths[order], size, self.images[order]), rows

    def holding(self, x: Tensor) -> Packed:
        """The same images with other tokens."""
        return Packed(x, self.lengths, self.size, self.images)

    def sorted_by(self, order: Ints | None) -> Packed:
        """The images in another order, None the same one."""
        listed, rows = self.listed(order)
        return self if rows is None else listed.holding(take_rows(self.x, rows))


def starts(lengths: Ints) -> Ints:
    """First row of every image in the packed buffer: (B,)."""
    out = np.zeros_like(lengths)
    np.cumsum(lengths[:-1], out=out[1:])
    return out


def places(begins: Ints, counts: Ints, longest: int) -> tuple[Bools, Ints]:
    """Which places of padded sequences hold a token, and the row that stands at each; padding repeats the last one.

    Args:
        begins: (S,) first row of each sequence.
        counts: (S,) rows of each.
        longest: Places of each.

    Returns:
        Two (S, longest) arrays.
    """
    position = np.arange(longest)
    return position < counts[:, None], begins[:, None] + np.minimum(position, counts[:, None] - 1)


class Padding:
    """Packed tokens as sequences of one length; where all have that length anyway, nothing is copied.

    Args:
        lengths: (B,) tokens per image.
        device: Of the tokens.

    Attributes:
        inside: (B, longest) bool, which places hold a token; None: all do.
    """

    def __init__(self, lengths: Ints, device: torch.device) -> None:
        self._shape = len(lengths), int(lengths.max())
        self.inside: Tensor | None = None
        if int(lengths.min()) < self._shape[1]:
            real, index = places(starts(lengths), lengths, self._shape[1])
            self.inside = torch.from_numpy(real).to(device)
            self._index = torch.from_numpy(index.ravel()).to(device)
            self._rows = torch.from_numpy(np.flatnonzero(real)).to(device)

    def padded(self, values: Tensor) -> Tensor:
        """(T, ...) of tokens as (B, longest, ...); padding repeats an image's last."""
        rows = values if self.inside is None else values.index_select(0, self._index)
        return rows.unflatten(0, self._shape)

    def packed(self, padded: Tensor) -> Tensor:
        """(B, longest, ...) as (T, ...): inverse of `padded`."""
        flat = padded.flatten(0, 1)
        return flat if self.inside is None else flat.index_select(0, self._rows)


def rows_of(images: Ints, lengths: Ints) -> Ints:
    """Packed rows of `images`, in that order, in a buffer of images of the given lengths."""
    n = lengths[images]
    return np.repeat(starts(lengths)[images] - starts(n), n) + np.arange(n.sum())


def row_images(lengths: Ints, device: torch.device) -> Tensor:
    """(T,) which image each packed row belongs to."""
    return torch.from_numpy(np.repeat(np.arange(len(lengths)), lengths)).to(device)


def take_rows(x: Tensor, rows: Ints) -> Tensor:
    """Rows of a packed (T, ...) buffer."""
    return x.index_select(0, torch.from_numpy(rows).to(x.device))


def runs(*keys: Ints) -> list[tuple[int, int]]:
    """Half-open ranges [i, j) over which all (B,) keys are constant."""
    if len(keys[0]) == 1:
        return [(0, 1)]
    changes = np.zeros(len(keys[0]), dtype=bool)
    changes[0] = True
    for key in keys:
        changes[1:] |= key[1:] != key[:-1]
    bounds = [*np.flatnonzero(changes).tolist(), len(changes)]
    return list(pairwise(bounds))


def first_rows(lengths: Ints, count: int) -> Ints:
    """(B * count,) rows of the first `count` tokens of every image in the packed buffer."""
    rows: Ints = (starts(lengths)[:, None] + np.arange(count)).ravel()
    return rows
