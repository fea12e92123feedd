"""Fine-tuning a static network: one that was pruned, extracted or exported, with the loop and the images of stage 1."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from supernet import StaticViT, load_static, save_static

from ..recipe import Turn
from .labelled import LabelledRecipe


@dataclass(frozen=True)
class StaticRecipe(LabelledRecipe[StaticViT]):
    """How a static network is fine-tuned."""

    source: str = ""
    """Folder of the network, written by prance prune, prance export --format safetensors, or prance train static."""
    steps: int = 1500
    """Optimiser steps."""
    batch_size: int = 64
    """Images per step, of all processes together."""
    lr: float = 5e-4
    """Peak learning rate of AdamW; 5 % linear warm-up, then cosine to zero."""
    ema_decay: float = 0.99
    """Decay of the averaged weights, which are the ones that are saved."""
    checkpoint_every: int = 250
    """Steps between validations, each with a checkpoint."""
    label_weight: float = 1.0
    """Weight of the labels in the loss."""
    teacher_weight: float = 0.0
    """Weight of the teacher in the loss, such as the network before it was pruned (--teacher)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if bool(self.teacher_weight) != (self.teacher is not None):
            raise ValueError(
                f"teacher={self.teacher!r} and teacher_weight={self.teacher_weight} go together; pass both or neither."
            )

    @cached_property
    def start(self) -> StaticViT:
        """The network to begin with; nobody trains this one."""
        return load_static(Path(self.source))

    def original(self) -> nn.Module:
        """The network itself before training, as a teacher."""
        return load_static(Path(self.source))

    def make_heads(self, net: StaticViT) -> nn.Module:
        """Nothing is trained beside the network."""
        return nn.Module()

    def losses(self, net: StaticViT, heads: nn.Module, turn: Turn) -> Iterator[Tensor]:
        """The network's loss."""
        batch = self._images.batch(net, turn)
        answer = self._answer(batch.images) if batch.answers is None else batch.answers
        yield self._loss(net(batch.images), batch.labels, self.label_weight, [(self.teacher_weight, answer)])

    @torch.inference_mode()
    def validate(self, net: StaticViT) -> dict[str, float]:
        """Its accuracy."""
        device, right = net.pos_embed.device, 0
        for images, labels in self._val:
            right += int((net(images.to(device)).argmax(-1) == labels.to(device)).sum())
        return {"full": right / sum(len(labels) for _, labels in self._val)}

    def save(self, net: StaticViT, folder: Path) -> None:
        """Writes it as `load_static` reads it."""
        save_static(net, folder)
