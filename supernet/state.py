"""An inference that has been run up to a group boundary, as a value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from .ragged import Ints, rows_of, starts, take_rows


@dataclass(frozen=True, eq=False)
class InferenceState:
    """B images between two groups. Never mutated; index it by image with `state[indices]`.

    Attributes:
        group: The group of blocks to run next.
        tokens: (T, C) packed, image after image, each with its class token first.
        num_tokens: (B,) tokens per image, class token included.
        source: (T,) int64, patch of the image a token came from (row-major), -1 for class tokens.
        embed_dim: (B,) width of the last block that ran.
        macs: (B,) multiply-accumulates spent so far.
    """

    group: int
    tokens: Tensor
    num_tokens: Ints
    source: Tensor
    embed_dim: Ints
    macs: Ints

    def __len__(self) -> int:
        return len(self.num_tokens)

    def __getitem__(self, index: Sequence[int] | Ints | Tensor | slice) -> InferenceState:
        images = np.arange(len(self))[np.asarray(index) if not isinstance(index, slice) else index].reshape(-1)
        rows = rows_of(images, self.num_tokens)
        return InferenceState(
            self.group,
            take_rows(self.tokens, rows),
            self.num_tokens[images],
            take_rows(self.source, rows),
            self.embed_dim[images],
            self.macs[images],
        )

    @property
    def class_token(self) -> Tensor:
        """(B, C) class tokens."""
        if len(self.source) == len(self) * int(self.num_tokens[0]) and self.num_tokens.min() == self.num_tokens.max():
            return self.tokens.view(len(self), -1, self.tokens.shape[1])[:, 0]
        return take_rows(self.tokens, starts(self.num_tokens))

    def detach(self) -> InferenceState:
        """The same values, cut from the autograd graph."""
        return replace(self, tokens=self.tokens.detach())

    def kept(self, num_patches: int) -> Tensor:
        """(B, num_patches) bool: which patches of the image are still there."""
        mask = torch.zeros(len(self), num_patches + 1, dtype=torch.bool, device=self.source.device)
        image = torch.from_numpy(np.repeat(np.arange(len(self)), self.num_tokens)).to(self.source.device)
        mask[image, self.source] = True  # class tokens, -1, land in the spare last column
        return mask[:, :-1]
