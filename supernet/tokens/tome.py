"""Bipartite soft matching of tokens by their keys (ToMe): down to a number of tokens, or while they are alike."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from ..arrays import Floats, Ints, most, namespace
from .modes import Assignment, Counted, column, combine, ranks_of, register_token_mode, total_size

MATCHINGS = 16
"""More than any image needs: each but the last halves the patches."""


def _tome_macs(num_tokens: Ints, counts: Ints, dims: Ints, prefix: int) -> Ints:
    """(B,) similarities of every even position with every odd one, in every matching."""
    macs, apart = num_tokens * 0, _apart(prefix)
    prefix -= apart
    for now, remove in _matchings(num_tokens - apart, counts[:, -1] - apart, prefix):
        macs = macs + namespace(now).where(remove > 0, ((now + 1) // 2 - prefix) * (now // 2) * dims, 0)
    return macs


def _apart(prefix: int) -> int:
    """So many of the first tokens stand before all matching; a last one counts as a position, which makes it even."""
    return max(prefix - 1, 0)


def _matchings(num_tokens: Ints, kept: Ints, prefix: int, bound: int = MATCHINGS) -> Iterator[tuple[Ints, Ints]]:
    """(B,) tokens before every matching, and how many it removes; at most half of the patches at a time."""
    arrays, now = namespace(num_tokens), num_tokens
    # On a device nobody knows when all are done: from there on nothing is removed.
    for _ in range(bound):
        if arrays is np and not (now > kept).any():
            break
        remove = arrays.minimum(now - kept, (now - prefix) // 2)
        yield now, remove
        now = now - remove


@register_token_mode("tome", metric="keys", uses_scores=False, sized=True, macs=_tome_macs, on_device=True)
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
    groups = _Groups(metric.detach(), size, lengths, prefix)
    kept = counts[:, -1] - groups.apart
    patches = size.shape[1] - prefix
    # Each halves the patches, so that none is left to do for one patch, which has nothing to be compared with.
    for _, remove in _matchings(groups.now, kept, groups.prefix, (patches - 1).bit_length()):
        groups.merge(*groups.pairs(), remove)
    return groups.places(), size


def _merge_above_macs(num_tokens: Ints, counts: Ints, dims: Ints, prefix: int) -> Ints:
    """(B,) similarities of every even position with every odd one, until a matching finds nothing alike; the first
    stage of `counts` is before any."""
    macs, apart = np.zeros_like(num_tokens), _apart(prefix)
    now, prefix = num_tokens - apart, prefix - apart
    searching = np.ones(len(num_tokens), dtype=np.bool_)
    for left in counts.T[1:] - apart:
        macs = macs + np.where(searching, ((now + 1) // 2 - prefix) * (now // 2) * dims, 0)
        now, searching = left, searching & (left < now)
    return macs


@register_token_mode(
    "merge_above", metric="keys", uses_scores=False, sized=True, macs=_merge_above_macs, threshold=True
)
def merge_above(
    scores: Tensor | None, metric: Tensor | None, size: Tensor, lengths: Ints, thresholds: Floats, prefix: int
) -> Counted:
    """ToMe's matching of even and odd positions, with a threshold instead of a number: what is alike merges.

    The keep rate is the cosine of two tokens' keys above which they merge; at 1 all stay. Merged tokens are matched
    again, by the means of their keys, until no even position is that much like an odd one. Two alike tokens that both
    stand at even, or both at odd positions in the last matching stay apart, as in ToMe.
    """
    assert metric is not None
    groups = _Groups(metric.detach(), size, lengths, prefix)
    wanted = column(np.where(thresholds[:, 0] < 1, thresholds[:, 0], np.inf), size.device)
    counts = [np.broadcast_to(groups.now, len(size))]
    while groups.now.max() > groups.prefix + 1:
        value, partner = groups.pairs()
        remove = (value > wanted).sum(1).cpu().numpy()
        counts.append(groups.now - remove)
        if not remove.any():
            break
        groups.merge(value, partner, remove)
    return groups.places(), size, np.stack(counts, axis=1) + groups.apart


class _Groups:
    """Tokens that merge, matching after matching.

    Args:
        metric: (B, N, M) what is compared.
        size: (B, N).
        lengths: (B,) or (1,) tokens per image.
        prefix: First tokens that are no patches, which merge with nothing.

    Attributes:
        apart: How many of these stand before all that the others count.
        prefix: The other of these, 0 or 1.
        now: (B,) or (1,) tokens that are left, but for those apart.
        into: (B, N - apart) which of them each of the first ones went into, -1 for padding.
    """

    def __init__(self, metric: Tensor, size: Tensor, lengths: Ints, prefix: int) -> None:
        self.apart = _apart(prefix)
        self.metric, self.weight = metric[:, self.apart :], size[:, self.apart :]
        self.now, self.prefix = lengths - self.apart, prefix - self.apart
        position = torch.arange(self.weight.shape[1], device=size.device)
        self.into = torch.where(position < column(self.now, size.device), position, -1).expand_as(self.weight)

    def places(self) -> Tensor:
        """(B, N) which token each of the first ones went into, -1 for padding."""
        if not self.apart:
            return self.into
        first = torch.arange(self.apart, device=self.into.device).expand(self.into.shape[0], -1)
        return torch.cat([first, torch.where(self.into < 0, -1, self.into + self.apart)], dim=1)

    def pairs(self) -> tuple[Tensor, Tensor]:
        """Cosine of every even position with the most alike odd one, (B, E), -inf for padding; and which that is."""
        n, now = self.metric.shape[1], column(self.now, self.metric.device)
        even, odd = self._sides(n)
        unit = self.metric / self.metric.norm(dim=-1, keepdim=True).clamp_min(1e-12)
        alike = unit[:, 2 * self.prefix :: 2] @ unit[:, 1::2].transpose(1, 2)
        value, partner = alike.masked_fill((odd >= now)[:, None], float("-inf")).max(dim=2)
        return value.masked_fill(even >= now, float("-inf")), partner

    def merge(self, value: Tensor, partner: Tensor, remove: Ints) -> None:
        """Merges the most alike pairs.

        Args:
            value: (B, E) how alike the even positions are to their partners.
            partner: (B, E) number of the odd position.
            remove: (B,) or (1,) how many pairs.
        """
        step = self._places(value, partner, remove)
        self.into = torch.where(self.into < 0, -1, step.gather(1, self.into.clamp(min=0)))
        self.now = self.now - remove
        longest = most(self.now, self.metric.shape[1])
        self.metric = combine(self.metric, step, longest, self.weight)
        self.weight = total_size(self.weight, step, longest)

    def _places(self, value: Tensor, partner: Tensor, remove: Ints) -> Tensor:
        """(B, N) new position of every token, -1 for padding."""
        device, n, prefix = value.device, self.metric.shape[1], self.prefix
        length, gone = column(self.now, device), column(remove, device)
        even, odd = self._sides(n)
        merged = ranks_of(value.argsort(dim=1, descending=True, stable=True)) < gone
        odd_new = ((length + 1) // 2 - gone + odd // 2).expand(value.shape[0], -1)
        even_new = torch.where(merged, odd_new.gather(1, partner), prefix + (~merged).cumsum(1) - 1)
        new = torch.cat([even_new, odd_new], dim=1)
        place = torch.cat([even, odd]).argsort()
        if prefix:
            new = torch.cat([torch.zeros_like(new[:, :1]), new], dim=1)
            place = torch.cat([place.new_zeros(1), place + 1])
        new = new[:, place]
        position = torch.arange(n, device=device)
        return torch.where(position < length, torch.where(gone > 0, new, position), -1)

    def _sides(self, n: int) -> tuple[Tensor, Tensor]:
        """Even positions that may merge, and odd ones, of n tokens."""
        device = self.metric.device
        return torch.arange(2 * self.prefix, n, 2, device=device), torch.arange(1, n, 2, device=device)
