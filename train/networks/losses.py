"""Losses that shape the tokens of a supernet, whatever it is trained for."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from supernet import GroupChoice, InferenceState, Supernet


def attention_loss(net: Supernet, state: InferenceState, choice: GroupChoice, wanted: Tensor) -> Tensor:
    """Cross-entropy of the class attention to "uniform over the wanted patches"; all patches must be present.

    Args:
        net: The supernet.
        state: The inference before a group.
        choice: Sizes of that group, whose first block's attention counts.
        wanted: (B, patches) whether the class token should look there; at least one patch of every image.
    """
    scores = net.class_attention(state, choice).view(len(wanted), -1)[:, 1:]
    share = wanted.float()
    return -(share / share.sum(1, keepdim=True) * scores.clamp_min(1e-6).log()).sum(1).mean()


def patch_loss(head: nn.Linear, state: InferenceState, classes: Tensor, blank_weight: float) -> Tensor:
    """Cross-entropy of "what does this patch show" at every patch, weighted mean; all patches must be present.

    Args:
        head: Read-out of a token; its last class is "nothing".
        state: The inference so far.
        classes: (B, patches) what each patch shows, negative for nothing.
        blank_weight: Weight of the patches that show nothing.
    """
    blank = head.out_features - 1
    logits = head(state.tokens.view(len(classes), -1, state.tokens.shape[1])[:, 1:])
    weight = torch.ones(blank + 1, device=classes.device)
    weight[blank] = blank_weight
    return F.cross_entropy(logits.flatten(0, 1), torch.where(classes < 0, blank, classes).flatten(), weight=weight)


def patch_share(classes: Tensor, blank_weight: float, rows: slice) -> float:
    """What `patch_loss` of some images is to be multiplied by, so that its mean over equal parts is that of the whole.

    Args:
        classes: (B, patches) what the patches of all images show.
        blank_weight: As of `patch_loss`.
        rows: Which images.

    Returns:
        The weight of a patch of theirs against one of all images, both on average.
    """
    weight = torch.where(classes < 0, blank_weight, 1.0).double().mean(1)
    return float(weight[rows].mean() / weight.mean())
