"""A batch of packed tokens whose sizes stand on the device."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from ..arrays import counting


@dataclass(frozen=True, eq=False)
class TileBatch:
    """Tokens of B images, image after image, in buffers of a fixed number of rows, the capacity.

    Attributes:
        x: (capacity, C) tokens; rows beyond the last image's, and channels beyond an image's own, hold anything.
        cu: (B + 1,) int32, first row of every image, and the number of rows in use.
        image: (capacity,) int32, the image of every row in use.
        have: (B,) int32, channels that an image's tokens have.
        lengths: (B,) int64 tokens per image.
        size: (capacity,) float32 patches that a token stands for; None: one each.
        most: More tokens than that no image has.
    """

    x: Tensor
    cu: Tensor
    image: Tensor
    have: Tensor
    lengths: Tensor
    size: Tensor | None
    most: int

    @classmethod
    def of_rows(cls, x: Tensor, have: Tensor) -> TileBatch:
        """A batch of one token an image, (B, C), of which (B,) int32 channels are there."""
        each, ones = _one_token_each(len(x), x.device)
        return cls(x, each, each[:-1], have, ones, None, 1)

    @property
    def total(self) -> Tensor:
        """(1,) int32 rows in use."""
        return self.cu[-1:]

    def padded(self) -> tuple[Tensor, Tensor]:
        """(B, most) bool, which places of padded sequences hold a token, and int64, the row that stands at each.

        Padding repeats an image's last row.
        """
        lengths, position = self.lengths[:, None], counting(self.most, self.cu.device)
        return position < lengths, self.cu[:-1, None] + torch.minimum(position, lengths - 1)


@cache  # without a bound, since CUDA graphs hold the addresses: as many as there are batch sizes
def _one_token_each(images: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(images + 1,) int32 first rows of images with one token each, and (images,) int64 how many tokens that is."""
    each = torch.arange(images + 1, dtype=torch.int32, device=device)
    return each, torch.ones(images, dtype=torch.int64, device=device)


def offsets(lengths: Tensor) -> Tensor:
    """(B + 1,) int32 first row of every image of these lengths (B,), and the number of rows."""
    cu = torch.zeros(len(lengths) + 1, dtype=torch.int32, device=lengths.device)
    torch.cumsum(lengths, 0, dtype=torch.int32, out=cu[1:])
    return cu


def images_of_rows(cu: Tensor, capacity: int) -> Tensor:
    """(capacity,) int32 image of every row, the last image's beyond the rows in use."""
    row = torch.arange(capacity, device=cu.device, dtype=torch.int32)
    return torch.searchsorted(cu[1:-1], row, right=True, out_int32=True)
