"""The weights of a plain ViT of timm under the names of a supernet's."""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import GluMlp, SwiGLU
from timm.models.vision_transformer import LayerScale
from torch import Tensor, nn

from ..files import check_tensors
from ..heads import CLASSIFIERS
from ..stems import OWN_STEMS
from ..vit import Supernet
from .unwrap import does_nothing, effective, linear_of


def simplify(model: Any) -> None:
    """Puts in the place of layers of other classes the linear layers that they are in evaluation.

    Args:
        model: Of a kind that `timm_kinds.check_kind` lets pass; changed.

    Raises:
        ValueError: If one is no linear layer; the message names it.
    """
    for i, block in enumerate(model.blocks):
        _simplify(block.attn, f"blocks.{i}.attn", ["qkv"], model.embed_dim)
        _simplify(block.attn, f"blocks.{i}.attn", ["proj"], block.attn.qkv.out_features // 3)
        _simplify_mlp(block.mlp, f"blocks.{i}.mlp", model.embed_dim)
    if model.attn_pool is not None:
        _simplify(model.attn_pool, "attn_pool", ["q", "kv", "proj"], model.embed_dim)
        _simplify_mlp(model.attn_pool.mlp, "attn_pool.mlp", model.embed_dim)
    for name in CLASSIFIERS:
        head = effective(getattr(model, name, nn.Identity()))
        setattr(model, name, head if does_nothing(head) else linear_of(head, name, model.embed_dim))


def _simplify(owner: Any, where: str, names: list[str], features: int) -> None:
    for name in names:
        setattr(owner, name, linear_of(getattr(owner, name), f"{where}.{name}", features))


def _simplify_mlp(mlp: Any, where: str, features: int) -> None:
    names = ["fc1_g", "fc1_x"] if type(mlp) is SwiGLU else ["fc1"]
    _simplify(mlp, where, names, features)
    _simplify(mlp, where, ["fc2"], getattr(mlp, names[-1]).out_features // (2 if type(mlp) is GluMlp else 1))


def converted(model: Any, net: Supernet) -> dict[str, Tensor]:
    """timm's weights under our names; what timm leaves out (biases) is zero, what we add (lln) is as it is.

    Args:
        model: Of a kind that `timm_kinds.check_kind` lets pass, simplified.
        net: A supernet of its configuration.

    Raises:
        ValueError: If the patch embedding is not the one that the configuration names.
    """
    names = _Weights(net)
    _tokens(model, names)
    if net.config.pre_norm:
        names.put("norm_pre", model.norm_pre)
    for i, block in enumerate(model.blocks):
        _block(block, names, f"blocks.{i}")
    if net.config.final_norm:
        names.put("norm", model.fc_norm if does_nothing(model.norm) else model.norm)
    if model.attn_pool is not None:
        _pool(model.attn_pool, names)
    for name in CLASSIFIERS:
        if getattr(net, name) is not None:
            names.put(name, getattr(model, name))
    out = {k: v.detach().cpu().clone() for k, v in names.state.items()}
    return {k: v.float() if v.is_floating_point() else v for k, v in out.items()}


class _Weights:
    """The weights of a supernet, which begin as its own.

    Args:
        net: The supernet.
    """

    def __init__(self, net: Supernet) -> None:
        self.net, self.config, self.state = net, net.config, dict(net.state_dict())

    def put(self, name: str, layer: Any, scale: nn.Module | None = None, rows: slice = slice(None)) -> None:
        """Takes the weights of a layer.

        Args:
            name: Ours.
            layer: timm's.
            scale: The layer scale behind it, if there is one.
            rows: Which of its outputs.
        """
        weight, bias = layer.weight[rows], getattr(layer, "bias", None)
        bias = torch.zeros(len(weight)) if bias is None else bias[rows]
        if isinstance(scale, LayerScale):
            weight, bias = weight * scale.gamma.view(-1, *[1] * (weight.ndim - 1)), bias * scale.gamma
        self.state[f"{name}.weight"] = weight
        if f"{name}.bias" in self.state:
            self.state[f"{name}.bias"] = bias


def _tokens(model: Any, names: _Weights) -> None:
    """Patch embedding, class token, registers and positions."""
    config, state = names.config, names.state
    if config.stem not in OWN_STEMS:
        stem = model.patch_embed.state_dict()
        shapes = {k: tuple(v.shape) for k, v in names.net.patch_embed.state_dict().items()}
        check_tensors(stem, shapes, "The model's patch embedding", owner=f"stem {config.stem!r}")
        state |= {f"patch_embed.{k}": v for k, v in stem.items()}
    else:
        names.put("patch_embed.0", model.patch_embed.proj)
    if config.patch_norm:
        names.put("patch_norm", model.patch_embed.norm)
    if model.cls_token is not None:
        state["cls_token"] = model.cls_token
    if config.reg_tokens:
        state["reg_token"] = model.dist_token if config.distilled else model.reg_token
    positions = model.pos_embed
    if lacking := config.num_tokens - positions.shape[1]:
        # Positions of the patches alone.
        positions = torch.cat([positions.new_zeros(1, lacking, config.embed_dim), positions], dim=1)
    state["pos_embed"] = positions


def _block(block: Any, names: _Weights, name: str) -> None:
    config, state, attention, mlp = names.config, names.state, block.attn, block.mlp
    heads = names.net.space.max_heads
    names.put(f"{name}.norm1", block.norm1)
    names.put(f"{name}.qkv", attention.qkv)
    for part in ("weight", "bias"):
        rows = state[f"{name}.qkv.{part}"]
        by_head = rows.view(3, heads, config.head_dim, *rows.shape[1:]).transpose(0, 1)
        state[f"{name}.qkv.{part}"] = by_head.reshape(rows.shape)
    names.put(f"{name}.proj", attention.proj, block.ls1)
    names.put(f"{name}.norm2", block.norm2)
    names.put(f"{name}.fc2", mlp.fc2, block.ls2)
    if type(mlp) is SwiGLU:
        names.put(f"{name}.gate", mlp.fc1_g)
        names.put(f"{name}.fc1", mlp.fc1_x)
    elif type(mlp) is GluMlp:
        first, second = slice(0, mlp.fc2.in_features), slice(mlp.fc2.in_features, None)
        names.put(f"{name}.gate", mlp.fc1, rows=second if mlp.gate_last else first)
        names.put(f"{name}.fc1", mlp.fc1, rows=first if mlp.gate_last else second)
    else:
        names.put(f"{name}.fc1", mlp.fc1)
    if config.qk_norm:
        names.put(f"{name}.q_norm", attention.q_norm)
        names.put(f"{name}.k_norm", attention.k_norm)
    if config.scale_norm:
        names.put(f"{name}.attn_norm", attention.norm)
        names.put(f"{name}.mlp_norm", mlp.norm)


def _pool(pool: Any, names: _Weights) -> None:
    """Attention pooling; its query is the same for every image, and so is the layer that makes it."""
    names.state["pool.query"] = pool.q(pool.latent)
    names.put("pool.kv", pool.kv)
    names.put("pool.proj", pool.proj)
    names.put("pool.norm", pool.norm)
    names.put("pool.fc1", pool.mlp.fc1)
    names.put("pool.fc2", pool.mlp.fc2)
