"""The end of the network for images whose sizes stand on the device: pooling, last norm, classifier."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..arrays import counting
from ..config import SupernetConfig
from ..zero_shot import classify_rows
from .devices import current
from .tiled import TileBatch


def pooled_tokens(config: SupernetConfig, batch: TileBatch) -> Tensor:
    """(B, C) class tokens, or means of the patches, before the last norm; zero beyond an image's width."""
    if _takes_class_token(config):
        return _own(batch.x.index_select(0, batch.cu[:-1]), batch.have)
    return mean_tokens(config, batch, batch.x)


def mean_tokens(config: SupernetConfig, batch: TileBatch, rows: Tensor) -> Tensor:
    """(B, C) means over the patches of every image, weighted by their sizes; zero beyond an image's width.

    Args:
        config: The supernet's.
        batch: Which rows belong to which image.
        rows: (capacity, C) tokens.
    """
    there, index = batch.padded()
    weight = there.float() if batch.size is None else torch.where(there, batch.size[index], 0)
    if prefix := config.num_prefix_tokens:
        weight = torch.cat([torch.zeros_like(weight[:, :prefix]), weight[:, prefix:]], dim=1)
    share = (weight / weight.sum(1, keepdim=True)).to(rows.dtype)
    own = counting(rows.shape[1], rows.device) < batch.have[:, None]
    return (torch.where(own[:, None], rows[index], 0) * share[..., None]).sum(1)


def class_logits(config: SupernetConfig, norm: nn.LayerNorm, head: nn.Module | None, batch: TileBatch) -> Tensor:
    """(B, num_classes) logits; without a classifier the normalised features (B, C), zero beyond an image's width."""
    full = config.prance_embed_dim
    zoom = None if full is None else (batch.have.double() / full).sqrt().float()
    if config.global_pool == "avg" and not config.fc_norm:
        features = mean_tokens(config, batch, normed(batch, norm, zoom, first=False))
    elif _takes_class_token(config):
        features = normed(batch, norm, zoom)
    else:
        features = normed(TileBatch.of_rows(mean_tokens(config, batch, batch.x), batch.have), norm, zoom)
    return features if head is None else classify_rows(head, features, batch.have)


def normed(batch: TileBatch, layer: nn.LayerNorm | None, zoom: Tensor | None = None, first: bool = True) -> Tensor:
    """(B, C) layer norm of first tokens over their image's channels, zeros beyond; or (capacity, C) of all tokens.

    Args:
        batch: The tokens.
        layer: Its gain, shift and epsilon; None: neither gain nor shift, and 1e-5.
        zoom: (B,) float32 factors of the gain; None: ones.
        first: Whether it is of first tokens; beyond an image's channels others hold anything.
    """
    # Imported where it is used: Triton is not installed everywhere.
    from .tiles import norm

    with current(batch.x.device):
        return norm(batch, layer, batch.have, zoom, first)


def _takes_class_token(config: SupernetConfig) -> bool:
    return config.class_token and config.global_pool == "token"


def _own(x: Tensor, width: Tensor) -> Tensor:
    """(R, C) rows, zero beyond the width (R,) of each."""
    return torch.where(counting(x.shape[1], x.device) < width[:, None], x, 0)
