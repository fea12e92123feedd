"""What a network is trained for: what every recipe says, and the settings that the loop reads."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from supernet import Supernet, save_pretrained
from supernet.heads import ImageClassifier
from supernet.reading import check_fields

from .optimiser import Amp

WARMUP = 0.05
N = TypeVar("N", bound=ImageClassifier)


@dataclass(frozen=True)
class Turn:
    """Which part of a training step is to be computed.

    Attributes:
        step: Number of the step, from 0.
        rows: Which images of the step's batch.
        device: Where.
    """

    step: int
    rows: slice
    device: torch.device


@dataclass(frozen=True)
class Recipe(ABC, Generic[N]):
    """What a network is trained for, and the settings of the loop; derive from it for another task."""

    steps: int = 5000
    """Optimiser steps."""
    batch_size: int = 128
    """Images per step, of all processes together."""
    lr: float = 2e-3
    """Peak learning rate of AdamW; 5 % linear warm-up, then cosine to zero."""
    weight_decay: float = 0.05
    """Weight decay of matrices, tokens and positions; norms and biases have none."""
    ema_decay: float = 0.998
    """Decay of the averaged weights, which are the ones that are saved."""
    checkpoint_every: int = 500
    """Steps between validations, each with a checkpoint."""
    seed: int = 0
    """Fixes everything."""
    layer_decay: float = 1.0
    """Factor on the learning rate from a block to the one before it: below 1 for pretrained weights."""
    accumulate: int = 1
    """Parts in which a batch is computed one after another, for want of memory."""
    amp: Amp = "off"
    """Precision of the passes: off (float32), bfloat16 or float16."""
    patience: int = 0
    """Validations without a better mean accuracy of what is trained, after which training ends; the best weights are
    saved. 0: all steps, and the last ones."""

    def __post_init__(self) -> None:
        check_fields(self)
        least = {"steps": 1, "batch_size": 1, "lr": 0, "weight_decay": 0, "checkpoint_every": 1, "accumulate": 1}
        for name, low in (least | {"patience": 0}).items():
            if not getattr(self, name) >= low:
                raise ValueError(f"{name}={getattr(self, name)!r} must be at least {low}.")
        if not 0 < self.layer_decay <= 1 or not 0 <= self.ema_decay < 1:
            raise ValueError(
                f"layer_decay={self.layer_decay} must lie in (0, 1], and ema_decay={self.ema_decay} in [0, 1)."
            )

    @abstractmethod
    def make_net(self) -> N:
        """The network before training."""

    @abstractmethod
    def make_heads(self, net: N) -> nn.Module:
        """What is trained beside the network and thrown away; `nn.Module()` if nothing is."""

    @abstractmethod
    def losses(self, net: N, heads: nn.Module, turn: Turn) -> Iterator[Tensor]:
        """The losses of one turn, whose sum counts; gradients of one are taken before the next is computed.

        Everything random in them has to come from (seed, step).
        """

    @abstractmethod
    def validate(self, net: N) -> dict[str, float]:
        """Accuracies on validation images by name, "full" first; the first two are shown in the progress bar."""

    @property
    def trained(self) -> tuple[str, ...]:
        """Names of `validate` whose mean says which weights are best: those of what is trained; none: all of them."""
        return ()

    def save(self, net: N, folder: Path) -> None:
        """Writes a network, so that it can be loaded."""
        assert isinstance(net, Supernet)
        save_pretrained(net, folder)

    @property
    def may_change(self) -> tuple[str, ...]:
        """Settings that a run may go on with other values of, since no result depends on them."""
        return ()

    def prepared(self) -> Recipe:
        """The same with everything fixed that depends on the data."""
        return self

    def open_images(self) -> None:
        """Opens what will be validated on, so that what is wrong with it is said before the first step."""
        return

    def after_step(self, net: N, heads: nn.Module, step: int) -> None:
        """What is done when the weights have moved; nothing, usually."""
        return

    def learning_rate(self, step: int) -> float:
        """Learning rate of a step."""
        warmup = WARMUP * self.steps
        if step < warmup:
            return self.lr * min(1.0, (step + 1) / warmup)
        return self.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (self.steps - warmup)))

    def turns(self, step: int, device: torch.device, rank: int = 0, ranks: int = 1) -> list[Turn]:
        """The turns that one of several processes takes at a step.

        Raises:
            ValueError: If the batch cannot be divided into as many parts of equal size.
        """
        parts = self.accumulate * ranks
        if self.batch_size % parts:
            raise ValueError(
                f"batch_size={self.batch_size} cannot be divided by {parts} ({ranks} process(es), each in "
                f"accumulate={self.accumulate} parts)."
            )
        size, first = self.batch_size // parts, rank * self.accumulate
        return [Turn(step, slice(i * size, (i + 1) * size), device) for i in range(first, first + self.accumulate)]
