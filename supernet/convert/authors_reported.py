"""The numbers that PRANCE's authors report for a subnet, by their formulas, beside our exact ones."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ..arrays import Ints
from ..config import SupernetConfig
from ..plan import GroupPlan, plan_group, plan_subnet
from ..subnet import SubnetConfig


def reported_macs(config: SupernetConfig, subnet: SubnetConfig, staged: bool = False) -> Tensor:
    """(B,) float64: what the authors report as FLOPs of a subnet. Use `Supernet.macs` for what is really computed.

    Theirs counts norms, half of the position embedding, and the classifier on every token; it leaves out the maps over
    group boundaries and similarities, and in "prune_merge" takes the pruned length for attention that runs before.

    Args:
        config: The supernet's; its token mode must be one of the authors'.
        subnet: The sizes.
        staged: Whether groups were decided one by one, so that a group hands on the full width.
    """
    e = subnet.embed_dim.numpy().astype(np.float64)
    q = config.space.max_heads * config.head_dim
    tokens: Ints = np.full(len(subnet), config.num_tokens, dtype=np.int64)
    patch = config.in_chans * config.patch_size**2
    total = (1 + config.num_patches * patch + config.num_tokens / 2) * e[:, 0]
    for plan in _reported_plans(config, subnet, staged):
        for i, block in enumerate(config.space.blocks(plan.group)):
            before = tokens
            if i == 0 and plan.counts is not None:
                before = plan.counts[:, 0] if plan.counts.shape[1] > 1 else tokens
                tokens = plan.num_left
            w = e[:, block]
            total = total + before * w + before * 4 * q * w + 2.0 * before * before * q
            total = total + tokens * w + tokens * plan.hidden[:, i] * (w + plan.gives[:, i])
    return torch.from_numpy(total + tokens * e[:, -1] * config.num_classes)


def reported_params(config: SupernetConfig, subnet: SubnetConfig, staged: bool = False) -> Tensor:
    """(B,) int64: what the authors report as parameters of a subnet; see `reported_macs`."""
    e = subnet.embed_dim.numpy()
    q = config.space.max_heads * config.head_dim
    patch = config.in_chans * config.patch_size**2
    total = e[:, 0] * (2 + config.num_patches) + e[:, 0] * (patch + 1)
    for plan in _reported_plans(config, subnet, staged):
        w, f, out = plan.widths, plan.hidden, plan.gives
        total = total + (3 * q * (w + 1) + q * w + 5 * w + w * f + f + f * out + out).sum(1)
        if plan.group < len(config.space.groups) - 1:
            total = total + w[:, -1] * out[:, -1] + out[:, -1]
    return torch.from_numpy(total + 2 * e[:, -1] + (e[:, -1] + 1) * config.num_classes)


def _reported_plans(config: SupernetConfig, subnet: SubnetConfig, staged: bool) -> list[GroupPlan]:
    """What every group computes by the authors' rules; if `staged`, handing on the full width."""
    rules = replace(config, prance_embed_dim=config.prance_embed_dim or config.embed_dim)
    plans = plan_subnet(rules, subnet)
    if not staged:
        return plans
    return [plan_group(rules, p.group, subnet.group(config.space, p.group), p.num_tokens) for p in plans]
