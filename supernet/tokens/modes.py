"""Token reduction: which tokens of an image go on after a decision, and what becomes of the others.

A token mode is one function, `assign`, that says for every token which token of the shorter sequence it goes into. The
rest, sums and means, sizes, costs and pictures, follows from that. Functions here take a padded batch: images of
`lengths` tokens, the class token (if the network has one, `prefix` = 1) first. Lengths and counts are numpy arrays of
one entry per image, or of a single one that holds for all.

Contract, for every mode: the class token stays first and bit for bit the same; exactly as many tokens remain as were
asked for; keeping all is the identity; nothing is changed in place; merging conserves the sum of the sizes and of size
times token, but for tokens that were pruned before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..arrays import Floats, Ints

Assignment = tuple[Tensor, Tensor | None]
Assign = Callable[[Tensor | None, Tensor | None, Tensor, Ints, Ints, int], Assignment]

# Keeps float noise in rate * patches from adding a patch.
SLACK = 1e-6


def kept_tokens(num_tokens: Ints, keep_rate: Floats, prefix: int = 1) -> Ints:
    """Tokens left of `num_tokens`: ceil(keep_rate * patches), at least one, and the class token.

    The ceiling is EViT's.
    """
    patches = num_tokens - prefix
    kept = np.ceil(keep_rate * patches - SLACK).astype(np.int64)
    return np.clip(kept, np.minimum(1, patches), patches) + prefix


def _kept_once(num_tokens: Ints, keep_rates: Floats, prefix: int) -> Ints:
    return kept_tokens(num_tokens, keep_rates[:, 0], prefix)[:, None]


def _kept_twice(num_tokens: Ints, keep_rates: Floats, prefix: int) -> Ints:
    pruned = kept_tokens(num_tokens, keep_rates[:, 0], prefix)
    return np.stack([pruned, kept_tokens(pruned, keep_rates[:, 1], prefix)], axis=1)


def _kept_and_fused(num_tokens: Ints, keep_rates: Floats, prefix: int) -> Ints:
    return np.minimum(kept_tokens(num_tokens, keep_rates[:, 0], prefix) + 1, num_tokens)[:, None]


def column(values: Ints, device: torch.device) -> Tensor:
    """(B, 1) tensor of one number per image."""
    return torch.as_tensor(values, device=device)[:, None]


def ranking(scores: Tensor, lengths: Ints, prefix: int) -> Tensor:
    """Tokens by descending score, (B, N) positions: class token first, padding last, of equal scores the earlier."""
    position = torch.arange(scores.shape[1], device=scores.device)
    keys = torch.where(position < column(lengths, scores.device), scores.detach(), float("-inf"))
    keys = torch.where(position < prefix, float("inf"), keys)
    return keys.argsort(dim=1, descending=True, stable=True)


def ranks_of(order: Tensor) -> Tensor:
    """Inverse of a permutation of every row: (B, N)."""
    position = torch.arange(order.shape[1], device=order.device).expand_as(order)
    return torch.zeros_like(order).scatter(1, order, position)


def _in_order(stays: Tensor) -> Tensor:
    """New position of the tokens that stay, in the order they had; -1 for the others."""
    return torch.where(stays, stays.cumsum(1) - 1, -1)


def prune(
    scores: Tensor | None, metric: Tensor | None, size: Tensor, lengths: Ints, counts: Ints, prefix: int
) -> Assignment:
    """Keeps the patches that the class token attends to most (EViT, Liang et al. 2022, without the fused token).

    Args:
        scores: (B, N) attention of the class token to every token, averaged over heads; None if the mode reads none.
        metric: (B, N, M) features whose cosine says how alike tokens are; None if the mode needs none.
        size: (B, N) number of patches that a token stands for.
        lengths: (B,) or (1,) tokens per image; what is beyond is padding.
        counts: (B, stages) or (1, stages) tokens to remain after every stage of the mode.
        prefix: 1 if there is a class token, else 0.

    Returns:
        (B, N) int64, position in the new sequence that each token goes into, -1 if it is dropped (padding is); and
        (B, N) weights of the sum over what comes together, None if nothing does.
    """
    assert scores is not None
    ranks = ranks_of(ranking(scores, lengths, prefix))
    return _in_order(ranks < column(counts[:, -1], scores.device)), None


def prune_fused(
    scores: Tensor | None, metric: Tensor | None, size: Tensor, lengths: Ints, counts: Ints, prefix: int
) -> Assignment:
    """`prune`, with a last token that is the sum of the dropped ones, weighted by their scores (EViT's fused token).

    As in EViT the weights are not normalised: they sum to the attention that the dropped patches had.

    Where only one patch would go, nothing does: the fused token would stand for that patch alone, scaled down to
    next to nothing by its score, and not a token would be saved. EViT's code does scale it.
    """
    assert scores is not None
    last = column(counts[:, -1], scores.device) - 1
    ranks = ranks_of(ranking(scores, lengths, prefix))
    whole = column((counts[:, -1] == lengths).astype(np.int64), scores.device)
    stays = ranks < last + whole
    real = torch.arange(scores.shape[1], device=scores.device) < column(lengths, scores.device)
    into = torch.where(stays | ~real, _in_order(stays), last)
    return into, torch.where(stays, 1.0, scores)


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
        prefix: 1 if there is a class token, into which nothing is merged.

    Returns:
        (B, N) `new_position` with the merged tokens filled in.
    """
    device, n = order.device, order.shape[1]
    kept = counts[:, -1]
    stop = counts[:, 0] if counts.shape[1] > 1 else lengths
    num_merged, num_kept = int((stop - kept).max()), int(kept.max())
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


def merge(
    scores: Tensor | None, metric: Tensor | None, size: Tensor, lengths: Ints, counts: Ints, prefix: int
) -> Assignment:
    """Merges the least attended patches into the most alike of the kept ones (DiffRate, Chen et al. 2023), as a mean
    weighted by size (ToMe, Bolya et al. 2023). With two counts, the very least attended are dropped before."""
    assert scores is not None
    assert metric is not None
    order = ranking(scores, lengths, prefix)
    new_position = _in_order(ranks_of(order) < column(counts[:, -1], scores.device))
    return merge_ranked(order, metric, new_position, counts, lengths, prefix), size


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


def combine(x: Tensor, into: Tensor, num_out: int, weight: Tensor | None, normalise: bool = True) -> Tensor:
    """The tokens of the shorter sequence.

    Args:
        x: (B, N, C).
        into: (B, N) new position of every token, -1 if it is dropped.
        num_out: Length of the new sequence.
        weight: (B, N); None if no two tokens come together.
        normalise: Whether to divide by the sum of the weights.

    Returns:
        (B, num_out, C).
    """
    target = torch.where(into < 0, num_out, into)
    if weight is None:
        order = target.argsort(dim=1, stable=True)[:, :num_out]
        rows = order + x.shape[1] * torch.arange(x.shape[0], device=x.device)[:, None]
        return x.reshape(-1, x.shape[2]).index_select(0, rows.reshape(-1)).view(x.shape[0], num_out, x.shape[2])
    if normalise:
        # Shares first: those of a token that stays alone are exactly 1.
        weight = weight / total_size(weight, into, num_out).gather(1, into.clamp(min=0))
    out = x.new_zeros(x.shape[0], num_out + 1, x.shape[2])
    return out.scatter_add(1, target[..., None].expand_as(x), x * weight[..., None].to(x.dtype))[:, :num_out]


def total_size(size: Tensor, into: Tensor, num_out: int) -> Tensor:
    """Sizes (or weights) of what came together: (B, num_out) from (B, N)."""
    target = torch.where(into < 0, num_out, into)
    return size.new_zeros(size.shape[0], num_out + 1).scatter_add(1, target, size)[:, :num_out]


def _free(num_tokens: Ints, counts: Ints, dims: Ints, prefix: int) -> Ints:
    return np.zeros_like(num_tokens)


def _merge_macs(num_tokens: Ints, counts: Ints, dims: Ints, prefix: int) -> Ints:
    stop = counts[:, 0] if counts.shape[1] > 1 else num_tokens
    return (stop - counts[:, -1]) * (counts[:, -1] - prefix) * dims


def _tome_macs(num_tokens: Ints, counts: Ints, dims: Ints, prefix: int) -> Ints:
    macs, now = np.zeros_like(num_tokens), num_tokens
    while bool((now > counts[:, -1]).any()):
        remove = np.minimum(now - counts[:, -1], (now - prefix) // 2)
        macs = macs + np.where(remove > 0, ((now + 1) // 2 - prefix) * (now // 2) * dims, 0)
        now = now - remove
    return macs


@dataclass(frozen=True)
class TokenMode:
    """A way of reducing tokens; register yours in `TOKEN_MODES`.

    Attributes:
        assign: Says where every token goes, see `prune` for arguments and result.
        num_rates: Keep rates per decision.
        counts: (num_tokens (B,), keep_rates (B, num_rates), prefix) to tokens after every stage (B, stages).
        metric: What `assign` compares: None, "tokens" (B, N, C) or "keys", mean over heads, (B, N, head_dim).
        uses_scores: Whether `assign` reads the class attention; it costs one more query row.
        sized: Whether tokens have sizes, the logarithm of which is then added to the logits of attention
            (proportional attention, ToMe).
        normalise: Whether what comes together is divided by the sum of its weights.
        macs: (num_tokens (B,), counts (B, stages), metric dimension (B,), prefix) to multiply-accumulates (B,).
        always: Whether it also runs when nothing is to go.
    """

    assign: Assign
    num_rates: int = 1
    counts: Callable[[Ints, Floats, int], Ints] = _kept_once
    metric: str | None = None
    uses_scores: bool = True
    sized: bool = False
    normalise: bool = True
    macs: Callable[[Ints, Ints, Ints, int], Ints] = _free
    always: bool = False


TOKEN_MODES: dict[str, TokenMode] = {
    "prune": TokenMode(prune),
    "prune_fused": TokenMode(prune_fused, counts=_kept_and_fused, normalise=False),
    "merge": TokenMode(merge, metric="tokens", sized=True, macs=_merge_macs),
    "prune_merge": TokenMode(merge, num_rates=2, counts=_kept_twice, metric="tokens", sized=True, macs=_merge_macs),
    "tome": TokenMode(tome, metric="keys", uses_scores=False, sized=True, macs=_tome_macs),
}


def token_mode(name: str) -> TokenMode:
    """The mode registered under `name`.

    Raises:
        ValueError: If there is none.
    """
    if name not in TOKEN_MODES:
        raise ValueError(f"token_mode={name!r} is unknown; choose one of {sorted(TOKEN_MODES)}.")
    return TOKEN_MODES[name]
