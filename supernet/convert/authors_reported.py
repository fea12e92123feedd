"""The numbers that PRANCE's authors report for a subnet, by their formulas, beside our exact ones."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ..config import SupernetConfig
from ..macs import block_widths, hidden_dims, next_widths
from ..runtime.packing import Ints
from ..subnet import SubnetConfig
from ..tokens.modes import TOKEN_MODES


def reported_macs(config: SupernetConfig, subnet: SubnetConfig, staged: bool = False) -> Tensor:
    """(B,) float64: what the authors report as FLOPs of a subnet. Use `Supernet.macs` for what is really computed.

    Theirs counts norms, half of the position embedding, and the classifier on every token; it leaves out the maps over
    group boundaries and similarities, and in "prune_merge" takes the pruned length for attention that runs before.

    Args:
        config: The supernet's; its token mode must be one of the authors'.
        subnet: The sizes.
        staged: Whether groups were decided one by one, so that a group hands on the full width.
    """
    space = config.space
    e = subnet.embed_dim.numpy().astype(np.float64)
    mode, prefix = TOKEN_MODES[f"prance_{space.token_mode}"], 1
    q = space.max_heads * config.head_dim
    tokens = np.full(len(subnet), config.num_tokens, dtype=np.int64)
    patch = config.in_chans * config.patch_size**2
    total = (1 + config.num_patches * patch + config.num_tokens / 2) * e[:, 0]
    for group, blocks, f, out in _reported_groups(config, subnet, staged):
        for i, block in enumerate(blocks):
            before = tokens
            if i == 0 and group >= space.first_decided:
                counts = mode.counts(tokens, subnet.group(space, group).rates, prefix)
                before = counts[:, 0] if counts.shape[1] > 1 else tokens
                tokens = counts[:, -1]
            w = e[:, block]
            total = total + before * w + before * 4 * q * w + 2.0 * before * before * q
            total = total + tokens * w + tokens * f[:, i] * (w + out[:, i])
    return torch.from_numpy(total + tokens * e[:, -1] * config.num_classes)


def reported_params(config: SupernetConfig, subnet: SubnetConfig, staged: bool = False) -> Tensor:
    """(B,) int64: what the authors report as parameters of a subnet; see `reported_macs`."""
    space = config.space
    e = subnet.embed_dim.numpy()
    q = space.max_heads * config.head_dim
    patch = config.in_chans * config.patch_size**2
    total = e[:, 0] * (2 + config.num_patches) + e[:, 0] * (patch + 1)
    for group, blocks, f, out in _reported_groups(config, subnet, staged):
        w = e[:, list(blocks)]
        total = total + (3 * q * (w + 1) + q * w + 5 * w + w * f + f + f * out + out).sum(1)
        if group < len(space.groups) - 1:
            total = total + w[:, -1] * out[:, -1] + out[:, -1]
    return torch.from_numpy(total + 2 * e[:, -1] + (e[:, -1] + 1) * config.num_classes)


def _reported_groups(config: SupernetConfig, subnet: SubnetConfig, staged: bool) -> list[tuple[int, range, Ints, Ints]]:
    """Index, blocks, hidden widths and widths handed on of every group, by the authors' rules."""
    rules = replace(config, prance_embed_dim=config.prance_embed_dim or config.embed_dim)
    out = []
    for group in range(len(config.space.groups)):
        choice = subnet.group(config.space, group)
        next_dim = None if staged else next_widths(config, group, subnet)
        widths: Ints = choice.embed_dim.numpy()
        _, gives = block_widths(rules, group, widths, None, next_dim)
        out.append((group, config.space.blocks(group), hidden_dims(widths, choice.mlp_ratio.numpy()), gives))
    return out
