"""Token reduction: which tokens of an image go on after a decision."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from .ragged import Ints

Reduction = Callable[[Tensor, Ints, Ints], Tensor]


def kept_tokens(num_tokens: Ints, keep_rate: Ints) -> Ints:
    """Tokens left of `num_tokens` (class token included): ceil(keep_rate * patches), at least one, plus the class
    token.

    The ceiling is EViT's; a slack of 1e-6 keeps float noise from adding a patch.
    """
    patches = num_tokens - 1
    kept = np.ceil(keep_rate * patches - 1e-6).astype(np.int64)
    return np.clip(kept, np.minimum(1, patches), patches) + 1


def prune(class_attention: Tensor, lengths: Ints, kept: Ints) -> Tensor:
    """Keeps the patches that the class token attends to most (EViT's top-k, without the fused token).

    Args:
        class_attention: (T,) packed, attention of the class token to every token of its image.
        lengths: (B,) tokens per image, class token first.
        kept: (B,) tokens to keep of each, class token included.

    Returns:
        (sum(kept),) int64 rows of the packed buffer, ascending: the class token first, survivors in the order they had,
        so that keeping all is the identity. Of equal scores the earlier patch stays.
    """
    position = np.arange(lengths.max())
    valid = torch.from_numpy(position < lengths[:, None]).to(class_attention.device)
    scores = class_attention.new_full(valid.shape, float("-inf"))
    scores[valid] = class_attention.detach()
    scores[:, 0] = float("inf")
    rank = scores.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    keep = rank < torch.from_numpy(kept).to(rank.device)[:, None]
    return keep[valid].nonzero().squeeze(1)


TOKEN_MODES: dict[str, Reduction] = {"prune": prune}
