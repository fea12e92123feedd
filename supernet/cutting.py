"""Taking units out of a static network: what remains is a smaller static network with sizes of its own.

What leaves is cut out of the weights, so that norms are over the channels that remain, as everywhere in this package.
Patch embedding, class token and positions stay at full width, as in every subnet: the kept channels are moved to the
front, and the first block reads as many.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .block_sizes import BlockSizes
from .config import SupernetConfig
from .ordering import BLOCK, unit_axes
from .static_vit import StaticViT

Units = Mapping[str, tuple[Tensor, ...]]
"""Something about every unit of a static network, such as numbers of those that stay: by kind a tensor (units,) for
every block, but only one for `embed_dim`, whose channels are the same in all blocks. `qk` are channels of queries and
keys and `v` those of values, which all heads of a block have in common."""

SIZE_OF = {"heads": "num_heads", "qk": "qk_dim", "v": "v_dim", "hidden": "hidden_dim"}
KINDS = ("embed_dim", *SIZE_OF)
WIDTHS = ("reads", "embed_dim", "gives")


def width_of(sizes: Sequence[BlockSizes]) -> int:
    """Embedding channels of a static network: those of its widest block."""
    return max(getattr(block, name) for block in sizes for name in WIDTHS)


def all_units(static: StaticViT) -> dict[str, tuple[Tensor, ...]]:
    """The numbers of all units."""
    sizes = static.block_sizes
    own = {kind: tuple(torch.arange(getattr(s, name)) for s in sizes) for kind, name in SIZE_OF.items()}
    return {"embed_dim": (torch.arange(width_of(sizes)),), **own}


def cut_units(static: StaticViT, kept: Units) -> StaticViT:
    """A copy of a static network with some of its units.

    Args:
        static: Unchanged.
        kept: Ascending numbers of the units that stay, at least one of each kind in each block. With a further kind,
            `tokens`, a block keeps as many tokens as its entry has, if that has any, and all otherwise; without it,
            tokens leave where they did.

    Returns:
        In evaluation mode.

    Raises:
        ValueError: If embedding channels leave that stand in weights whose channels are unknown, such as those of some
            stems and of learned token modes; or queries and keys that are normed.
    """
    sizes = sizes_after(static.config, static.block_sizes, kept)
    small, state = StaticViT(static.config, sizes, "meta"), static.state_dict()
    cut = {name: _cut(static, kept, name, state[name], target.shape) for name, target in small.state_dict().items()}
    small.load_state_dict(cut, assign=True)
    small.mean, small.std = static.mean.clone(), static.std.clone()
    return small.eval()


def sizes_after(config: SupernetConfig, sizes: Sequence[BlockSizes], kept: Units) -> list[BlockSizes]:
    """The sizes of blocks that have some of their units.

    Args:
        config: What is around the blocks.
        sizes: Theirs before.
        kept: As of `cut_units`.
    """
    found, tokens = list[BlockSizes](), config.num_tokens
    for number, block in enumerate(sizes):
        own: dict[str, Any] = {name: int((kept["embed_dim"][0] < getattr(block, name)).sum()) for name in WIDTHS}
        own |= {name: len(kept[kind][number]) for kind, name in SIZE_OF.items()}
        if "tokens" in kept:
            own["counts"] = (min(left, tokens),) if (left := len(kept["tokens"][number])) else None
        found.append(replace(block, tokens=tokens, **own))
        tokens = found[-1].left
    return found


def _cut(static: StaticViT, kept: Units, name: str, value: Tensor, shape: torch.Size) -> Tensor:
    axes, channels = unit_axes(name, static), kept["embed_dim"][0]
    if axes is None and len(channels) < width_of(static.block_sizes):
        raise ValueError(
            f"{name} has channels that nobody knows (stem {static.config.stem!r}, token mode "
            f"{static.config.space.token_mode!r}), so that embedding channels cannot be taken out; leave them."
        )
    for axis, what in enumerate((axes or ())[: value.ndim]):
        if what == "embed_dim":
            # Wherever fewer channels are read or given it is the first ones; a stem keeps the others behind them.
            there = torch.arange(value.shape[axis])
            rows = torch.cat([channels[channels < len(there)], there[~torch.isin(there, channels)]])[: shape[axis]]
        elif what:
            rows = _rows(static, kept, what, name)
        else:
            continue
        value = value.index_select(axis, rows.to(value.device))
    cut, found = value.clone(memory_format=torch.contiguous_format), BLOCK.match(name)
    return cut if found is None else _as_sharp(static, kept, cut, found[2], int(found[1]))


def _rows(static: StaticViT, kept: Units, what: str, name: str) -> Tensor:
    """Which rows (or columns) of a block's weight stay, along an axis that counts `what`."""
    found = BLOCK.match(name)
    assert found is not None
    number = int(found[1])
    if what == "hidden":
        return kept["hidden"][number]
    sizes, heads, qk, v = static.block_sizes[number], *(kept[kind][number] for kind in ("heads", "qk", "v"))
    if what == "qkv":
        v = torch.cat([qk, sizes.qk_dim + qk, 2 * sizes.qk_dim + v])
    return (heads[:, None] * (sizes.v_dim if what == "heads" else 2 * sizes.qk_dim + sizes.v_dim) + v).flatten()


def _as_sharp(static: StaticViT, kept: Units, value: Tensor, layer: str, number: int) -> Tensor:
    """Attention divides by the square root of the channels of a head: with fewer of them, queries have to shrink."""
    before, after = static.block_sizes[number].qk_dim, len(kept["qk"][number])
    if before == after:
        return value
    if static.config.qk_norm:
        raise ValueError("Queries and keys are normed, so that their channels cannot be taken out; leave them.")
    if layer == "qkv":
        value.view(len(kept["heads"][number]), -1, *value.shape[1:])[:, :after] *= (after / before) ** 0.5
    return value
