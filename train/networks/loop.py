"""Stage 1: the training loop of a supernet, whatever the recipe: optimiser, averaged weights, checkpoints, resuming."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from supernet import Supernet, save_pretrained
from supernet.staging import staged

from ..runs.folder import open_run
from ..runs.interrupt import deferred_interrupt
from ..runs.pace import SAVE_FREQ, Pace
from ..runs.progress import Progress
from ..runs.rows import ROWS, RowLog

LAST = "last.pt"


@dataclass(frozen=True)
class Recipe(ABC):
    """What a supernet is trained for, and the settings of the loop; derive from it for another task."""

    steps: int = 5000
    """Optimiser steps."""
    batch_size: int = 128
    """Images per step."""
    lr: float = 2e-3
    """Peak learning rate of AdamW; 5 % linear warm-up, then cosine to zero."""
    weight_decay: float = 0.05
    """Weight decay of matrices; other parameters have none."""
    ema_decay: float = 0.998
    """Decay of the averaged weights, which are the ones that are saved."""
    checkpoint_every: int = 500
    """Steps between validations, each with a checkpoint."""
    seed: int = 0
    """Fixes everything."""

    @abstractmethod
    def make_net(self) -> Supernet:
        """The supernet before training."""

    @abstractmethod
    def make_heads(self, net: Supernet) -> nn.Module:
        """What is trained beside the supernet and thrown away; `nn.Module()` if nothing is."""

    @abstractmethod
    def step_loss(self, net: Supernet, heads: nn.Module, step: int, device: torch.device) -> Tensor:
        """The loss of one training step; everything random in it has to come from (seed, step)."""

    @abstractmethod
    def validate(self, net: Supernet) -> dict[str, float]:
        """Accuracies on validation images by name, "full" and "min" among them."""

    def learning_rate(self, step: int) -> float:
        """Learning rate of a step."""
        warmup = 0.05 * self.steps
        if step < warmup:
            return self.lr * (step + 1) / warmup
        return self.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (self.steps - warmup)))


class _Training:
    """A training at some step: networks, optimiser, log, and the seconds that it has taken.

    Args:
        recipe: What is trained.
        out: Run folder.
        device: Torch device.
    """

    def __init__(self, recipe: Recipe, out: Path, device: str) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe, self.out, self.device = recipe, out, torch.device(device)
        self.net = recipe.make_net().to(device).train()
        self.heads = recipe.make_heads(self.net).to(device)
        self.params = [*self.net.parameters(), *self.heads.parameters()]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": [p for p in self.params if p.ndim > 1], "weight_decay": recipe.weight_decay},
                {"params": [p for p in self.params if p.ndim <= 1], "weight_decay": 0.0},
            ],
            lr=recipe.lr,
            betas=(0.9, 0.95),
        )
        self.ema = recipe.make_net().to(device)
        self.ema.load_state_dict(self.net.state_dict())
        self.step, self.progress, self.rows = 0, Progress(out), RowLog(out / ROWS)

    def _parts(self) -> dict[str, Any]:
        # "aux" is the name in checkpoints of version 0.1.
        return {"net": self.net, "aux": self.heads, "ema": self.ema, "optimizer": self.optimizer}

    def load(self, last: Path) -> None:
        """Goes back to a checkpoint."""
        checkpoint = torch.load(last, map_location=self.device, weights_only=True)
        for name, part in self._parts().items():
            part.load_state_dict(checkpoint[name])
        self.step = checkpoint["step"]
        self.rows.forget_after(self.step)

    def save(self) -> None:
        """Writes a checkpoint and the averaged weights, which take their places at once."""
        state = {"settings": asdict(self.recipe), "step": self.step}
        state |= {name: part.state_dict() for name, part in self._parts().items()}
        self.rows.flush()
        with staged(self.out) as folder:
            torch.save(state, folder / LAST)
            save_pretrained(self.ema, folder)
            self.progress.write(folder, self.step, self.recipe.steps)

    def advance(self) -> Tensor:
        """One step; returns its loss.

        Raises:
            FloatingPointError: If the loss is not finite.
        """
        recipe, step = self.recipe, self.step
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.learning_rate(step)
        loss = recipe.step_loss(self.net, self.heads, step, self.device)
        if not torch.isfinite(loss):
            raise FloatingPointError(f"The loss is {loss.item()} at step {step}; lower --lr (now {recipe.lr}).")
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.params, 1.0)
        self.optimizer.step()
        _average(self.ema, self.net, min(recipe.ema_decay, (step + 1) / (step + 10)))
        self.step += 1
        return loss


@torch.no_grad()
def _average(ema: Supernet, net: Supernet, decay: float) -> None:
    """Moves the averaged weights towards the current ones; counters are copied."""
    for averaged, value in zip(ema.state_dict().values(), net.state_dict().values(), strict=True):
        if averaged.is_floating_point():
            averaged.lerp_(value, 1 - decay)
        else:
            averaged.copy_(value)


def train_supernet(
    recipe: Recipe, out: Path, device: str = "cpu", resume: bool = False, save_freq: float = SAVE_FREQ
) -> Supernet:
    """Trains a supernet and writes it to `out`.

    Args:
        recipe: What is trained, and the settings.
        out: Run folder: `model.safetensors` and `config.json` (averaged weights), `last.pt`, `metrics.jsonl`,
            TensorBoard events.
        device: Torch device.
        resume: Continue from `out/last.pt`; the result is the same as without interruption. A run that was killed
            before its first checkpoint starts over.
        save_freq: Seconds between two checkpoints, beside those that are validated.

    Returns:
        The averaged supernet, in evaluation mode.

    Raises:
        FileExistsError: If `out` holds a run and `resume` is False, or another process writes to it.
        FileNotFoundError: If `resume` is True and there is no run.
        ValueError: If the run was begun with other settings.
        FloatingPointError: If the loss is not finite.
    """
    last = out / LAST
    with open_run(out, recipe, last, resume) as going_on:
        training = _Training(recipe, out, device)
        if going_on:
            training.load(last)
        writer = SummaryWriter(str(out), purge_step=training.step)
        remaining = range(training.step, recipe.steps)
        bar = tqdm(remaining, initial=training.step, total=recipe.steps, desc="supernet", unit="step", mininterval=1)
        pace = Pace(save_freq)
        with deferred_interrupt() as interrupted, closing(writer):
            for _ in bar:
                loss = training.advance()
                whole = training.step % recipe.checkpoint_every == 0 or training.step == recipe.steps
                if whole:
                    row = _noted(training, loss, writer)
                    bar.set_postfix(full=row["val_accuracy_full"], min=row["val_accuracy_min"], loss=row["loss"])
                if whole or interrupted() or pace.due():
                    training.save()
                if interrupted():
                    bar.close()
                    print(f"Stopped after step {training.step} of {recipe.steps}; continue with --resume.")
                    interrupted.heed()
        return training.ema.eval()


def _noted(training: _Training, loss: Tensor, writer: SummaryWriter) -> dict[str, float]:
    """Validates, and adds a row to `metrics.jsonl` and TensorBoard."""
    row = {"step": training.step, "loss": loss.item(), "seconds": training.progress.seconds}
    row |= {f"val_accuracy_{k}": v for k, v in training.recipe.validate(training.ema.eval()).items()}
    training.rows.write(row)
    for k, v in row.items():
        writer.add_scalar(f"supernet/{k}", v, training.step)
    return row
