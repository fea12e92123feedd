"""Stage 1 on the Digits task: which digit occurs twice?

Sandwich rule (once-for-all networks): every step trains the full network on the labels, and the smallest and a random
subnet on the full network's output. What the subnets want does not reach the stem and the first group, which would
otherwise learn to answer alone and leave nothing to decide; three auxiliary losses shape the tokens instead (which
digit a patch shows, how many digits there are, where the class token looks).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prance_env.images.digits import MAX_DIGITS, make_scenes
from supernet import GroupChoice, SubnetConfig, Supernet, create_supernet
from supernet.subnet import HOST

from ..losses import attention_loss, patch_loss, patch_share
from ..recipe import Recipe, Turn
from ..sandwich import min_subnet, random_subnet

BLANK_WEIGHT = 0.3


class AuxiliaryHeads(nn.Module):
    """Linear read-outs that shape the tokens during training and are thrown away."""

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.patch = nn.Linear(embed_dim, 11)
        self.count = nn.Linear(embed_dim, MAX_DIGITS)


@dataclass(frozen=True)
class DigitsRecipe(Recipe[Supernet]):
    """How the supernet of the Digits task is trained."""

    full_only: float = 0.35
    """Fraction of the steps in which only the full network is trained."""
    label_smoothing: float = 0.05
    """Smoothing of the labels in the full network's cross-entropy."""
    patch_weight: float = 0.5
    """Weight of "which digit does this patch show", fading to a fifth."""
    count_weight: float = 0.2
    """Weight of "how many digits are there", read from the class token after the first group."""
    attention_weight: float = 0.1
    """Weight of "the class token attends to the digits, all alike"."""
    val_scenes: int = 2000
    """Scenes per validation."""

    def make_net(self) -> Supernet:
        """The registered supernet "digits", with random weights."""
        return create_supernet("digits")

    def make_heads(self, net: Supernet) -> AuxiliaryHeads:
        """Read-outs for the auxiliary losses."""
        return AuxiliaryHeads(net.config.embed_dim)

    def losses(self, net: Supernet, heads: nn.Module, turn: Turn) -> Iterator[Tensor]:
        """One loss, on scenes of the step's own."""
        yield self.step_loss(net, heads, turn)

    def step_loss(self, net: Supernet, heads: nn.Module, turn: Turn) -> Tensor:
        """The loss of some scenes of a training step."""
        assert isinstance(heads, AuxiliaryHeads)
        scenes = make_scenes(self.batch_size, "train", seed=[self.seed, 1000 + turn.step])
        rng = np.random.default_rng([self.seed, 2, turn.step])
        parts = (scenes.images, scenes.labels, scenes.cells, scenes.num_digits)
        images, labels, cells, num_digits = (part[turn.rows].to(turn.device) for part in parts)
        space, batch = net.space, len(images)
        progress = turn.step / self.steps
        fade = 1 - 0.8 * progress

        start = net.begin(images)
        loss = self.count_weight * F.cross_entropy(heads.count(start.class_token), num_digits - 1)
        state = start
        for group in range(1, len(space.groups)):
            choice = GroupChoice.full(space, group, batch)
            loss = loss + self.attention_weight * attention_loss(net, state, choice, cells >= 0)
            state = net.run_group(state, group, choice)
        share = patch_share(scenes.cells, BLANK_WEIGHT, turn.rows)
        loss = loss + self.patch_weight * fade * share * patch_loss(heads.patch, state, cells, BLANK_WEIGHT)
        logits = net.forward_head(state)
        loss = loss + F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)

        if progress >= self.full_only:
            target = logits.detach().softmax(-1)
            frozen_start = start.detach()
            for subnet in (min_subnet(space, batch, rng), random_subnet(space, batch, rng)):
                loss = loss + F.cross_entropy(net.finish(frozen_start, subnet), target)
                attention = attention_loss(net, frozen_start, subnet.group(space, 1), cells >= 0)
                loss = loss + self.attention_weight * attention
        return loss

    @torch.inference_mode()
    def validate(self, net: Supernet) -> dict[str, float]:
        """Accuracy of the full, the smallest and random subnets (one per image) on validation scenes."""
        scenes = make_scenes(self.val_scenes, "val", seed=77)
        device = net.pos_embed.device
        random = SubnetConfig.random(net.space, self.val_scenes, torch.Generator(HOST).manual_seed(0))
        start = net.begin(scenes.images.to(device))
        out = {}
        for name, subnet in (
            ("full", SubnetConfig.full(net.space)),
            ("random", random),
            ("min", SubnetConfig.min(net.space)),
        ):
            logits = net.finish(start, subnet.expand(self.val_scenes))
            out[name] = (logits.argmax(-1).cpu() == scenes.labels).double().mean().item()
        return out
