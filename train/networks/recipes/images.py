"""Stage 1 on any supernet and any source of images: the sandwich rule with distillation.

Every step trains the full network on labels and, if there is one, on a frozen teacher; and the narrowest and some
random subnets, one for the whole batch each, on what the full network (in place) and the teacher say. Subnets begin at
the full network's first group, which is not decided: its output is computed once, and detached, so that what they want
does not reach it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from supernet import SubnetConfig, Supernet, reorder
from supernet.layers import ElasticBlock
from supernet.subnet import HOST

from ..importance import Score, full_network
from ..ordering import OrderSettings, order_network, prefix_subnets
from ..recipe import Turn
from ..sandwich import draw_smallest, draw_subnet, limits_at
from ..soft_pruning import SoftPruning
from ..sources import NetworkSource
from ..views import seeded
from .labelled import LabelledRecipe


@dataclass(frozen=True)
class ImagesRecipe(LabelledRecipe[Supernet]):
    """How a supernet is trained on images of any source."""

    source: str = "digits"
    """Network to begin with: a folder (of a run, or written by save_pretrained), timm:NAME, or a registered name."""
    init: str | None = None
    """Its weights: random, a folder or a safetensors file; by default those that come with it (timm's: downloaded)."""
    num_classes: int | None = None
    """Classes of the data set, if the network has others: it gets a new classifier."""
    img_size: int | None = None
    """Pixels of a network of timm, whose positions are resampled."""
    in_chans: int | None = None
    """Channels of a network of timm."""
    embed_dims: tuple[int, ...] = ()
    """Widths of subnets, of a network of timm; by default up to four from two thirds."""
    mlp_ratios: tuple[float, ...] = ()
    """MLP ratios of subnets, of a network of timm."""
    num_heads: tuple[int, ...] = ()
    """Heads at every width, of a network of timm."""
    groups: tuple[int, ...] = ()
    """Blocks between decisions, of a network of timm."""
    token_mode: str | None = None
    """How patches leave; as the network says if not given."""
    lln: bool = False
    """Add linear maps over group boundaries to a network of timm."""
    order: Score | None = None
    """Sort the units by importance before training (prance order)."""

    subnets: int = 2
    """Random subnets a step, beside the full network and the narrowest."""
    smallest: bool = True
    """Whether the narrowest subnet is trained at every step."""
    full_labels: float = 1.0
    """Weight of the labels in the full network's loss."""
    full_teacher: float = 0.0
    """Weight of the teacher in the full network's loss."""
    sub_labels: float = 0.0
    """Weight of the labels in the subnets' losses."""
    sub_full: float = 1.0
    """Weight of the full network's answer in the subnets' losses (in-place distillation)."""
    sub_teacher: float = 0.0
    """Weight of the teacher in the subnets' losses."""
    shared_start: bool = True
    """Subnets begin at the full network's first group, and do not train it."""
    shrink: float = 0.0
    """Share of the steps over which smaller sizes enter, nearest first (progressive shrinking); 0: all at once."""
    token_curriculum: float = 0.0
    """Share of the steps over which the smallest keep rate falls from 1; 0: at once."""
    drop_path: float = 0.0
    """Chance that an image skips half a block in the full network, rising linearly to this at the last block."""

    soft_prune: float = 0.0
    """Rho of GOHSP's soft pruning (a reconstruction), which moves weights' energy to the narrowest subnet; 0: none."""
    soft_prune_every: int = 100
    """Steps between two of its updates."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("embed_dims", "mlp_ratios", "num_heads", "groups"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if (self.full_teacher or self.sub_teacher) and self.teacher is None:
            raise ValueError("full_teacher and sub_teacher weigh a teacher's answers; pass --teacher.")
        if self.teacher is not None and not (self.full_teacher or self.sub_teacher):
            raise ValueError(f"teacher={self.teacher!r} teaches nobody; pass --full-teacher or --sub-teacher above 0.")
        if not 0 <= self.drop_path < 1:
            raise ValueError(f"drop_path={self.drop_path} must lie in [0, 1).")
        if self.soft_prune < 0 or self.soft_prune_every < 1:
            raise ValueError(
                f"soft_prune={self.soft_prune} must be at least 0, and soft_prune_every={self.soft_prune_every} at "
                "least 1."
            )

    # ---- what is trained ----------------------------------------------------------------------------------------

    @property
    def _source(self) -> NetworkSource:
        names = ("embed_dims", "mlp_ratios", "num_heads", "groups", "token_mode")
        space = tuple((name, getattr(self, name)) for name in names if getattr(self, name))
        return NetworkSource(
            self.source, self.init, self.num_classes, self.img_size, self.in_chans, space=space, lln=self.lln
        )

    @cached_property
    def start(self) -> Supernet:
        """The network to begin with; nobody trains this one."""
        with seeded(self.seed, 11):  # for weights that are drawn
            net = self._source.open()
        if self.order is not None:
            how = OrderSettings(self.dataset, score=self.order, seed=self.seed, on_error=self.on_error)
            units, _ = order_network(net, how)
            net = reorder(net, units)
        return net

    def original(self) -> nn.Module:
        """The full network before training, as a teacher."""
        if self._source.has_random_classifier():
            raise ValueError(
                "The network has a new, random classifier, so that it can teach nobody; train it first (--preset "
                "finetune), or pass --teacher none --full-teacher 0."
            )
        return full_network(self.start)

    def make_heads(self, net: Supernet) -> nn.Module:
        """What soft pruning remembers; nothing is trained beside the network."""
        return SoftPruning(net, self.soft_prune) if self.soft_prune else nn.Module()

    def after_step(self, net: Supernet, heads: nn.Module, step: int) -> None:
        """Limits CLIP's scale, and updates what soft pruning remembers, now and then."""
        super().after_step(net, heads, step)
        if isinstance(heads, SoftPruning) and (step + 1) % self.soft_prune_every == 0:
            heads.update(net)

    # ---- losses -------------------------------------------------------------------------------------------------

    def losses(self, net: Supernet, heads: nn.Module, turn: Turn) -> Iterator[Tensor]:
        """The full network's loss, then those of the narrowest and of random subnets."""
        batch = self._images.batch(net, turn)
        x, labels = batch.images, batch.labels
        answer = self._answer(x) if batch.answers is None else batch.answers
        with seeded(self.seed, 7, turn.step, turn.rows.start), dropping_paths(net, self.drop_path):
            start = net.begin(x)
            logits = net.finish(start)
        yield self._loss(logits, labels, self.full_labels, [(self.full_teacher, answer)])
        own = self._softened(logits.detach())
        frozen = start.detach() if self.shared_start else None
        if isinstance(heads, SoftPruning):
            yield heads.penalty(net)
        for subnet in self.sandwich(net, turn.step, x):
            out = net(x, subnet) if frozen is None else net.finish(frozen, subnet)
            yield self._loss(out, labels, self.sub_labels, [(self.sub_full, own), (self.sub_teacher, answer)])

    def sandwich(self, net: Supernet, step: int, images: Tensor) -> list[SubnetConfig]:
        """The subnets of a step, beside the full network; one for all of these images each."""
        rng = np.random.default_rng([self.seed, 2, step])
        limits = limits_at(net.space, step / self.steps, self.shrink, self.token_curriculum)
        drawn = [draw_smallest(net.space, limits, rng)] if self.smallest else []
        return drawn + [draw_subnet(net.space, limits, rng) for _ in range(self.subnets)]

    # ---- validation ---------------------------------------------------------------------------------------------

    @property
    def trained(self) -> tuple[str, ...]:
        """The full network, and of subnets those that are drawn."""
        smallest, random = ("min", "narrowest") if self.smallest else (), ("random",) if self.subnets else ()
        return ("full", *smallest, *random)

    @torch.inference_mode()
    def validate(self, net: Supernet) -> dict[str, float]:
        """Accuracy of the full, the smallest, the narrowest and random subnets (one per image)."""
        fixed = {"full": SubnetConfig.full(net.space), "min": SubnetConfig.min(net.space)}
        fixed["narrowest"] = prefix_subnets(net.space)["narrowest"]
        generator, device = torch.Generator(HOST).manual_seed(0), net.pos_embed.device
        right, total = dict.fromkeys([*fixed, "random"], 0), 0
        for images, labels in self._val:
            x, y = images.to(device), labels.to(device)
            chosen = fixed | {"random": SubnetConfig.random(net.space, len(y), generator)}
            for name, subnet in chosen.items():
                right[name] += int((net(x, subnet).argmax(-1) == y).sum())
            total += len(y)
        return {name: count / total for name, count in right.items()}


@contextmanager
def dropping_paths(net: Supernet, chance: float) -> Iterator[None]:
    """Halves of blocks are skipped by chance, rising linearly from none in the first block to this in the last."""
    for i, block in enumerate(net.blocks):
        cast(ElasticBlock, block).drop_path = chance * i / max(len(net.blocks) - 1, 1)
    try:
        yield
    finally:
        for block in net.blocks:
            cast(ElasticBlock, block).drop_path = 0.0
