"""The end of the network for images whose sizes stand on the device: pooling, last norm, classifier."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..config import SupernetConfig
from ..zero_shot import classify_rows
from .tiled import TileBatch


def pooled_tokens(config: SupernetConfig, batch: TileBatch) -> Tensor:
    """(B, C) class tokens, or means of the patches, before the last norm; zero beyond an image's width."""
    if config.class_token and config.global_pool == "token":
        return _own(batch.x[batch.cu[:-1].long()], batch.have)
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
    own = torch.arange(rows.shape[1], device=rows.device) < batch.have[:, None]
    return (torch.where(own[:, None], rows[index], 0) * share[..., None]).sum(1)


def class_logits(config: SupernetConfig, norm: nn.LayerNorm, head: nn.Module | None, batch: TileBatch) -> Tensor:
    """(B, num_classes) logits; without a classifier the normalised features (B, C), zero beyond an image's width."""
    if config.global_pool == "avg" and not config.fc_norm:
        width = batch.have[batch.image.long()]
        features = mean_tokens(config, batch, masked_norm(norm, batch.x, width, config.prance_embed_dim))
    else:
        features = masked_norm(norm, pooled_tokens(config, batch), batch.have, config.prance_embed_dim)
    return features if head is None else classify_rows(head, features, batch.have)


def masked_norm(
    layer: nn.LayerNorm | None, x: Tensor, width: Tensor, full: int | None = None, eps: float = 1e-5
) -> Tensor:
    """Layer norm of rows (R, C) over the first `width` (R,) channels of each, zeros beyond.

    Args:
        layer: Its gain, shift and epsilon; None: neither gain nor shift, and `eps`.
        x: (R, C).
        width: (R,).
        full: By the authors' rules, the width at which the gain is as it is; None by ours.
        eps: Where there is no layer.
    """
    own = torch.arange(x.shape[1], device=x.device) < width[:, None]
    values, count = torch.where(own, x, 0).float(), width[:, None]
    centred = torch.where(own, values - values.sum(1, keepdim=True) / count, 0)
    variance = centred.square().sum(1, keepdim=True) / count
    out = centred * (variance + (eps if layer is None else layer.eps)).rsqrt()
    if full is not None:
        out = out * (count.double() / full).sqrt().float()
    if layer is not None:
        out = torch.where(own, out * layer.weight.float() + layer.bias.float(), 0)
    return out.to(x.dtype)


def _own(x: Tensor, width: Tensor) -> Tensor:
    """(R, C) rows, zero beyond the width (R,) of each."""
    return torch.where(torch.arange(x.shape[1], device=x.device) < width[:, None], x, 0)
