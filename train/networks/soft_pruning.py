"""Soft structured pruning while a supernet is trained: the energy of weights moves to the units that subnets keep.

A reconstruction of GOHSP's second stage (arXiv 2301.05345, whose equations are not public) in the usual form of such
methods, the alternating direction method of multipliers. The loss gets rho/2 ||W - Z + U||^2, where Z are the weights
W + U with those units made smaller that the narrowest subnet lacks, and U adds up how far W is from Z. "Soft" means
that in the t-th update these units are multiplied by 1/2^t instead of being cut. In the paper the ranking of heads says
who is kept; here subnets are prefixes, so it is the first ones, and `prance order` puts the best there before.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from supernet import Supernet
from supernet.layers import ElasticBlock
from supernet.plan import hidden_dims
from supernet.subnet import HOST

DECAY = 0.5


def head_groups(block: ElasticBlock, head_dim: int) -> Tensor:
    """(H, P) weights of every head: its rows of `qkv` and its columns of `proj`."""
    heads = block.proj.in_features // head_dim
    columns = block.proj.weight.view(-1, heads, head_dim).transpose(0, 1)
    return torch.cat([block.qkv.weight.view(heads, -1), columns.flatten(1)], dim=1)


def hidden_groups(block: ElasticBlock) -> Tensor:
    """(M, P) weights of every hidden unit: its row of `fc1` and its column of `fc2`."""
    return torch.cat([block.fc1.weight, block.fc2.weight.t()], dim=1)


def softened(groups: Tensor, keep: int, factor: float) -> Tensor:
    """Groups (U, P) of which all after the first `keep` are multiplied by a factor; 0 is the projection."""
    return torch.cat([groups[:keep], groups[keep:] * factor])


class SoftPruning(nn.Module):
    """Z and U of every block, saved with the checkpoint of a training.

    Args:
        net: The supernet.
        rho: Weight of the penalty.
    """

    def __init__(self, net: Supernet, rho: float) -> None:
        super().__init__()
        space = net.space
        self.rho, self.head_dim = rho, net.config.head_dim
        smallest = int(hidden_dims(np.array(space.embed_dims[0]), np.array(space.mlp_ratios[0])))
        self.keep = {"heads": space.num_heads[0], "hidden": smallest}
        self.first = space.blocks(space.first_decided).start
        self.updates: Tensor
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64, device=HOST))
        with torch.no_grad():
            for name, kind, groups in self._groups(net):
                self.register_buffer(f"z_{name}", softened(groups, self.keep[kind], DECAY))
                self.register_buffer(f"u_{name}", torch.zeros_like(groups))

    def _groups(self, net: Supernet) -> Iterator[tuple[str, str, Tensor]]:
        """Name, kind and weights of what is pruned: the blocks that are never cut are left out."""
        for i, block in list(enumerate(net.blocks))[self.first :]:
            own = cast(ElasticBlock, block)
            if self.keep["heads"] < own.proj.in_features // self.head_dim:
                yield f"{i}_heads", "heads", head_groups(own, self.head_dim)
            if self.keep["hidden"] < own.fc1.out_features:
                yield f"{i}_hidden", "hidden", hidden_groups(own)

    def penalty(self, net: Supernet) -> Tensor:
        """rho/2 ||W - Z + U||^2 over all groups."""
        total = torch.zeros((), device=net.pos_embed.device)
        for name, _, groups in self._groups(net):
            total = total + (groups - self.get_buffer(f"z_{name}") + self.get_buffer(f"u_{name}")).square().sum()
        return self.rho / 2 * total

    @torch.no_grad()
    def update(self, net: Supernet) -> None:
        """New Z, then new U."""
        self.updates += 1
        factor = DECAY ** (int(self.updates) + 1)
        for name, kind, groups in self._groups(net):
            z, u = self.get_buffer(f"z_{name}"), self.get_buffer(f"u_{name}")
            z.copy_(softened(groups + u, self.keep[kind], factor))
            u.add_(groups - z)

    @torch.no_grad()
    def kept_energy(self, net: Supernet) -> float:
        """Share of the squared weights that is in the units that the narrowest subnet keeps."""
        parts = [(g[: self.keep[kind]].square().sum(), g.square().sum()) for _, kind, g in self._groups(net)]
        return float(sum(kept for kept, _ in parts) / sum(whole for _, whole in parts))
