"""A subnet as a plain module with exactly its own parameters."""

from __future__ import annotations

import copy
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import ElasticBlock, set_width
from .macs import hidden_dims
from .reduction import kept_tokens
from .subnet import SubnetConfig
from .vit import Supernet


class StaticBlock(nn.Module):
    """One block of fixed sizes; `kept` is the number of tokens that go on (None: all)."""

    def __init__(self, embed_dim: int, num_heads: int, kept: int | None) -> None:
        super().__init__()
        self.embed_dim, self.num_heads, self.kept = embed_dim, num_heads, kept
        self.norm1: nn.Module = nn.Identity()
        self.qkv: nn.Module = nn.Identity()
        self.proj: nn.Module = nn.Identity()
        self.norm2: nn.Module = nn.Identity()
        self.fc1: nn.Module = nn.Identity()
        self.fc2: nn.Module = nn.Identity()
        self.lln: nn.Module | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) to (B, kept, C')."""
        x = set_width(x, self.embed_dim)
        batch, n, _ = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(batch, n, self.num_heads, 3, -1).permute(3, 0, 2, 1, 4)
        out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, n, -1)
        x = x + self.proj(out)
        if self.kept is not None:
            scores = (q[:, :, :1] @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1).mean(1)[:, 0, 1:]
            patches = scores.argsort(dim=1, descending=True, stable=True)[:, : self.kept - 1].sort(dim=1).values + 1
            x = torch.cat([x[:, :1], x.gather(1, patches[..., None].expand(-1, -1, x.shape[2]))], dim=1)
        y = self.fc2(F.gelu(self.fc1(self.norm2(x))))
        return set_width(x if self.lln is None else self.lln(x), y.shape[-1]) + y


class StaticViT(nn.Module):
    """A subnet of a supernet as an ordinary ViT of fixed sizes."""

    def __init__(self, net: Supernet, blocks: list[StaticBlock], norm: nn.LayerNorm, head: nn.Linear) -> None:
        super().__init__()
        self.mean: Tensor
        self.std: Tensor
        self.patch_embed = copy.deepcopy(net.patch_embed)
        self.cls_token = nn.Parameter(net.cls_token.detach().clone())
        self.pos_embed = nn.Parameter(net.pos_embed.detach().clone())
        self.blocks = nn.Sequential(*blocks)
        self.norm = norm
        self.head = head
        self.register_buffer("mean", net.mean.clone(), persistent=False)
        self.register_buffer("std", net.std.clone(), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Float images (B, in_chans, img_size, img_size) in 0..1 to logits (B, num_classes)."""
        x = self.patch_embed((images - self.mean) / self.std)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1) + self.pos_embed
        return self.head(self.norm(self.blocks(x)[:, 0]))


def _linear(layer: nn.Linear, out_features: int, in_features: int) -> nn.Linear:
    new = nn.Linear(in_features, out_features)
    new.weight.data = layer.weight.detach()[:out_features, :in_features].clone()
    new.bias.data = layer.bias.detach()[:out_features].clone()
    return new


def _norm(layer: nn.LayerNorm, width: int) -> nn.LayerNorm:
    new = nn.LayerNorm(width, layer.eps)
    new.weight.data = layer.weight.detach()[:width].clone()
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
    config, space = net.config, net.space
    widths = subnet.embed_dim.numpy()
    hidden = hidden_dims(widths, subnet.mlp_ratio.numpy())
    tokens = subnet.keep_rate.new_tensor([config.num_patches + 1]).long().numpy()
    blocks = []
    for group in range(len(space.groups)):
        kept = kept_tokens(tokens, subnet.keep_rate[:, group - 1].numpy()) if group else tokens
        for i in space.blocks(group):
            source, w, h = cast(ElasticBlock, net.blocks[i]), int(widths[0, i]), int(hidden[0, i])
            inner = space.heads(w) * config.head_dim
            first, last = i == space.blocks(group)[0], i == space.blocks(group)[-1] and group < len(space.groups) - 1
            block = StaticBlock(w, space.heads(w), int(kept[0]) if first and kept[0] < tokens[0] else None)
            block.norm1, block.norm2 = _norm(source.norm1, w), _norm(source.norm2, w)
            block.qkv, block.proj = _linear(source.qkv, 3 * inner, w), _linear(source.proj, w, inner)
            block.fc1 = _linear(source.fc1, h, w)
            block.fc2 = _linear(source.fc2, config.embed_dim if last else w, h)
            if last and source.lln is not None:
                block.lln = _linear(source.lln, config.embed_dim, w)
            blocks.append(block)
        tokens = kept
    w = int(widths[0, -1])
    return StaticViT(net, blocks, _norm(net.norm, w), _linear(net.head, config.num_classes, w)).eval()
