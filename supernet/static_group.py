"""One group of blocks of fixed sizes, for as many tokens as come: what a menu of subnets is made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .arrays import Floats
from .block_sizes import BlockSizes
from .config import SupernetConfig
from .static_vit import StaticBlock


class AnyLengthBlock(StaticBlock):
    """A block that takes any number of tokens, of one image or of images with equally many."""

    def whole(self, x: Tensor, size: Tensor | None) -> tuple[Any, Any]:
        """The block without its token mode; arguments are those of `forward`."""
        x, q, k, v, bias = self._projected(x, size)
        return self._mlp(self._attended(x, q, k, v, bias)), size

    def reducing(self, x: Tensor, size: Tensor | None, tokens: Any, counts: Any, kept: int) -> tuple[Any, Any]:
        """The block with its token mode.

        Args:
            x: (B, N, C) tokens.
            size: (B, N) patches that each stands for; None: one each.
            tokens: (1,) N, as the token mode takes it.
            counts: (1, stages) tokens left after every stage of it.
            kept: Tokens left.
        """
        x, size = self._reduce(self.attention(x, size), tokens, counts, kept)
        return self._mlp(x), size


class StaticGroup(nn.Module):
    """A group of blocks of one choice.

    Args:
        config: Architecture of the supernet.
        sizes: Of the blocks; numbers of tokens in them do not count.
        rates: (1, num_rates) its keep rates.

    Attributes:
        reduces: Whether tokens leave; if not, all stay however many come.
    """

    def __init__(self, config: SupernetConfig, sizes: Sequence[BlockSizes], rates: Floats) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(AnyLengthBlock(config, s) for s in sizes)
        self.mode, self.prefix, self.rates = config.token_mode, config.num_prefix_tokens, rates
        self.reduces = sizes[0].counts is not None

    def forward(self, x: Tensor, size: Tensor | None = None, slots: Tensor | None = None) -> tuple[Any, Any]:
        """Runs the group.

        Args:
            x: (B, N, C) tokens.
            size: (B, N) patches that each stands for; None: one each.
            slots: (M,) anything: so many tokens are to be left. For who records the computation with M as a variable,
                of token modes that plan on the device and do without sizes. None: as the keep rates say.

        Returns:
            The tokens (B, M, C'), and their sizes.
        """
        for number, block in enumerate(self.blocks):
            assert isinstance(block, AnyLengthBlock)
            if number or not self.reduces:
                x, size = block(x, size)
            elif slots is not None:
                n, kept = (torch.full((1,), length, dtype=torch.int64) for length in (x.shape[1], slots.shape[0]))
                x, size = block.reducing(x, size, n, kept[:, None], slots.shape[0])
            else:
                tokens = np.array([x.shape[1]])
                counts = self.mode.counts(tokens, self.rates, self.prefix)
                if counts[0, -1] < tokens[0] or self.mode.always:
                    x, size = block.reducing(x, size, tokens, counts, int(counts[0, -1]))
                else:
                    x, size = block.whole(x, size)
        return x, size
