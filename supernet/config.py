"""What a supernet is: its search space and its architecture."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import pairwise
from typing import Annotated, Any

from annotated_types import Ge, Gt, Le

from .layers import ACTIVATIONS, NORMS
from .reading import STRICT, check_fields, plain
from .stems import Stem, check_stem, own_stem
from .tokens.modes import TokenMode, token_mode

DEEPEST, LARGEST = 1000, 2**20
"""Blocks, and any other size, beyond which a configuration is damaged rather than meant."""
HIDDEN_SLACK = 1e-6
"""What the product of a width and a ratio may lack to the next whole number of hidden units: float noise."""
Size = Annotated[int, Ge(1), Le(LARGEST)]
OfImages = Annotated[float, Ge(0), Le(1)]


def _plain(values: Any) -> Any:
    """A tuple of Python's own numbers, where a list or an array was given."""
    if not isinstance(values, Iterable) or isinstance(values, str):
        return values
    return tuple(plain(v) for v in values)


def _ascending(name: str, values: tuple[Any, ...]) -> None:
    if not values or any(a >= b for a, b in pairwise(values)):
        raise ValueError(
            f"{name}={values!r} must be a non-empty tuple, strictly ascending; the last entry is the full size."
        )


@dataclass(frozen=True)
class SearchSpace:
    """The choices that a subnet is made of.

    Attributes:
        groups: Number of blocks per group. The first group runs at full size, every later one is preceded by a
            decision, so all decided groups must have the same number of blocks.
        embed_dims: Embedding widths a block can have, ascending.
        mlp_ratios: Hidden width of the MLP divided by `embed_dim`, ascending.
        num_heads: One entry (heads are not elastic) or one per entry of `embed_dims` (heads follow the width).
        min_keep_rate: Keep rate that the lowest action stands for, in [0, 1]; a patch always stays.
        token_mode: How patches leave, one of `supernet.list_token_modes()`.
        decide_first_group: Whether a decision precedes the first group, too.
    """

    __pydantic_config__ = STRICT

    groups: tuple[Size, ...] = (3, 3, 3, 3)
    embed_dims: tuple[Size, ...] = (176, 192, 216, 240)
    mlp_ratios: tuple[Annotated[float, Gt(0), Le(LARGEST)], ...] = (2.0, 4.0, 6.0)
    num_heads: tuple[Size, ...] = (3,)
    min_keep_rate: Annotated[float, Ge(0), Le(1)] = 0.1
    token_mode: str = "prune"
    decide_first_group: bool = False

    def __post_init__(self) -> None:
        for f in ("groups", "embed_dims", "num_heads", "mlp_ratios"):
            object.__setattr__(self, f, _plain(getattr(self, f)))
        check_fields(self)
        object.__setattr__(self, "mlp_ratios", tuple(map(float, self.mlp_ratios)))
        _ascending("embed_dims", self.embed_dims)
        _ascending("mlp_ratios", self.mlp_ratios)
        if self.embed_dims[0] * self.mlp_ratios[0] < 1 - HIDDEN_SLACK:
            raise ValueError(
                f"embed_dims={self.embed_dims!r} with mlp_ratios={self.mlp_ratios!r}: an MLP of ratio "
                f"{self.mlp_ratios[0]} at width {self.embed_dims[0]} would have no hidden unit; raise one of the two."
            )
        if self.depth > DEEPEST:
            raise ValueError(f"groups={self.groups!r} have {self.depth} blocks; allowed are {DEEPEST}.")
        decided = self.groups[self.first_decided :]
        if not decided or len(set(decided)) != 1:
            raise ValueError(
                f"groups={self.groups!r} must hold at least {1 + self.first_decided} groups of at least one block, and "
                "all decided groups must have the same number of blocks (one action shape serves every decision)."
            )
        if len(self.num_heads) not in (1, len(self.embed_dims)):
            raise ValueError(
                f"num_heads={self.num_heads!r} must have one entry, or one per embed_dims={self.embed_dims!r}."
            )
        if list(self.num_heads) != sorted(self.num_heads):
            raise ValueError(f"num_heads={self.num_heads!r} must not decrease with the width.")
        token_mode(self.token_mode)

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return sum(self.groups)

    @property
    def first_decided(self) -> int:
        """The first group that a decision precedes."""
        return 0 if self.decide_first_group else 1

    @property
    def num_decisions(self) -> int:
        """Number of decisions in an episode: one before every decided group."""
        return len(self.groups) - self.first_decided

    @property
    def blocks_per_decision(self) -> int:
        """Number of blocks whose sizes one decision chooses."""
        return self.groups[-1]

    @property
    def num_rates(self) -> int:
        """Keep rates per decision."""
        return token_mode(self.token_mode).num_rates

    @property
    def action_size(self) -> int:
        """Length of an action: an mlp_ratio and an embed_dim per block of the group, and the keep rates."""
        return 2 * self.blocks_per_decision + self.num_rates

    @property
    def max_heads(self) -> int:
        """Number of heads of a block of full width."""
        return self.num_heads[-1]

    def blocks(self, group: int) -> range:
        """Indices of the blocks of `group`.

        Raises:
            IndexError: If there is no such group.
        """
        if not 0 <= group < len(self.groups):
            raise IndexError(f"group={group} does not exist; the space has the groups 0..{len(self.groups) - 1}.")
        start = sum(self.groups[:group])
        return range(start, start + self.groups[group])

    def heads(self, embed_dim: int) -> int:
        """Number of heads of a block of width `embed_dim`."""
        return self.num_heads[0 if len(self.num_heads) == 1 else self.embed_dims.index(embed_dim)]


POOLS = ("token", "avg", "map")
CROP_MODES = ("center", "squash", "border")
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")
CHOICES: dict[str, tuple[str, ...]] = {
    "norm": NORMS,
    "act": tuple(ACTIVATIONS),
    "global_pool": POOLS,
    "crop_mode": CROP_MODES,
    "interpolation": INTERPOLATIONS,
}
"""Settings of a `SupernetConfig` that are one of a few words."""


@dataclass(frozen=True)
class SupernetConfig:
    """Architecture of an elastic ViT around a `SearchSpace`.

    The defaults are a plain ViT. `plain_blocks` tells whoever runs blocks in another way whether these are.

    Attributes:
        space: The search space; its largest choices are the size of the weights.
        img_size: Height and width of the (square) input in pixels.
        patch_size: Side of a patch in pixels; must divide `img_size`.
        in_chans: Image channels.
        num_classes: Number of logits; 0 for no classifier, so that the network gives its pooled features.
        head_dim: Channels per attention head.
        stem: "patch" (one convolution, as in ViT), "conv" (three convolutions with batch norm), a name given to
            `register_stem`, or "timm/NAME": the patch embedding of that model of timm, as it is.
        patch_norm: Whether a norm follows the convolution of the stem "patch" (AIMv2).
        norm: "layer" for layer norms, "rms" for RMS norms, everywhere.
        norm_eps: Epsilon of the norms.
        act: Activation of the MLPs, one of `supernet.layers.ACTIVATIONS`.
        glu: Whether MLPs are gated: `fc2(act(gate(x)) * fc1(x))` (SwiGLU with act="silu").
        qk_norm: Whether the queries and keys of every head are normed.
        scale_norm: Whether a norm precedes the last linear layer of attention and of the MLP (BEiT-3).
        pre_norm: Whether a norm follows the embeddings (CLIP).
        class_token: Whether there is a class token.
        reg_tokens: Register tokens behind the class token; they are never dropped, merged or pooled.
        distilled: Whether the first register is DeiT's distillation token, which has a classifier of its own; the
            logits are the mean of both.
        global_pool: "token", the class token is classified; "avg", the mean of the patches; or "map", what a learned
            query attends to in the patches (SigLIP).
        final_norm: Whether there is a norm after the last block.
        fc_norm: Whether the mean is taken before the last norm instead of after it.
        text_dim: Dimension of the space that images share with the texts that the classes are (CLIP's zero-shot
            classifier, `supernet.zero_shot.ZeroShotHead`); None for a linear classifier.
        text_fitted: Whether every width has a projection of its own into that space.
        lln: Whether a learned linear map carries the residual over a group boundary (PRANCE's `lln`).
        mean: Per-channel mean of images in [0, 1]; uint8 images are normalised by the network, floats are not.
        std: Per-channel standard deviation.
        crop_pct: Images are resized to `img_size / crop_pct` before `img_size` is cut out of them, in (0, 1]; counts
            where a data set does not say otherwise, as the next two.
        crop_mode: How, one of `CROP_MODES`; see `prance_env.images.transform`.
        interpolation: How they are resized, one of `INTERPOLATIONS`.
        class_names: What the logits stand for, by label, where that belongs to the network, as with CLIP's texts;
            empty: what the labels that it was trained on stand for.
        prance_embed_dim: Width of the authors' meta-network that the weights were read from, which switches their rules
            on: norms scaled by sqrt(width / full width), blocks that hand on the next block's width, tokens sorted by
            attention at every decision. None for ours.
    """

    __pydantic_config__ = STRICT

    space: SearchSpace = field(default_factory=SearchSpace)
    img_size: Size = 224
    patch_size: Size = 16
    in_chans: Size = 3
    num_classes: Annotated[int, Ge(0), Le(LARGEST)] = 1000
    head_dim: Size = 64
    stem: str = "patch"
    patch_norm: bool = False
    norm: str = "layer"
    norm_eps: Annotated[float, Gt(0), Le(1)] = 1e-6
    act: str = "gelu"
    glu: bool = False
    qk_norm: bool = False
    scale_norm: bool = False
    pre_norm: bool = False
    class_token: bool = True
    reg_tokens: Annotated[int, Ge(0), Le(LARGEST)] = 0
    distilled: bool = False
    global_pool: str = "token"
    final_norm: bool = True
    fc_norm: bool = False
    text_dim: Size | None = None
    text_fitted: bool = False
    lln: bool = True
    mean: tuple[OfImages, ...] = (0.485, 0.456, 0.406)
    std: tuple[Annotated[float, Gt(0), Le(1)], ...] = (0.229, 0.224, 0.225)
    crop_pct: Annotated[float, Gt(0), Le(1)] = 0.875
    crop_mode: str = "center"
    interpolation: str = "bicubic"
    # Functions whose results are kept are called with configurations all the time, and none of them depends on names.
    class_names: tuple[str, ...] = field(default=(), hash=False)
    prance_embed_dim: Size | None = None

    def __post_init__(self) -> None:
        if isinstance(self.space, Mapping):
            object.__setattr__(self, "space", SearchSpace(**self.space))
        for name in ("mean", "std", "class_names"):
            object.__setattr__(self, name, _plain(getattr(self, name)))
        check_fields(self)
        for name in ("mean", "std"):
            object.__setattr__(self, name, tuple(map(float, getattr(self, name))))
            if len(getattr(self, name)) != self.in_chans:
                raise ValueError(f"{name}={getattr(self, name)!r} must have one entry for each of {self.in_chans=}.")
        if not self.num_classes:
            object.__setattr__(self, "class_names", ())
        if self.class_names and len(self.class_names) != self.num_classes:
            raise ValueError(
                f"class_names has {len(self.class_names)} entries, but num_classes={self.num_classes}; give one for "
                "each class, or none."
            )
        if self.text_dim is None and self.text_fitted:
            raise ValueError("text_fitted=True needs text_dim=, the dimension of the text embeddings.")
        if self.text_dim is not None and (self.distilled or (self.text_fitted and self.global_pool == "map")):
            raise ValueError(
                "text_dim= goes with one classifier, not with distilled=True; and text_fitted=True with features that "
                "have a width, not with global_pool='map'."
            )
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r} is unknown; choose one of {allowed}.")
        self._check_tokens()
        if self.img_size % self.patch_size:
            raise ValueError(f"img_size={self.img_size} must be a multiple of patch_size={self.patch_size}.")
        if self.num_patches > LARGEST:
            raise ValueError(f"img_size={self.img_size} has {self.num_patches} patches; allowed are {LARGEST}.")
        check_stem(self.stem, self.patch_size, self.embed_dim)
        if self.patch_norm and self.stem != "patch":
            raise ValueError(
                f"patch_norm=True goes with stem='patch', not with {self.stem!r}, which has its own norms."
            )

    def _check_tokens(self) -> None:
        """Whether what is pooled is there, and the authors' rules know all kinds of tokens and norms."""
        if self.global_pool == "token" and not self.class_token:
            raise ValueError("global_pool='token' needs class_token=True; choose global_pool='avg'.")
        if self.distilled and (self.global_pool != "token" or not self.reg_tokens):
            raise ValueError(
                "distilled=True needs global_pool='token' and reg_tokens=1 or more: the first register is the "
                "distillation token."
            )
        if self.global_pool == "map" and self.fc_norm:
            raise ValueError("fc_norm=True goes with global_pool='avg'; global_pool='map' pools what is normed.")
        if self.global_pool == "map" and self.embed_dim % self.head_dim:
            raise ValueError(
                f"global_pool='map' cuts embed_dim={self.embed_dim} into heads; it must be a multiple of "
                f"head_dim={self.head_dim}."
            )
        plain = self.plain_blocks and self.final_norm and not self.reg_tokens and self.global_pool != "map"
        if self.prance_embed_dim is not None and not plain:
            raise ValueError(
                "prance_embed_dim switches the authors' rules on, which know neither registers nor attention pooling, "
                "gated MLPs or other norms; leave it None."
            )

    @property
    def embed_dim(self) -> int:
        """Full width."""
        return self.space.embed_dims[-1]

    @property
    def token_mode(self) -> TokenMode:
        """How patches leave: the registered mode, or the authors' version of it."""
        return token_mode(self.space.token_mode, authors=self.prance_embed_dim is not None)

    @property
    def stands_for(self) -> tuple[TokenMode, Stem | None]:
        """What its names stand for now: part of the key of whatever is kept by configuration."""
        return self.token_mode, own_stem(self.stem)

    @property
    def num_patches(self) -> int:
        """Patches of an image, tokens in front of them not counted."""
        return (self.img_size // self.patch_size) ** 2

    @property
    def num_prefix_tokens(self) -> int:
        """Tokens in front of the patches, which always stay: the class token, if there is one, and the registers."""
        return int(self.class_token) + self.reg_tokens

    @property
    def plain_blocks(self) -> bool:
        """Whether blocks are those of a plain ViT: layer norms before attention and MLP and nowhere else, no gate."""
        return self.norm == "layer" and not (self.glu or self.qk_norm or self.scale_norm)

    @property
    def num_tokens(self) -> int:
        """Tokens of an image before any is dropped, class token and registers included."""
        return self.num_patches + self.num_prefix_tokens

    @property
    def unnamed(self) -> SupernetConfig:
        """The same without names of classes, which make no other network of one."""
        return replace(self, class_names=())

    def zoom(self, embed_dim: int) -> float:
        """Factor on the gain of a layer norm: 1, or with the authors' rules sqrt(embed_dim / full width)."""
        full = self.prance_embed_dim
        return 1.0 if full is None else math.sqrt(embed_dim / full)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for `config.json`; names of classes only if there are any."""
        found = asdict(self)
        return found if self.class_names else {k: v for k, v in found.items() if k != "class_names"}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> SupernetConfig:
        """Inverse of `to_dict`; keys that are missing, as in files of earlier versions, have their defaults.

        Raises:
            ValueError: If a key is unknown, or `space` is no mapping.
        """
        known, known_space = ({f.name for f in fields(kind)} for kind in (cls, SearchSpace))
        if unknown := set(data) - known:
            of_space = sorted(unknown & known_space)
            hint = f"; {of_space} belong into space={{...}}" if of_space else ""
            raise ValueError(f"Unknown supernet settings {sorted(unknown)}; known are {sorted(known)}{hint}.")
        space = data.get("space", {})
        if not isinstance(space, SearchSpace | Mapping):
            raise ValueError(
                f"space={space!r} must be a SearchSpace or a mapping of its fields, {sorted(known_space)}."
            )
        if not isinstance(space, SearchSpace) and (unknown := set(space) - known_space):
            raise ValueError(f"Unknown search space settings {sorted(unknown)}; known are {sorted(known_space)}.")
        return cls(**data)


def with_space(config: SupernetConfig, **changes: Any) -> SupernetConfig:
    """The configuration with changed search-space settings."""
    return replace(config, space=replace(config.space, **changes))
