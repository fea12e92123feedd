"""Merging of the least attended patches into others that they resemble (DiffRate), with or without pruning before."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..arrays import Floats, Ints, most, namespace
from .modes import Assignment, column, in_order, kept_tokens, ranking, ranks_of, register_token_mode


def _kept_twice(num_tokens: Ints, keep_rates: Floats, prefix: int) -> Ints:
    """(B, 2) tokens left by pruning, and by merging after it."""
    pruned = kept_tokens(num_tokens, keep_rates[:, 0], prefix)
    out: Ints = namespace(num_tokens).stack([pruned, kept_tokens(pruned, keep_rates[:, 1], prefix)], 1)
    return out


def merge_macs(num_tokens: Ints, counts: Ints, dims: Ints, prefix: int) -> Ints:
    """(B,) similarities of every merged token with every kept one."""
    stop = counts[:, 0] if counts.shape[1] > 1 else num_tokens
    return (stop - counts[:, -1]) * (counts[:, -1] - prefix) * dims


def merge_ranked(
    order: Tensor, metric: Tensor, new_position: Tensor, counts: Ints, lengths: Ints, prefix: int
) -> Tensor:
    """Sends tokens of a middle rank into the most alike (cosine) of the patches of a better rank.

    Args:
        order: (B, N) tokens by descending rank.
        metric: (B, N, M).
        new_position: (B, N) where the tokens of the best rank go, -1 for the others.
        counts: (B, 1 or 2) or (1, ...): the last entry many are kept, the tokens between that and the first entry
            (`lengths`, if there is one entry only) are merged, the rest dropped.
        lengths: (B,) or (1,) tokens per image.
        prefix: First tokens that are no patches; nothing is merged into them.

    Returns:
        (B, N) `new_position` with the merged tokens filled in.
    """
    device, n = order.device, order.shape[1]
    kept = counts[:, -1]
    stop = counts[:, 0] if counts.shape[1] > 1 else lengths
    num_merged, num_kept = most(stop - kept, n - prefix), most(kept, n)
    if num_merged == 0:
        return new_position
    slot = torch.arange(num_merged, device=device)
    real = slot < column(stop - kept, device)
    merged = order.gather(1, (column(kept, device) + slot).clamp(max=n - 1).expand(order.shape[0], -1))
    targets = order[:, prefix:num_kept]
    unit = metric / metric.norm(dim=-1, keepdim=True).clamp_min(1e-12)

    def rows(index: Tensor) -> Tensor:
        return unit.gather(1, index[..., None].expand(-1, -1, unit.shape[2]))

    alike = rows(merged) @ rows(targets).transpose(1, 2)
    allowed = torch.arange(prefix, num_kept, device=device) < column(kept, device)
    best = alike.masked_fill(~allowed[:, None], float("-inf")).argmax(2)
    into = new_position.gather(1, targets.gather(1, best))
    # Slots beyond an image's own are written to a spare column.
    spare = torch.cat([new_position, new_position[:, :1]], dim=1)
    return spare.scatter(1, torch.where(real, merged, n), into)[:, :n]


MERGES: dict[str, Any] = {"metric": "tokens", "sized": True, "macs": merge_macs, "on_device": True}


@register_token_mode("prune_merge", num_rates=2, counts=_kept_twice, **MERGES)
@register_token_mode("merge", **MERGES)
def merge(
    scores: Tensor | None, metric: Tensor | None, size: Tensor, lengths: Ints, counts: Ints, prefix: int
) -> Assignment:
    """Merges the least attended patches into the most alike of the kept ones (DiffRate, Chen et al. 2023), as a mean
    weighted by size (ToMe, Bolya et al. 2023). With two counts, the very least attended are dropped before."""
    assert scores is not None
    assert metric is not None
    order = ranking(scores, lengths, prefix)
    new_position = in_order(ranks_of(order) < column(counts[:, -1], scores.device))
    return merge_ranked(order, metric, new_position, counts, lengths, prefix), size
