"""A subnet as a plain module with exactly its own parameters."""

from __future__ import annotations

import copy
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import SupernetConfig
from .layers import ACTIVATIONS, ElasticBlock, set_width
from .macs import block_widths, hidden_dims, next_widths
from .ragged import Ints, class_scores
from .reduction import combine, total_size
from .subnet import SubnetConfig
from .vit import Supernet


class StaticBlock(nn.Module):
    """One block of fixed sizes.

    Args:
        block: The elastic block whose weights are copied.
        config: The supernet's.
        dims: Channels read, its own width, hidden width of the MLP, channels handed on.
        num_heads: Heads.
        zoom: Factor on the gains of the layer norms.
        tokens: Tokens that come in.
        counts: (1, stages) tokens after every stage of the token mode; None if it does not run here.
    """

    def __init__(
        self,
        block: ElasticBlock,
        config: SupernetConfig,
        dims: tuple[int, int, int, int],
        num_heads: int,
        zoom: float,
        tokens: int,
        counts: Ints | None,
    ) -> None:
        super().__init__()
        self.reads, self.embed_dim, hidden, gives = dims
        self.num_heads, self.tokens, self.counts = num_heads, np.array([tokens]), counts
        self.act, self.mode, self.class_token = ACTIVATIONS[config.act], config.token_mode, config.class_token
        inner = num_heads * config.head_dim
        self.norm1 = _norm(block.norm1, self.reads, zoom)
        self.qkv = _linear(block.qkv, 3 * inner, self.reads)
        self.proj = _linear(block.proj, self.embed_dim, inner)
        self.norm2 = _norm(block.norm2, self.embed_dim, zoom)
        self.fc1 = _linear(block.fc1, hidden, self.embed_dim)
        self.fc2 = _linear(block.fc2, gives, hidden)
        self.lln = None if block.lln is None else _linear(block.lln, gives, self.embed_dim)

    def forward(self, x: Tensor, size: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Tokens (B, N, C) and sizes (B, N), None for ones, to (B, kept, C') and (B, kept)."""
        x = set_width(x, self.reads)
        batch, n, _ = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(batch, n, self.num_heads, 3, -1).permute(3, 0, 2, 1, 4)
        bias = None if size is None else size.log()
        mask = None if bias is None else bias.to(x.dtype)[:, None, None, :]
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).reshape(batch, n, -1)
        x = _add_linear(x[..., : self.embed_dim], self.proj, out)
        if self.counts is not None:
            x, size = self._reduce(x, size, q, k, bias)
        y = self.act(self.fc1(self.norm2(x)))
        return _add_linear(set_width(x if self.lln is None else self.lln(x), self.fc2.out_features), self.fc2, y), size

    def _reduce(
        self, x: Tensor, size: Tensor | None, q: Tensor, k: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        assert self.counts is not None
        mode, kept = self.mode, int(self.counts[0, -1])
        scores = class_scores(q, k, None, bias, self.class_token) if mode.uses_scores else None
        metric = {None: None, "tokens": x, "keys": k.mean(1)}[mode.metric]
        if size is None:
            size = torch.ones_like(x[..., 0], dtype=torch.float32)
        into, weight = mode.assign(scores, metric, size, self.tokens, self.counts, int(self.class_token))
        x = combine(x, into, kept, weight, mode.normalise)
        return x, total_size(size, into, kept) if mode.sized else None


class StaticViT(nn.Module):
    """A subnet of a supernet as an ordinary ViT of fixed sizes."""

    def __init__(self, net: Supernet, blocks: list[StaticBlock], embed_dim: int) -> None:
        super().__init__()
        self.mean: Tensor
        self.std: Tensor
        config = net.config
        self.patch_embed = copy.deepcopy(net.patch_embed).requires_grad_(True)
        self.cls_token = None if net.cls_token is None else nn.Parameter(net.cls_token.detach().clone())
        self.pos_embed = nn.Parameter(net.pos_embed.detach().clone())
        self.norm_pre = copy.deepcopy(net.norm_pre).requires_grad_(True)
        self.blocks = nn.ModuleList(blocks)
        self.norm = _norm(net.norm, embed_dim, net.zoom(embed_dim))
        self.head = None if net.head is None else _linear(net.head, config.num_classes, embed_dim)
        self.embed_dim, self.global_pool, self.fc_norm = embed_dim, config.global_pool, config.fc_norm
        self.image_shape = (config.in_chans, config.img_size, config.img_size)
        self.register_buffer("mean", net.mean.clone(), persistent=False)
        self.register_buffer("std", net.std.clone(), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, in_chans, img_size, img_size), uint8 or normalised floats, to logits (B, num_classes).

        Raises:
            ValueError: If shape or dtype is wrong.
        """
        if images.ndim != 4 or tuple(images.shape[1:]) != self.image_shape:
            raise ValueError(f"images have the shape {tuple(images.shape)}; expected (B, *{self.image_shape}).")
        if images.dtype == torch.uint8:
            images = (images.to(self.pos_embed.dtype) / 255 - self.mean) / self.std
        elif not images.is_floating_point():
            raise ValueError(f"images are {images.dtype}; pass uint8 in 0..255, or normalised floats.")
        x = self.patch_embed(images.to(self.pos_embed.dtype))
        if self.cls_token is not None:
            x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1)
        x, size = self.norm_pre(x + self.pos_embed), None
        for block in self.blocks:
            x, size = block(x, size)
        x = x[..., : self.embed_dim]
        if self.global_pool == "token":
            x = self.norm(x[:, 0])
        elif self.fc_norm:
            x = self.norm(self._mean(x, size))
        else:
            x = self._mean(self.norm(x), size)
        return x if self.head is None else self.head(x)

    def _mean(self, x: Tensor, size: Tensor | None) -> Tensor:
        first = 0 if self.cls_token is None else 1
        if size is None:
            return x[:, first:].mean(1)
        weight = size[:, first:, None].to(x.dtype)
        return (x[:, first:] * weight).sum(1) / weight.sum(1)


def _add_linear(x: Tensor, layer: nn.Linear, y: Tensor) -> Tensor:
    """x + layer(y), as one product that is added to its bias and x: a pass over the tokens less."""
    flat = torch.addmm((x + layer.bias).flatten(0, 1), y.flatten(0, 1), layer.weight.t())
    return flat.view(*y.shape[:2], -1)


def _linear(layer: nn.Linear, out_features: int, in_features: int) -> nn.Linear:
    new = nn.Linear(in_features, out_features, device=layer.weight.device, dtype=layer.weight.dtype)
    new.weight.data = layer.weight.detach()[:out_features, :in_features].clone()
    new.bias.data = layer.bias.detach()[:out_features].clone()
    return new


def _norm(layer: nn.LayerNorm, width: int, zoom: float) -> nn.LayerNorm:
    new = nn.LayerNorm(width, layer.eps, device=layer.weight.device, dtype=layer.weight.dtype)
    new.weight.data = layer.weight.detach()[:width] * zoom
    new.bias.data = layer.bias.detach()[:width].clone()
    return new


def extract(net: Supernet, subnet: SubnetConfig) -> StaticViT:
    """Copies the weights that one subnet uses into a plain module.

    Args:
        net: The supernet.
        subnet: Exactly one subnet.

    Returns:
        A module in evaluation mode whose logits are `net(images, subnet)`.

    Raises:
        ValueError: If `subnet` holds more than one or is not in the search space.
    """
    if len(subnet) != 1:
        raise ValueError(f"extract takes one subnet, not {len(subnet)}; index the batch first: subnet[0].")
    subnet.validate(net.space)
    config, space, mode = net.config, net.space, net.config.token_mode
    tokens = np.array([config.num_tokens])
    blocks: list[StaticBlock] = []
    for group in range(len(space.groups)):
        choice = subnet.group(space, group)
        widths = choice.embed_dim.numpy()
        hidden = hidden_dims(widths, choice.mlp_ratio.numpy())
        reads, gives = block_widths(config, group, widths, None, next_widths(config, group, subnet))
        for i, index in enumerate(space.blocks(group)):
            counts = None
            if i == 0 and group >= space.first_decided:
                counts = mode.counts(tokens, choice.rates, config.num_prefix_tokens)
            w = int(widths[0, i])
            dims = (int(reads[0, i]), w, int(hidden[0, i]), int(gives[0, i]))
            runs = counts is not None and (mode.always or bool(counts[0, -1] < tokens[0]))
            blocks.append(
                StaticBlock(
                    cast(ElasticBlock, net.blocks[index]),
                    config,
                    dims,
                    space.heads(w),
                    net.zoom(w),
                    int(tokens[0]),
                    counts if runs else None,
                )
            )
            tokens = tokens if counts is None else counts[:, -1]
    return StaticViT(net, blocks, int(subnet.embed_dim[0, -1])).eval()
