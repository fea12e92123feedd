"""timm's plain Vision Transformers as supernets: the same function at full width, elastic below it."""

from __future__ import annotations

import math
from typing import Any

import timm
import torch
from timm.layers import Mlp, PatchEmbed
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import Attention, Block, LayerScale, VisionTransformer
from torch import Tensor, nn

from ..config import SearchSpace, SupernetConfig
from ..vit import Supernet

WIDTHS, RATIOS, GROUPS = (2 / 3, 7 / 9, 8 / 9, 1), (1 / 2, 3 / 4, 1), 4
TOLERANCE = 1e-3


def from_timm(
    name_or_module: str | nn.Module, space: SearchSpace | None = None, *, pretrained: bool = False, lln: bool = False
) -> Supernet:
    """Makes a plain ViT of timm elastic: ViT, DeiT, DeiT-3, AugReg, DINO, CLIP's image towers and their like.

    Layer scales are folded into the layers before them. Weights are copied. Narrower subnets are useful only after
    training (a pretrained network was not trained to be cut).

    Args:
        name_or_module: A model name of timm (`timm.list_models("vit_*")`), or a module, of class `VisionTransformer`.
        space: What can be chosen; its largest choices must be the model's sizes. None: `default_space`.
        pretrained: Whether to download the weights of a model given by name.
        lln: Whether to add the linear maps over group boundaries, as identities, for training.

    Returns:
        The supernet in evaluation mode, on the CPU in float32. Float images must be normalised as for the model; uint8
        images are normalised with the mean and std of its `pretrained_cfg`.

    Raises:
        ValueError: If the model is of another kind (the message says what stands in the way) or does not fit `space`.
        RuntimeError: If timm does not know the name, or the weights cannot be downloaded.
    """
    model = (
        timm.create_model(name_or_module, pretrained=pretrained) if isinstance(name_or_module, str) else name_or_module
    )
    _check_supported(model)
    config = _config_of(model, space, lln)
    net = Supernet(config)
    net.load_state_dict(_converted(model, net))
    _verify(model, net)
    return net.eval()


def default_space(embed_dim: int, mlp_ratio: float, num_heads: int, depth: int) -> SearchSpace:
    """The space that `from_timm` puts around a model.

    Up to four widths from two thirds of the full one, with their share of the heads; three MLP ratios from a half; and
    four groups (fewer for a shallow model), the first of which takes what does not divide.
    """
    step = next(n for n in (32, 16, 8, 1) if embed_dim % n == 0 and embed_dim >= 4 * n)
    widths = sorted({max(step, step * round(embed_dim * f / step)) for f in WIDTHS})
    blocks = max(1, depth // GROUPS)
    decided = min(GROUPS, depth) - 1
    return SearchSpace(
        groups=(depth - blocks * decided, *[blocks] * decided),
        embed_dims=tuple(widths),
        mlp_ratios=tuple(mlp_ratio * r for r in RATIOS),
        num_heads=tuple(math.ceil(num_heads * w / embed_dim) for w in widths),
    )


def _check_supported(model: nn.Module) -> None:
    """Refuses whatever the supernet would compute differently."""

    def plain(module: Any) -> bool:
        return module is None or isinstance(module, nn.Identity)

    name = type(model).__name__
    if isinstance(model, VisionTransformerDistilled):
        raise ValueError(
            f"{name} has a distillation token and two classifiers, which the supernet has not; use the model without "
            "it, such as deit_small_patch16_224."
        )
    if type(model) is not VisionTransformer:
        raise ValueError(f"{name} is not a plain ViT; from_timm takes models of timm's class VisionTransformer.")
    embed = model.patch_embed
    obstacles = {
        "register tokens (reg_tokens)": model.reg_token is not None,
        "no position embedding": model.pos_embed is None,
        f"global_pool={model.global_pool!r} (only 'token' and 'avg')": model.global_pool not in ("token", "avg"),
        "pooling that includes the class token": model.global_pool == "avg"
        and getattr(model, "pool_include_prefix", False),  # not before timm 1.0.16
        "no final norm": plain(model.norm) and plain(model.fc_norm),
        "a patch embedding that is not one convolution": type(embed) is not PatchEmbed or not plain(embed.norm),
    }
    for i, block in enumerate(model.blocks):
        attention, mlp = getattr(block, "attn", None), getattr(block, "mlp", None)
        obstacles[f"block {i} of type {type(block).__name__}"] = type(block) is not Block
        obstacles[f"attention of type {type(attention).__name__} in block {i}"] = type(attention) is not Attention
        obstacles[f"an MLP of type {type(mlp).__name__} in block {i}"] = type(mlp) is not Mlp
        for part in ("q_norm", "k_norm", "norm", "gate"):
            obstacles[f"attention with {part} in block {i}"] = not plain(getattr(attention, part, None))
        obstacles[f"an MLP with a norm in block {i}"] = not plain(getattr(mlp, "norm", None))
    if found := [what for what, there in obstacles.items() if there]:
        raise ValueError(f"This model has {'; '.join(found[:4])}; the supernet has no such thing.")
    norms = [m for m in model.modules() if isinstance(m, nn.LayerNorm)]
    if len({m.eps for m in norms}) != 1 or not all(m.elementwise_affine for m in norms):
        raise ValueError(
            f"The layer norms of this model differ in eps ({sorted({m.eps for m in norms})}) or have no gain."
        )


def _activation(module: nn.Module) -> str:
    """Name of an activation, found by what it computes."""
    from ..layers import ACTIVATIONS

    x = torch.linspace(-4, 4, 101)
    for name, function in ACTIVATIONS.items():
        if torch.allclose(module(x), function(x), atol=1e-6):
            return name
    raise ValueError(f"The activation {type(module).__name__} is none of {sorted(ACTIVATIONS)}.")


def _config_of(model: Any, space: SearchSpace | None, lln: bool) -> SupernetConfig:
    block = model.blocks[0]
    heads, head_dim, hidden = block.attn.num_heads, block.attn.qkv.out_features // (3 * block.attn.num_heads), block.mlp
    ratio, depth = hidden.fc1.out_features / model.embed_dim, len(model.blocks)
    space = default_space(model.embed_dim, ratio, heads, depth) if space is None else space
    for name, own, needed in (
        ("embed_dims end", space.embed_dims[-1], model.embed_dim),
        ("num_heads end", space.num_heads[-1], heads),
        ("mlp_ratios end", space.mlp_ratios[-1], ratio),
        ("groups add up", sum(space.groups), depth),
    ):
        if own != needed:
            raise ValueError(
                f"The space's {name} to {own}, but the model has {needed}; its full size must be the model's."
            )
    (height, width), (patch, patch_width) = model.patch_embed.img_size, model.patch_embed.patch_size
    if height != width or patch != patch_width:
        raise ValueError(f"Images of {height}x{width} in patches of {patch}x{patch_width}: both must be square.")
    in_chans, cfg = model.patch_embed.proj.in_channels, getattr(model, "pretrained_cfg", None) or {}
    mean, std = cfg.get("mean", (0.5, 0.5, 0.5)), cfg.get("std", (0.5, 0.5, 0.5))
    if len(mean) != in_chans:
        mean, std = (sum(mean) / len(mean),) * in_chans, (sum(std) / len(std),) * in_chans
    return SupernetConfig(
        space=space,
        img_size=height,
        patch_size=patch,
        in_chans=in_chans,
        num_classes=model.head.out_features if isinstance(model.head, nn.Linear) else 0,
        head_dim=head_dim,
        norm_eps=block.norm1.eps,
        act=_activation(hidden.act),
        pre_norm=isinstance(model.norm_pre, nn.LayerNorm),
        class_token=model.cls_token is not None,
        global_pool=model.global_pool,
        fc_norm=model.global_pool == "avg" and isinstance(model.fc_norm, nn.LayerNorm),
        lln=lln,
        mean=tuple(mean),
        std=tuple(std),
    )


def _converted(model: Any, net: Supernet) -> dict[str, Tensor]:
    """timm's weights under our names; what timm leaves out (biases) is zero, what we add (lln) is as it is."""
    state = dict(net.state_dict())
    heads, head_dim = net.space.max_heads, net.config.head_dim

    def put(name: str, layer: Any, scale: Tensor | None = None) -> None:
        gain = torch.ones(()) if scale is None else scale
        weight, bias = layer.weight, torch.zeros_like(state[f"{name}.bias"]) if layer.bias is None else layer.bias
        state[f"{name}.weight"] = weight * gain.view(-1, *[1] * (weight.ndim - 1)) if scale is not None else weight
        state[f"{name}.bias"] = bias * gain

    def gamma(layer_scale: nn.Module) -> Tensor | None:
        return layer_scale.gamma if isinstance(layer_scale, LayerScale) else None

    position = model.pos_embed
    if model.cls_token is not None:
        state["cls_token"] = model.cls_token
        if position.shape[1] == net.config.num_patches:
            position = torch.cat([torch.zeros_like(position[:, :1]), position], dim=1)
    state["pos_embed"] = position
    put("patch_embed.0", model.patch_embed.proj)
    if net.config.pre_norm:
        put("norm_pre", model.norm_pre)
    for i, block in enumerate(model.blocks):
        put(f"blocks.{i}.norm1", block.norm1)
        put(f"blocks.{i}.qkv", block.attn.qkv)
        for part in ("weight", "bias"):
            rows = state[f"blocks.{i}.qkv.{part}"]
            by_head = rows.view(3, heads, head_dim, *rows.shape[1:]).transpose(0, 1)
            state[f"blocks.{i}.qkv.{part}"] = by_head.reshape(rows.shape)
        put(f"blocks.{i}.proj", block.attn.proj, gamma(block.ls1))
        put(f"blocks.{i}.norm2", block.norm2)
        put(f"blocks.{i}.fc1", block.mlp.fc1)
        put(f"blocks.{i}.fc2", block.mlp.fc2, gamma(block.ls2))
    put("norm", model.norm if isinstance(model.norm, nn.LayerNorm) else model.fc_norm)
    if net.head is not None:
        put("head", model.head)
    return {k: v.detach().float().cpu().clone() for k, v in state.items()}


@torch.no_grad()
def _verify(model: Any, net: Supernet) -> None:
    """Both must agree on noise; what the checks above do not know of would show here."""
    c = net.config
    images = torch.randn(2, c.in_chans, c.img_size, c.img_size, generator=torch.Generator().manual_seed(0))
    weight, training = model.patch_embed.proj.weight, model.training
    expected = model.eval()(images.to(weight.device, weight.dtype)).float().cpu()
    model.train(training)
    error = float((net.eval()(images) - expected).abs().max() / expected.abs().max().clamp_min(1))
    if weight.dtype == torch.float32 and not error <= TOLERANCE:
        raise ValueError(f"The supernet's output differs from the model's by {error:.1e}; it is no plain ViT.")
