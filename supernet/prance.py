"""Meta-networks of PRANCE's authors (repository ChildTang/PRANCE): their weights, their rules, their bookkeeping.

Written from a description of what their code computes; none of it is copied. Their rules differ from ours in four
points, all behind `SupernetConfig.prance_embed_dim`:

* Layer norms are multiplied by sqrt(embed_dim / full width).
* A block hands on the width of the next block, the full one while that is not decided; the first block of a group reads
  what it was handed and narrows at its projection.
* Tokens are sorted by class attention at every decision, even if all stay; int(rate * tokens) remain, the class token
  counted.
* Merged tokens are a plain mean.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from .ragged import Ints
from .reduction import TOKEN_MODES, Assignment, Floats, TokenMode, column, merge_ranked, ranking, ranks_of

HEAD_DIM = 64
"""Channels per head in all of the authors' networks."""


def _counts(num_tokens: Ints, keep_rates: Floats, prefix: int) -> Ints:
    stages = []
    for stage in range(keep_rates.shape[1]):
        # A patch must stay beside the class token; the authors' code fails there, or averages all into the class token.
        num_tokens = np.minimum(np.maximum((keep_rates[:, stage] * num_tokens).astype(np.int64), 2), num_tokens)
        stages.append(num_tokens)
    return np.stack(stages, axis=1)


def _assign(
    scores: Tensor | None, metric: Tensor | None, size: Tensor, lengths: Ints, counts: Ints, prefix: int
) -> Assignment:
    """Sorted by score; what is not kept is dropped or, if there is a metric, merged as a plain mean."""
    assert scores is not None
    order = ranking(scores, lengths, prefix)
    ranks = ranks_of(order)
    into = torch.where(ranks < column(counts[:, -1], scores.device), ranks, -1)
    if metric is None:
        return into, None
    return merge_ranked(order, metric, into, counts, lengths, prefix), torch.ones_like(size)


_merge_macs = TOKEN_MODES["merge"].macs
TOKEN_MODES["prance_prune"] = TokenMode(_assign, counts=_counts, always=True)
TOKEN_MODES["prance_merge"] = TokenMode(
    _assign, counts=_counts, metric="tokens", sized=True, macs=_merge_macs, always=True
)
TOKEN_MODES["prance_prune_merge"] = replace(TOKEN_MODES["prance_merge"], num_rates=2)
