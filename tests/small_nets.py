"""Random supernets of every token mode and architecture, small enough to export in seconds, and images for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from helpers import random_net
from torch import Tensor

from supernet import SearchSpace, SubnetConfig, Supernet, SupernetConfig

WIDTHS: dict[str, Any] = {"embed_dims": (8, 24, 32), "mlp_ratios": (1, 2), "num_heads": (1, 3, 3)}
SIZES: dict[str, Any] = {"img_size": 24, "patch_size": 4, "num_classes": 7, "head_dim": 8}
OTHER_STD = {"mean": (0.1, 0.4, 0.6), "std": (0.3, 0.2, 0.5)}


TWO_BLOCKS = (1, 1)


def small_net(
    token_mode: str = "prune",
    decide_first_group: bool = False,
    groups: tuple[int, ...] = (1, 1, 1),
    **architecture: Any,
) -> Supernet:
    """A random supernet of three blocks, or as many as `groups` hold, and 36 patches."""
    space = SearchSpace(groups, **WIDTHS, token_mode=token_mode, decide_first_group=decide_first_group)
    return random_net(SupernetConfig(space, **{**SIZES, **OTHER_STD, **architecture}))


def cut_subnet(net: Supernet) -> SubnetConfig:
    """One subnet that is narrow somewhere and loses tokens at every decision, at the last one more than half."""
    subnet = SubnetConfig.random(net.space, 1, torch.Generator().manual_seed(5))
    rates = torch.linspace(0.3, 0.7, net.space.num_decisions, dtype=torch.float64).flip(0)
    subnet.keep_rate[0] = rates if subnet.keep_rate.ndim == 2 else rates[:, None]
    return subnet


def pixels(net: Supernet, batch_size: int) -> Tensor:
    c, generator = net.config, torch.Generator().manual_seed(100 + batch_size)
    shape = (batch_size, c.in_chans, c.img_size, c.img_size)
    return torch.randint(256, shape, generator=generator, dtype=torch.uint8)


def normalised(net: Supernet, images: Tensor) -> Tensor:
    mean, std = torch.tensor(net.config.mean), torch.tensor(net.config.std)
    return (images / 255 - mean[:, None, None]) / std[:, None, None]


# Every token mode cuts tokens twice; architectures are tried where they do so once, as exporting takes long.
CASES: dict[str, Callable[[], Supernet]] = {
    "prune": lambda: small_net("prune"),
    "prune_fused": lambda: small_net("prune_fused"),
    "merge": lambda: small_net("merge"),
    "prune_merge": lambda: small_net("prune_merge"),
    "tome": lambda: small_net("tome"),
    "tome-no-class-token": lambda: small_net("tome", groups=TWO_BLOCKS, class_token=False, global_pool="avg"),
    "prune-no-classifier": lambda: small_net("prune", groups=TWO_BLOCKS, num_classes=0, act="gelu_tanh"),
    "merge-conv-stem-first-group-decided": lambda: small_net(
        "merge",
        decide_first_group=True,
        groups=TWO_BLOCKS,
        stem="conv",
        pre_norm=True,
        act="quick_gelu",
        global_pool="avg",
        fc_norm=True,
    ),
    "merge-registers-distilled-norms": lambda: small_net(
        "merge", groups=TWO_BLOCKS, reg_tokens=2, distilled=True, qk_norm=True, scale_norm=True, final_norm=False
    ),
    "tome-pooled-by-attention-rms-gated": lambda: small_net(
        "tome",
        groups=TWO_BLOCKS,
        class_token=False,
        reg_tokens=3,
        global_pool="map",
        norm="rms",
        glu=True,
        act="silu",
        patch_norm=True,
    ),
    "prance-prune-merge": lambda: small_net("prune_merge", groups=TWO_BLOCKS, prance_embed_dim=40),
}
