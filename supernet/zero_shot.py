"""Classifiers on pooled features: a linear map, or CLIP's, in which a class is the point where its texts lie."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import SupernetConfig
from .layers import linear

# CLIP's scale starts at 1 / .07 and is not let above 100, where training takes it.
MOST_SCALE = 100.0


class ZeroShotHead(nn.Module):
    """Classes as text embeddings: logit_c = exp(logit_scale) * cos(proj(x), text_c) (CLIP, Radford et al. 2021).

    Args:
        embed_dims: Widths of features that it is given, ascending.
        dim: Dimension of the space that images and texts share.
        num_classes: Number of classes.
        fitted: Whether narrow features have projections of their own; otherwise they take the first channels of the one
            for the full width.
    """

    def __init__(self, embed_dims: tuple[int, ...], dim: int, num_classes: int, fitted: bool = False) -> None:
        super().__init__()
        self.proj = nn.Linear(embed_dims[-1], dim)
        self.fitted = nn.ModuleDict({str(w): nn.Linear(w, dim) for w in embed_dims[:-1]}) if fitted else None
        self.text = nn.Parameter(torch.empty(num_classes, dim))
        self.logit_scale = nn.Parameter(torch.tensor(math.log(MOST_SCALE)))

    @torch.no_grad()
    def init_weights(self) -> None:
        """Random directions as classes."""
        for layer in (self.proj, *(() if self.fitted is None else self.fitted.values())):
            nn.init.trunc_normal_(layer.weight, std=layer.in_features**-0.5)
            nn.init.zeros_(layer.bias)
        nn.init.normal_(self.text)
        self.text.copy_(F.normalize(self.text, dim=1))

    @torch.no_grad()
    def limit_scale(self) -> None:
        """Takes the scale down to `MOST_SCALE`, as CLIP's training does after every step."""
        self.logit_scale.clamp_(max=math.log(MOST_SCALE))

    def project(self, x: Tensor) -> Tensor:
        """Features (B, C) of one width as points (B, dim) beside the texts, not normalised."""
        own = None if self.fitted is None or x.shape[1] == self.proj.in_features else self.fitted[str(x.shape[1])]
        if own is not None:
            projected: Tensor = own(x)
            return projected
        return linear(self.proj, x, self.proj.out_features)

    def forward(self, x: Tensor, width: Tensor | None = None) -> Tensor:
        """Features to logits.

        Args:
            x: (B, C) of one width; or of the full width, zero beyond each one's own.
            width: (B,) their own; None: C.

        Returns:
            (B, num_classes).
        """
        points = self.project(x)
        if width is not None and self.fitted is not None:
            for own, layer in self.fitted.items():
                points = torch.where((width == int(own))[:, None], layer(x[:, : int(own)]), points)
        return self.logit_scale.exp() * (F.normalize(points, dim=1) @ self.text.t())


def make_classifier(config: SupernetConfig, features: int, narrower: tuple[int, ...] = ()) -> nn.Module | None:
    """The classifier that a configuration asks for, with random weights; None if it has none.

    Args:
        config: The supernet's.
        features: Channels of the features at most.
        narrower: Fewer that they may have, too.
    """
    if not config.num_classes:
        return None
    if config.text_dim is None:
        return nn.Linear(features, config.num_classes)
    return ZeroShotHead((*narrower, features), config.text_dim, config.num_classes, config.text_fitted)


@torch.no_grad()
def init_head(head: nn.Module | None) -> None:
    """Initial weights: truncated normal with std .02, as in ViT, or `ZeroShotHead.init_weights`."""
    if isinstance(head, ZeroShotHead):
        head.init_weights()
    elif isinstance(head, nn.Linear):
        nn.init.trunc_normal_(head.weight, std=0.02)
        nn.init.zeros_(head.bias)


def classify(head: nn.Module, x: Tensor) -> Tensor:
    """Logits (B, num_classes) of features (B, C) of one width, by the weights of as many channels."""
    if isinstance(head, nn.Linear):
        return linear(head, x, head.out_features)
    logits: Tensor = head(x)
    return logits


def classify_rows(head: nn.Module, x: Tensor, width: Tensor) -> Tensor:
    """Logits (B, num_classes) of features (B, C) that are zero beyond each one's own width (B,)."""
    logits: Tensor = head(x, width) if isinstance(head, ZeroShotHead) else head(x)
    return logits


def head_layers(heads: Mapping[str, nn.Module | None]) -> dict[str, nn.Module | None]:
    """Of classifiers by name, the layers whose weights are used without calling them."""
    return {
        f"{name}.proj" if isinstance(head, ZeroShotHead) else name: head.proj
        if isinstance(head, ZeroShotHead)
        else head
        for name, head in heads.items()
    }


def head_sources(config: SupernetConfig, width: int) -> Mapping[str, str]:
    """Weights of a static network's classifier that have another name in the supernet, and that name.

    Args:
        config: The supernet's.
        width: Width of the static network's features.
    """
    if not (config.text_fitted and width < config.embed_dim):
        return {}
    return {f"head.proj.{part}": f"head.fitted.{width}.{part}" for part in ("weight", "bias")}
