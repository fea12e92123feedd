"""Bipartite soft matching of tokens by their keys (ToMe)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..arrays import Ints
from .modes import Assignment, column, combine, ranks_of, register_token_mode, total_size


def _tome_macs(num_tokens: Ints, counts: Ints, dims: Ints, prefix: int) -> Ints:
    """(B,) similarities of every even position with every odd one, in every matching."""
    macs, now = np.zeros_like(num_tokens), num_tokens
    while bool((now > counts[:, -1]).any()):
        remove = np.minimum(now - counts[:, -1], (now - prefix) // 2)
        macs = macs + np.where(remove > 0, ((now + 1) // 2 - prefix) * (now // 2) * dims, 0)
        now = now - remove
    return macs


@register_token_mode("tome", metric="keys", uses_scores=False, sized=True, macs=_tome_macs)
def tome(
    scores: Tensor | None, metric: Tensor | None, size: Tensor, lengths: Ints, counts: Ints, prefix: int
) -> Assignment:
    """Bipartite soft matching (ToMe, Bolya et al. 2023): the most alike pairs of an even and an odd position merge.

    One matching removes at most half of the patches; where more are to go, the merged tokens are matched again. The
    order of the result is ToMe's: unmerged even positions, then odd ones, each in the order they had.

    ToMe's code sorts the unmerged ones only if there is a class token, to keep that in front, and otherwise leaves them
    by descending similarity. Here they are always sorted, so that one rule holds for both kinds of network, and whether
    a token comes to an even or an odd position of the next matching does not hang on the last bits of similarities.
    Attention does not see the order, so a first matching is ToMe's either way; later ones of a network without class
    token may pair other tokens.
    """
    assert metric is not None
    kept, now = counts[:, -1], lengths
    metric, weight = metric.detach(), size
    position = torch.arange(size.shape[1], device=size.device)
    into = torch.where(position < column(lengths, size.device), position, -1).expand_as(size)
    while bool((now > kept).any()):
        remove = np.minimum(now - kept, (now - prefix) // 2)
        step = _match(metric, now, remove, prefix)
        into = torch.where(into < 0, -1, step.gather(1, into.clamp(min=0)))
        now = now - remove
        longest = int(now.max())
        metric, weight = combine(metric, step, longest, weight), total_size(weight, step, longest)
    return into, size


def _match(metric: Tensor, now: Ints, remove: Ints, prefix: int) -> Tensor:
    """One bipartite matching of (B, N, M): (B, N) new position of every token, -1 for padding."""
    device, n = metric.device, metric.shape[1]
    length, gone = column(now, device), column(remove, device)
    unit = metric / metric.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    alike = unit[:, 2 * prefix :: 2] @ unit[:, 1::2].transpose(1, 2)
    even, odd = torch.arange(2 * prefix, n, 2, device=device), torch.arange(1, n, 2, device=device)
    value, partner = alike.masked_fill((odd >= length)[:, None], float("-inf")).max(dim=2)
    order = value.masked_fill(even >= length, float("-inf")).argsort(dim=1, descending=True, stable=True)
    merged = ranks_of(order) < gone
    odd_new = ((length + 1) // 2 - gone + odd // 2).expand(metric.shape[0], -1)
    even_new = torch.where(merged, odd_new.gather(1, partner), prefix + (~merged).cumsum(1) - 1)
    new = torch.cat([even_new, odd_new], dim=1)
    place = torch.cat([even, odd]).argsort()
    if prefix:
        new = torch.cat([torch.zeros_like(new[:, :1]), new], dim=1)
        place = torch.cat([place.new_zeros(1), place + 1])
    new = new[:, place]
    position = torch.arange(n, device=device)
    return torch.where(position < length, torch.where(gone > 0, new, position), -1)
