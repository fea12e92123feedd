"""An inference that has been run up to a group boundary, as a value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from .arrays import Ints
from .runtime.packing import rows_of, starts, take_rows


@dataclass(frozen=True, eq=False)
class InferenceState:
    """B images between two groups. Never mutated; index it by image with `state[indices]`.

    Attributes:
        group: The group of blocks to run next.
        tokens: (T, C) packed, image after image, each with its class token and registers first.
        num_tokens: (B,) tokens per image, class token and registers included.
        size: (T,) float32, how many patches a token stands for; None: one each (modes without sizes always).
        patch_token: (B, num_patches) int64, position among its image's tokens of the one that holds the patch (patches
            begin at `config.num_prefix_tokens`), -1 if the patch was dropped.
        embed_dim: (B,) width of the last block that ran, full before the first.
        token_dim: (B,) active channels of the tokens: what the last block handed on.
        macs: (B,) multiply-accumulates spent so far.
        key_mean: (T,) float32, mean over heads and channels of the last block's keys, what the authors' selector
            observes; None unless `Supernet.begin` was asked for it.
    """

    group: int
    tokens: Tensor
    num_tokens: Ints
    size: Tensor | None
    patch_token: Tensor
    embed_dim: Ints
    token_dim: Ints
    macs: Ints
    key_mean: Tensor | None = None

    def __len__(self) -> int:
        return len(self.num_tokens)

    @property
    def host(self) -> InferenceState:
        """The same inference with its sizes on the host: this."""
        return self

    def __getitem__(self, index: Sequence[int] | Ints | Tensor | slice) -> InferenceState:
        """The images `index`, in that order; an int gives a batch of one.

        Raises:
            IndexError: If an image does not exist, or none is selected: there is no inference of nothing.
        """
        chosen = index if isinstance(index, slice) else np.asarray(index)
        empty = not isinstance(chosen, slice) and chosen.size == 0
        images = np.empty(0, dtype=np.int64) if empty else np.arange(len(self))[chosen].reshape(-1)
        if not len(images):
            raise IndexError(f"state[{index!r}] selects none of the {len(self)} images; a state holds one or more.")
        rows = rows_of(images, self.num_tokens)
        return InferenceState(
            self.group,
            take_rows(self.tokens, rows),
            self.num_tokens[images],
            None if self.size is None else take_rows(self.size, rows),
            take_rows(self.patch_token, images),
            self.embed_dim[images],
            self.token_dim[images],
            self.macs[images],
            None if self.key_mean is None else take_rows(self.key_mean, rows),
        )

    @property
    def class_token(self) -> Tensor:
        """(B, C) first tokens."""
        return self.token(0)

    def token(self, position: int) -> Tensor:
        """(B, C) token at that position of every image."""
        if len(self) == 1:
            return self.tokens[position : position + 1]
        if self.num_tokens.min() == self.num_tokens.max():
            return self.tokens.view(len(self), -1, self.tokens.shape[1])[:, position]
        return take_rows(self.tokens, starts(self.num_tokens) + position)

    def detach(self) -> InferenceState:
        """The same values, cut from the autograd graph."""
        size, key_mean = (None if v is None else v.detach() for v in (self.size, self.key_mean))
        return replace(self, tokens=self.tokens.detach(), size=size, key_mean=key_mean)

    def kept(self) -> Tensor:
        """(B, num_patches) bool: which patches of the image are still represented."""
        return self.patch_token >= 0

    def padded_key_mean(self, length: int) -> Tensor:
        """(B, length) `key_mean`, zero-padded on the right: the observation of the authors' selector.

        Raises:
            ValueError: If the state carries none, or has images of more tokens than `length`.
        """
        if self.key_mean is None:
            raise ValueError("This state carries no key_mean; begin the inference with begin(images, key_mean=True).")
        if length < self.num_tokens.max():
            raise ValueError(f"length={length} is too short: an image has {self.num_tokens.max()} tokens.")
        out = self.key_mean.new_zeros(len(self), length)
        valid = np.arange(length) < self.num_tokens[:, None]
        out[torch.from_numpy(valid).to(out.device)] = self.key_mean
        return out
