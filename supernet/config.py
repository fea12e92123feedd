"""What a supernet is: its search space and its architecture."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import pairwise
from typing import Any

from .layers import ACTIVATIONS
from .tokens.modes import TokenMode, token_mode


def _ascending(name: str, values: tuple[Any, ...], minimum: float) -> None:
    if not values or any(not math.isfinite(v) or v < minimum for v in values):
        raise ValueError(f"{name}={values!r} must be a non-empty tuple of numbers >= {minimum}.")
    if any(a >= b for a, b in pairwise(values)):
        raise ValueError(f"{name}={values!r} must be strictly ascending; the last entry is the full size.")


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

    groups: tuple[int, ...] = (3, 3, 3, 3)
    embed_dims: tuple[int, ...] = (176, 192, 216, 240)
    mlp_ratios: tuple[float, ...] = (2.0, 4.0, 6.0)
    num_heads: tuple[int, ...] = (3,)
    min_keep_rate: float = 0.1
    token_mode: str = "prune"
    decide_first_group: bool = False

    def __post_init__(self) -> None:
        for f in ("groups", "embed_dims", "num_heads"):
            object.__setattr__(self, f, tuple(int(v) for v in getattr(self, f)))
        object.__setattr__(self, "mlp_ratios", tuple(float(v) for v in self.mlp_ratios))
        _ascending("embed_dims", self.embed_dims, 1)
        _ascending("mlp_ratios", self.mlp_ratios, 1e-6)
        decided = self.groups[self.first_decided :]
        if not decided or min(self.groups) < 1 or len(set(decided)) != 1:
            raise ValueError(
                f"groups={self.groups!r} must hold at least {1 + self.first_decided} groups of at least one block, and "
                "all decided groups must have the same number of blocks (one action shape serves every decision)."
            )
        if len(self.num_heads) not in (1, len(self.embed_dims)) or min(self.num_heads) < 1:
            raise ValueError(
                f"num_heads={self.num_heads!r} must have one entry, or one per embed_dims={self.embed_dims!r}."
            )
        if list(self.num_heads) != sorted(self.num_heads):
            raise ValueError(f"num_heads={self.num_heads!r} must not decrease with the width.")
        if not 0 <= self.min_keep_rate <= 1:
            raise ValueError(f"min_keep_rate={self.min_keep_rate!r} must lie in [0, 1].")
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


STEMS = ("patch", "conv")
POOLS = ("token", "avg")


@dataclass(frozen=True)
class SupernetConfig:
    """Architecture of an elastic ViT around a `SearchSpace`.

    Attributes:
        space: The search space; its largest choices are the size of the weights.
        img_size: Height and width of the (square) input in pixels.
        patch_size: Side of a patch in pixels; must divide `img_size`.
        in_chans: Image channels.
        num_classes: Number of logits; 0 for no classifier, so that the network gives its pooled features.
        head_dim: Channels per attention head.
        stem: "patch" (one convolution, as in ViT) or "conv" (three convolutions with batch norm).
        norm_eps: Epsilon of the layer norms.
        act: Activation of the MLPs, one of `supernet.layers.ACTIVATIONS`.
        pre_norm: Whether a layer norm follows the embeddings (CLIP).
        class_token: Whether there is a class token.
        global_pool: "token", the class token is classified, or "avg", the mean of the patches.
        fc_norm: Whether the mean is taken before the last layer norm instead of after it.
        lln: Whether a learned linear map carries the residual over a group boundary (PRANCE's `lln`).
        mean: Per-channel mean of images in [0, 1]; uint8 images are normalised by the network, floats are not.
        std: Per-channel standard deviation.
        prance_embed_dim: Width of the authors' meta-network that the weights were read from, which switches their rules
            on: norms scaled by sqrt(width / full width), blocks that hand on the next block's width, tokens sorted by
            attention at every decision. None for ours.
    """

    space: SearchSpace = field(default_factory=SearchSpace)
    img_size: int = 224
    patch_size: int = 16
    in_chans: int = 3
    num_classes: int = 1000
    head_dim: int = 64
    stem: str = "patch"
    norm_eps: float = 1e-6
    act: str = "gelu"
    pre_norm: bool = False
    class_token: bool = True
    global_pool: str = "token"
    fc_norm: bool = False
    lln: bool = True
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    prance_embed_dim: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.space, dict):
            object.__setattr__(self, "space", SearchSpace(**self.space))
        for name in ("mean", "std"):
            object.__setattr__(self, name, tuple(float(v) for v in getattr(self, name)))
            if len(getattr(self, name)) != self.in_chans:
                raise ValueError(f"{name}={getattr(self, name)!r} must have one entry for each of {self.in_chans=}.")
        for name in ("img_size", "patch_size", "in_chans", "num_classes", "head_dim"):
            if int(getattr(self, name)) != getattr(self, name) or getattr(self, name) < (name != "num_classes"):
                raise ValueError(f"{name}={getattr(self, name)!r} must be a positive integer.")
        for name, allowed in (("stem", STEMS), ("act", tuple(ACTIVATIONS)), ("global_pool", POOLS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r} is unknown; choose one of {allowed}.")
        if self.global_pool == "token" and not self.class_token:
            raise ValueError("global_pool='token' needs class_token=True; choose global_pool='avg'.")
        if self.img_size % self.patch_size:
            raise ValueError(f"img_size={self.img_size} must be a multiple of patch_size={self.patch_size}.")
        if self.stem == "conv" and self.patch_size % 4:
            raise ValueError(f"stem='conv' needs a patch_size that is a multiple of 4, not {self.patch_size}.")

    @property
    def embed_dim(self) -> int:
        """Full width."""
        return self.space.embed_dims[-1]

    @property
    def token_mode(self) -> TokenMode:
        """How patches leave: the registered mode, or the authors' version of it."""
        return token_mode(self.space.token_mode, authors=self.prance_embed_dim is not None)

    @property
    def num_patches(self) -> int:
        """Patches of an image, the class token not counted."""
        return (self.img_size // self.patch_size) ** 2

    @property
    def num_prefix_tokens(self) -> int:
        """1 if there is a class token, else 0."""
        return int(self.class_token)

    @property
    def num_tokens(self) -> int:
        """Tokens of an image before any is dropped, the class token included."""
        return self.num_patches + self.num_prefix_tokens

    def zoom(self, embed_dim: int) -> float:
        """Factor on the gain of a layer norm: 1, or with the authors' rules sqrt(embed_dim / full width)."""
        full = self.prance_embed_dim
        return 1.0 if full is None else math.sqrt(embed_dim / full)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for `config.json`."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> SupernetConfig:
        """Inverse of `to_dict`.

        Raises:
            ValueError: If a key is unknown or missing from `space`.
        """
        known = {f.name for f in fields(cls)}
        if unknown := set(data) - known:
            raise ValueError(f"Unknown supernet settings {sorted(unknown)}; known are {sorted(known)}.")
        known_space = {f.name for f in fields(SearchSpace)}
        space = data.get("space", {})
        if not isinstance(space, SearchSpace) and (unknown := set(space) - known_space):
            raise ValueError(f"Unknown search space settings {sorted(unknown)}; known are {sorted(known_space)}.")
        return cls(**data)


def with_space(config: SupernetConfig, **changes: Any) -> SupernetConfig:
    """The configuration with changed search-space settings."""
    return replace(config, space=replace(config.space, **changes))
