"""Pruning: the patches that the class token attends to least leave (EViT)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..arrays import Floats, Ints, namespace, whole
from .modes import Assignment, Counted, column, in_order, kept_tokens, ranking, ranks_of, register_token_mode


def _kept_and_fused(num_tokens: Ints, keep_rates: Floats, prefix: int) -> Ints:
    """(B, 1) tokens left, the fused one among them."""
    kept = kept_tokens(num_tokens, keep_rates[:, 0], prefix)
    out: Ints = namespace(num_tokens).minimum(kept + 1, num_tokens)[:, None]
    return out


@register_token_mode("prune", on_device=True)
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
        prefix: First tokens that are no patches: class token and registers.

    Returns:
        (B, N) int64, position in the new sequence that each token goes into, -1 if it is dropped (padding is); and
        (B, N) weights of the sum over what comes together, None if nothing does.
    """
    assert scores is not None
    ranks = ranks_of(ranking(scores, lengths, prefix))
    return in_order(ranks < column(counts[:, -1], scores.device)), None


@register_token_mode("prune_fused", counts=_kept_and_fused, normalise=False, on_device=True)
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
    untouched = column(whole(counts[:, -1] == lengths), scores.device)
    stays = ranks < last + untouched
    real = torch.arange(scores.shape[1], device=scores.device) < column(lengths, scores.device)
    into = torch.where(stays | ~real, in_order(stays), last)
    return into, torch.where(stays, 1.0, scores)


@register_token_mode("prune_mass", threshold=True)
def prune_mass(
    scores: Tensor | None, metric: Tensor | None, size: Tensor, lengths: Ints, thresholds: Floats, prefix: int
) -> Counted:
    """Keeps the fewest patches that have so much of the class token's attention together; the others leave.

    The keep rate is their share of the attention that all patches have, so that an image in which few patches matter
    keeps few. At 1 all stay.
    """
    assert scores is not None
    device, position = scores.device, torch.arange(scores.shape[1], device=scores.device)
    order = ranking(scores, lengths, prefix)
    patch = (position >= prefix) & (position < column(lengths, device))
    mass = torch.where(patch, scores.detach().gather(1, order).double(), 0.0)
    better = mass.cumsum(1) - mass
    wanted = column(thresholds[:, 0], device)
    enough = torch.where(wanted < 1, wanted * mass.sum(1, keepdim=True), float("inf"))
    kept = patch & ((better < enough) | (position == prefix))
    counts = prefix + kept.sum(1, keepdim=True)
    return in_order(ranks_of(order) < counts), None, counts.cpu().numpy()
