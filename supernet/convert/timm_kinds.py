"""What a ViT of timm is made of: the configuration of a supernet that computes the same, or why there is none."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from timm.layers import AttentionPoolLatent, GluMlp, Mlp, PatchEmbed, RmsNorm, SwiGLU
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import Attention, Block, LayerScale, VisionTransformer
from torch import nn

from ..config import CROP_MODES, INTERPOLATIONS, SearchSpace, SupernetConfig
from ..layers import ACTIVATIONS, NORMS
from ..stems import TIMM
from .unwrap import does_nothing

WIDTHS, RATIOS, GROUPS = (2 / 3, 7 / 9, 8 / 9, 1), (1 / 2, 3 / 4, 1), 4
RMS_NORMS = (RmsNorm, nn.RMSNorm)
OTHER_FAMILIES = {
    "Eva": "it turns queries and keys by their position in the image, which merged tokens have not",
    "Beit": "its attention has a bias by relative position, which merged tokens have not",
    "VisionTransformerRelPos": "its attention has a bias by relative position, which merged tokens have not",
    "VisionTransformerSAM": "its attention has windows and a bias by relative position",
    "NaFlexVit": "it takes images of any shape; import the model of fixed size that it goes back to",
    "PeftModel": "merge its adapters and pass what peft_model.merge_and_unload() gives",
    "FullyShardedDataParallel": "its weights are spread over processes; load the full state dict into the plain model",
}
"""Why models of other classes are refused."""

_PARALLEL = ", in which attention and MLP run side by side, so that no tokens can leave between them"
OTHER_PARTS = {
    "ResPostBlock": ", which norms what attention and MLP give instead of what they read",
    "ParallelScalingBlock": _PARALLEL,
    "DiffParallelScalingBlock": _PARALLEL,
    "ParallelThingsBlock": ", in which several attentions run side by side",
    "DiffAttention": ", which is the difference of two attentions",
}
"""What is different about parts of other classes."""


def check_family(model: nn.Module) -> None:
    """Refuses models that are no plain ViTs at all.

    Raises:
        ValueError: With the reason.
    """
    if type(model) not in (VisionTransformer, VisionTransformerDistilled):
        name = type(model).__name__
        why = f": {OTHER_FAMILIES[name]}" if name in OTHER_FAMILIES else ""
        raise ValueError(
            f"{name} is not a plain ViT{why}. from_timm takes models of timm's classes VisionTransformer and "
            "VisionTransformerDistilled."
        )


def check_kind(model: Any) -> None:
    """Refuses parts that the supernet would compute differently; layers are unwrapped (`simplify`).

    Raises:
        ValueError: With the names of the parts.
    """
    embed, pool = model.patch_embed, model.attn_pool
    block = model.blocks[0] if len(model.blocks) else None
    obstacles = {
        "no blocks": block is None,
        "no position embedding": model.pos_embed is None,
        "registers beside a distillation token": hasattr(model, "dist_token") and model.reg_token is not None,
        f"global_pool={model.global_pool!r} (only 'token', 'avg' and 'map')": model.global_pool
        not in ("token", "avg", "map"),
        # Not before timm 1.0.16.
        "pooling that includes class token or registers (pool_include_prefix)": model.global_pool != "token"
        and getattr(model, "pool_include_prefix", False)
        and model.num_prefix_tokens > 0,
        "a norm behind attention pooling": pool is not None and not does_nothing(model.fc_norm),
        "a patch embedding that pads (dynamic_img_pad)": getattr(embed, "dynamic_img_pad", False),
    }
    for name in ("pos_drop", "patch_drop", "head_drop"):
        part = getattr(model, name, None)
        obstacles[f"{name} of type {type(part).__name__}"] = not does_nothing(part)
    for i, block in enumerate(model.blocks):
        if inside := [what for what, there in _obstacles_in(block).items() if there]:
            obstacles[f"in block {i} {', '.join(inside)}"] = True
            break
    if pool is not None and not any(obstacles.values()):
        obstacles |= _obstacles_in_pool(pool, model)
    if found := [what for what, there in obstacles.items() if there]:
        raise ValueError(f"This model has {'; '.join(found[:4])}; the supernet has no such thing.")
    _check_norms(model)


def _called(part: Any) -> str:
    name = type(part).__name__
    return f"{name}{OTHER_PARTS.get(name, '')}"


def _obstacles_in(block: Any) -> dict[str, bool]:
    attention, mlp = getattr(block, "attn", None), getattr(block, "mlp", None)
    if type(block) is not Block:
        return {f"a block of type {_called(block)}": True}
    if type(attention) is not Attention:
        return {f"attention of type {_called(attention)}": True}
    if type(mlp) not in (Mlp, SwiGLU, GluMlp):
        return {f"an MLP of type {_called(mlp)}": True}
    scaled = [not does_nothing(getattr(part, "norm", None)) for part in (attention, mlp)]
    found = {
        "a norm of queries or of keys alone": does_nothing(attention.q_norm) != does_nothing(attention.k_norm),
        "attention with a gate": getattr(attention, "gate", None) is not None,
        "a norm inside attention or MLP alone": scaled[0] != scaled[1],
    }
    for name in ("ls1", "ls2"):
        part = getattr(block, name, None)
        found[f"{name} of type {type(part).__name__}"] = not (does_nothing(part) or type(part) is LayerScale)
    drops = {"drop_path1": block, "drop_path2": block, "attn_drop": attention, "proj_drop": attention, "drop1": mlp}
    for name, owner in {**drops, "drop2": mlp}.items():
        part = getattr(owner, name, None)
        found[f"{name} of type {type(part).__name__}"] = not does_nothing(part)
    return found


def _obstacles_in_pool(pool: Any, model: Any) -> dict[str, bool]:
    if type(pool) is not AttentionPoolLatent:
        return {f"pooling of type {type(pool).__name__}": True}
    block = model.blocks[0]
    return {
        "attention pooling with several queries": pool.latent_len != 1 or pool.pool not in ("token", "avg"),
        "attention pooling with positions or query norms": pool.pos_embed is not None
        or not (does_nothing(pool.q_norm) and does_nothing(pool.k_norm)),
        "attention pooling without an MLP": type(pool.mlp) is not Mlp,
        "attention pooling of other heads than the blocks'": pool.num_heads != block.attn.num_heads,
    }


def _check_norms(model: Any) -> None:
    norms = [m for m in norms_of(model) if not does_nothing(m)]
    if len(kinds := {_norm_kind(m) for m in norms}) > 1 or not kinds <= set(NORMS):
        raise ValueError(f"The norms of this model are of the kinds {sorted(kinds)}; the supernet has one, of {NORMS}.")
    if len({m.eps for m in norms}) != 1 or any(m.weight is None for m in norms):
        raise ValueError(f"The norms of this model differ in eps ({sorted({m.eps for m in norms})}) or have no gain.")


def _norm_kind(norm: nn.Module) -> str:
    return "rms" if isinstance(norm, RMS_NORMS) else "layer" if isinstance(norm, nn.LayerNorm) else type(norm).__name__


def norms_of(model: Any) -> list[Any]:
    """All norms of a model, but those of a stem that runs as it is; identities among them."""
    found = [model.norm_pre, model.norm, model.fc_norm]
    if type(model.patch_embed) is PatchEmbed:
        found.append(model.patch_embed.norm)
    for block in model.blocks:
        found += [block.norm1, block.norm2, block.attn.q_norm, block.attn.k_norm]
        found += [getattr(part, "norm", None) for part in (block.attn, block.mlp)]
    return found if model.attn_pool is None else [*found, model.attn_pool.norm]


class BlockKind(NamedTuple):
    """What the blocks of a network have in common."""

    num_heads: int
    head_dim: int
    hidden: int
    glu: bool
    qk_norm: bool
    scale_norm: bool
    act: str


def block_kind(model: Any) -> BlockKind:
    """What the blocks of a model have in common, whose layers are simplified.

    Raises:
        ValueError: If they differ, or the activation is unknown.
    """
    kinds = {_kind(block) for block in model.blocks}
    if len(kinds) > 1:
        raise ValueError(f"The blocks of this model differ: {sorted(kinds)[:3]}; those of a supernet are alike.")
    kind = kinds.pop()
    if model.attn_pool is not None:
        pool = model.attn_pool.mlp
        if kind.glu or pool.fc1.out_features != kind.hidden or _activation(pool.act) != kind.act:
            raise ValueError(
                "The MLP of this model's attention pooling differs from those of its blocks; the supernet's does not."
            )
    return kind


def _kind(block: Any) -> BlockKind:
    attention, mlp = block.attn, block.mlp
    return BlockKind(
        num_heads=attention.num_heads,
        head_dim=attention.qkv.out_features // (3 * attention.num_heads),
        hidden=mlp.fc2.in_features,
        glu=type(mlp) is not Mlp,
        qk_norm=not does_nothing(attention.q_norm),
        scale_norm=not does_nothing(getattr(attention, "norm", None)),
        act=_activation(mlp.act),
    )


def _activation(module: nn.Module) -> str:
    """Name of an activation, found by what it computes."""
    x = torch.linspace(-4, 4, 101, device="cpu")
    for name, function in ACTIVATIONS.items():
        if torch.allclose(module(x), function(x), atol=1e-6):
            return name
    raise ValueError(f"The activation {type(module).__name__} is none of {sorted(ACTIVATIONS)}.")


def config_of(model: Any, space: SearchSpace | None, lln: bool, stem: str | None = None) -> SupernetConfig:
    """The configuration of a supernet that computes what a model computes.

    Args:
        model: Of a kind that `check_kind` lets pass, simplified.
        space: Its search space; None: `default_space`.
        lln: Whether to add linear maps over group boundaries.
        stem: Name of its patch embedding, if that is a registered one.

    Raises:
        ValueError: If the model's sizes do not fit the space, or images and patches are not square or leave pixels
            over.
    """
    kind, depth = block_kind(model), len(model.blocks)
    ratio = kind.hidden / model.embed_dim
    space = default_space(model.embed_dim, ratio, kind.num_heads, depth) if space is None else space
    for name, own, needed in (
        ("embed_dims end", space.embed_dims[-1], model.embed_dim),
        ("num_heads end", space.num_heads[-1], kind.num_heads),
        ("mlp_ratios end", space.mlp_ratios[-1], ratio),
        ("groups add up", sum(space.groups), depth),
    ):
        if own != needed:
            raise ValueError(
                f"The space's {name} to {own}, but the model has {needed}; its full size must be the model's."
            )
    norm = next(m for m in norms_of(model) if not does_nothing(m))
    ends = [not does_nothing(m) for m in (model.norm, model.fc_norm)]
    return SupernetConfig(
        space=space,
        **_image_settings(model),
        num_classes=model.head.out_features if isinstance(model.head, nn.Linear) else 0,
        head_dim=kind.head_dim,
        stem=_stem_of(model, stem),
        patch_norm=type(model.patch_embed) is PatchEmbed and not does_nothing(model.patch_embed.norm),
        norm="rms" if isinstance(norm, RMS_NORMS) else "layer",
        norm_eps=norm.eps,
        act=kind.act,
        glu=kind.glu,
        qk_norm=kind.qk_norm,
        scale_norm=kind.scale_norm,
        pre_norm=not does_nothing(model.norm_pre),
        class_token=model.cls_token is not None,
        reg_tokens=model.num_prefix_tokens - (model.cls_token is not None),
        distilled=hasattr(model, "dist_token"),
        global_pool=model.global_pool,
        final_norm=any(ends),
        fc_norm=model.global_pool == "avg" and ends[1],
        lln=lln,
    )


def _stem_of(model: Any, stem: str | None) -> str:
    kind = type(model.patch_embed)
    if stem is not None or kind is PatchEmbed:
        return stem or "patch"
    name = (getattr(model, "pretrained_cfg", None) or {}).get("architecture")
    if not name:
        raise ValueError(
            f"The patch embedding is a {kind.__name__}, and the model does not say which of timm's it is "
            "(pretrained_cfg['architecture']); register what makes it with register_stem(name, make) and pass "
            "stem=name."
        )
    return TIMM + str(name)


def _image_settings(model: Any) -> dict[str, Any]:
    """Sizes of images and patches, and how images are prepared, by the model's `pretrained_cfg`."""
    (height, width), (rows, columns) = model.patch_embed.img_size, model.patch_embed.grid_size
    embed = model.patch_embed
    patch = embed.patch_size[0] if type(embed) is PatchEmbed else height // rows
    if height != width or rows != columns:
        raise ValueError(f"Images of {height}x{width} in {rows}x{columns} patches: both must be square.")
    if height != rows * patch:
        raise ValueError(
            f"Images of {height}x{width} in patches of {patch}: {height - rows * patch} pixels are left over, which "
            f"the model does not see. Make it with img_size={rows * patch}: its patches and positions are the same."
        )
    cfg = getattr(model, "pretrained_cfg", None) or {}
    convolutions = [part for part in embed.modules() if isinstance(part, nn.Conv2d)]
    chans = convolutions[0].in_channels if convolutions else model.in_chans  # timm's models say it since 1.0.25 only
    found: dict[str, Any] = {"img_size": height, "patch_size": patch, "in_chans": chans}
    for name in ("mean", "std"):
        values = tuple(cfg.get(name, (0.5, 0.5, 0.5)))
        found[name] = values if len(values) == chans else (sum(values) / len(values),) * chans
    for name, allowed in (("crop_mode", CROP_MODES), ("interpolation", INTERPOLATIONS)):
        if cfg.get(name) in allowed:
            found[name] = cfg[name]
    return found | ({"crop_pct": cfg["crop_pct"]} if cfg.get("crop_pct") else {})


def default_space(embed_dim: int, mlp_ratio: float, num_heads: int, depth: int) -> SearchSpace:
    """The space that `from_timm` puts around a model.

    Up to four widths from two thirds of the full one, with their share of the heads; three MLP ratios from a half; and
    four groups (fewer for a shallow model), the first of which takes what does not divide.
    """
    step = next((n for n in (32, 16, 8) if embed_dim % n == 0 and embed_dim >= 4 * n), 1)
    widths = sorted({max(step, step * round(embed_dim * f / step)) for f in WIDTHS})
    blocks = max(1, depth // GROUPS)
    decided = min(GROUPS, depth) - 1
    return SearchSpace(
        groups=(depth - blocks * decided, *[blocks] * decided),
        embed_dims=tuple(widths),
        mlp_ratios=tuple(mlp_ratio * r for r in RATIOS),
        num_heads=tuple(math.ceil(num_heads * w / embed_dim) for w in widths),
    )
