"""Permuting the units of a supernet so that prefixes hold the important ones; the full network stays the same function.

Subnets are prefixes: the first channels, the first heads, the first hidden units. A network that was trained elsewhere
has its units in no order, so what is cut is arbitrary. Embedding channels are permuted once for the whole network,
because the residual carries them through all blocks; heads and hidden units in every block by itself.
"""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from .config import SupernetConfig
from .heads import ImageClassifier
from .plan import hidden_dims
from .stems import OWN_STEMS, TIMM
from .subnet import HOST
from .vit import Supernet

BLOCK = re.compile(r"blocks\.(\d+)\.(\w+)\.")
# What the first and the second axis of a weight count: embedding channels, channels of heads, hidden units, or neither.
_IN_BLOCK = {
    "norm1": ("embed_dim",),
    "norm2": ("embed_dim",),
    "qkv": ("qkv", "embed_dim"),
    "q_norm": (),
    "k_norm": (),
    "attn_norm": ("heads",),
    "proj": ("embed_dim", "heads"),
    "gate": ("hidden", "embed_dim"),
    "fc1": ("hidden", "embed_dim"),
    "mlp_norm": ("hidden",),
    "fc2": ("embed_dim", "hidden"),
    "lln": ("embed_dim", "embed_dim"),
}
_OUTSIDE: dict[str, tuple[str, ...] | None] = {
    "cls_token": ("", "", "embed_dim"),
    "reg_token": ("", "", "embed_dim"),
    "pos_embed": ("", "", "embed_dim"),
    "patch_norm": ("embed_dim",),
    "norm_pre": ("embed_dim",),
    "norm": ("embed_dim",),
    "head": ("", "embed_dim"),
    "head_dist": ("", "embed_dim"),
    "head.proj": ("", "embed_dim"),
    "head.text": (),
    "head.logit_scale": (),
    "head.fitted": None,
}


@dataclass(frozen=True, eq=False)
class UnitScores:
    """How important every unit is; larger is more. What is None stays in its order.

    Attributes:
        embed_dim: (C,) embedding channels.
        heads: (depth, H) attention heads.
        hidden: (depth, M) hidden units of the MLPs.
    """

    embed_dim: Tensor | None = None
    heads: Tensor | None = None
    hidden: Tensor | None = None


@dataclass(frozen=True, eq=False)
class UnitOrder:
    """A permutation of all units: at place i stands the unit that was number `order[i]` before.

    Attributes:
        embed_dim: (C,) int64, embedding channels.
        heads: (depth, H) int64.
        hidden: (depth, M) int64.
    """

    embed_dim: Tensor
    heads: Tensor
    hidden: Tensor

    def inverse(self) -> UnitOrder:
        """The permutation that undoes this one."""
        return UnitOrder(self.embed_dim.argsort(), self.heads.argsort(-1), self.hidden.argsort(-1))

    def applied(self, scores: UnitScores) -> UnitScores:
        """The scores of the units in their new places."""

        def moved(values: Tensor | None, order: Tensor) -> Tensor | None:
            return None if values is None else values.gather(-1, order)

        return UnitScores(
            moved(scores.embed_dim, self.embed_dim), moved(scores.heads, self.heads), moved(scores.hidden, self.hidden)
        )


def unit_levels(config: SupernetConfig) -> dict[str, Tensor]:
    """For every unit how many of the sizes of subnets are too small to hold it, by kind, in the shapes of scores."""
    space = config.space
    dims = np.array(space.embed_dims)
    hidden = hidden_dims(dims[:, None], np.array(space.mlp_ratios)[None]).ravel()

    def levels(sizes: np.ndarray) -> Tensor:
        sizes = np.unique(sizes)
        return torch.from_numpy(np.searchsorted(sizes, np.arange(sizes[-1]), side="right"))

    per_block = (space.depth, 1)
    return {
        "embed_dim": levels(dims),
        "heads": levels(np.array(space.num_heads)).repeat(per_block),
        "hidden": levels(hidden).repeat(per_block),
    }


def importance_order(config: SupernetConfig, scores: UnitScores, keep_levels: bool = False) -> UnitOrder:
    """The permutation that puts the most important units first; of equal ones, the earlier.

    Args:
        config: The supernet's.
        scores: Importances.
        keep_levels: Whether units stay among those that the same subnets hold (Once-for-All's sorting inside slices):
            then every subnet remains the same function, not only the full network.

    Raises:
        ValueError: If scores have the wrong shape or are not finite.
    """
    orders = {}
    for name, level in unit_levels(config).items():
        values = getattr(scores, name)
        if values is None:
            orders[name] = torch.arange(level.shape[-1], device=HOST).expand(level.shape).contiguous()
            continue
        if tuple(values.shape) != tuple(level.shape) or not bool(torch.isfinite(values).all()):
            raise ValueError(
                f"The scores of {name} have the shape {tuple(values.shape)} or are not finite; expected finite numbers "
                f"of the shape {tuple(level.shape)}."
            )
        order = values.detach().cpu().double().argsort(dim=-1, descending=True, stable=True)
        if keep_levels:
            order = order.gather(-1, level.gather(-1, order).argsort(dim=-1, stable=True))
        orders[name] = order
    return UnitOrder(**orders)


def reorder(net: Supernet, order: UnitOrder) -> Supernet:
    """A copy of a supernet with permuted units: the same function at full size.

    Args:
        net: Unchanged.
        order: Where every unit goes; `reorder(reorder(net, order), order.inverse())` is `net`, bit for bit.

    Raises:
        ValueError: If the supernet holds parameters whose channels are unknown, such as those of a learned token mode
            or of some stems, and embedding channels are to be moved.
    """
    config = net.config
    moves = not torch.equal(order.embed_dim, torch.arange(config.embed_dim, device=HOST))
    state = {}
    for name, value in net.state_dict().items():
        axes = unit_axes(name, net)
        if axes is None and moves:
            raise ValueError(
                f"{name} has channels that reorder does not know (stem {config.stem!r}, token mode "
                f"{config.space.token_mode!r}); leave the embedding channels where they are: "
                "UnitScores(embed_dim=None, ...)."
            )
        for axis, what in enumerate((axes or ())[: value.ndim]):
            if what:
                value = value.index_select(axis, _rows(what, name, order, config).to(value.device))
        state[name] = value
    moved = copy.deepcopy(net)
    moved.load_state_dict(state)
    return moved


def reorder_by_importance(net: Supernet, scores: UnitScores, keep_levels: bool = False) -> Supernet:
    """A copy of a supernet whose prefixes hold the most important units; the same function at full size.

    Args:
        net: Unchanged.
        scores: Importances, such as those of `train.networks.importance`.
        keep_levels: See `importance_order`; for a supernet whose subnets are trained already.

    Raises:
        ValueError: If the scores do not fit, or as `reorder`.
    """
    return reorder(net, importance_order(net.config, scores, keep_levels))


def stem_output(net: ImageClassifier) -> tuple[str, ...]:
    """Layers of the patch embedding that give embedding channels, by name; none if nobody knows which they are."""
    if net.config.stem in OWN_STEMS:
        # Of several layers only the last convolution and its norm.
        return ("0",) if net.config.stem == "patch" else ("6", "7")
    return ("proj",) if _ends_with_projection(net.patch_embed, net.config) else ()


def _ends_with_projection(stem: nn.Module, config: SupernetConfig) -> bool:
    """Whether a stem that is not of this package certainly gives what its convolution `proj` gives."""
    proj = getattr(stem, "proj", None)
    if not isinstance(proj, nn.Conv2d) or proj.out_channels != config.embed_dim or proj.groups != 1:
        return False
    learned = [name for name, layer in stem.named_children() if layer.state_dict()]
    if learned[-1:] != ["proj"]:
        return False
    others = (value.shape for name, value in stem.state_dict().items() if not name.startswith("proj."))
    alone = config.stem.startswith(TIMM) or all(config.embed_dim not in shape for shape in others)
    return alone and not proj.weight.is_meta and _channels_move(stem, config)


@torch.no_grad()
def _channels_move(stem: nn.Module, config: SupernetConfig) -> bool:
    """Whether channels that `proj` gives in another order come out in that order, without looking at each other."""
    stem = copy.deepcopy(stem).eval().float()
    proj = cast(nn.Conv2d, stem.proj)
    generator = torch.Generator("cpu").manual_seed(0)
    shape = (1, config.in_chans, config.img_size, config.img_size)
    image = torch.randn(shape, generator=generator, device=HOST).to(proj.weight.device)
    order = torch.randperm(config.embed_dim, generator=generator, device=HOST).to(proj.weight.device)
    before = stem(image)[..., order]
    for parameter in proj.parameters():
        parameter.copy_(parameter[order])
        # As if it had been cut out.
        parameter[0] = 0
    return torch.allclose(stem(image)[..., 1:], before[..., 1:], rtol=1e-3, atol=1e-4 * float(before.abs().max()))


def unit_axes(name: str, net: ImageClassifier) -> tuple[str, ...] | None:
    """What the axes of a weight count: "embed_dim", "qkv", "heads", "hidden", or "" for something else.

    Args:
        name: Of the weight.
        net: The supernet or static network that it belongs to.

    Returns:
        None if nobody knows.
    """
    config = net.config
    if found := BLOCK.match(name):
        return _IN_BLOCK.get(found[2])
    first, _, rest = name.partition(".")
    if first == "patch_embed":
        stem = stem_output(net)
        return (("embed_dim",) if rest.partition(".")[0] in stem else ()) if stem else None
    if config.global_pool == "map" and first in ("pool", "head"):
        # Attention pooling reads the channels of the network and gives some of its own.
        return ("", "embed_dim") if rest == "kv.weight" else ()
    return _OUTSIDE.get(".".join(name.split(".")[:2]), _OUTSIDE.get(first))


def _rows(what: str, name: str, order: UnitOrder, config: SupernetConfig) -> Tensor:
    """Which old rows (or columns) stand where, along an axis that counts `what`."""
    if what == "embed_dim":
        return order.embed_dim
    found = BLOCK.match(name)
    assert found is not None
    block = int(found[1])
    if what == "hidden":
        return order.hidden[block]
    channels = config.head_dim * (3 if what == "qkv" else 1)
    return (order.heads[block][:, None] * channels + torch.arange(channels, device=HOST)).flatten()
