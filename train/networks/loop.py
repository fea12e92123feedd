"""Stage 1: the training loop of a network, whatever the recipe: optimiser, averaged weights, checkpoints, resuming."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from supernet.archives import load_state
from supernet.files import WEIGHTS
from supernet.heads import ImageClassifier
from supernet.staging import staged
from supernet.subnet import HOST

from ..runs.folder import open_run
from ..runs.interrupt import Interruption, deferred_interrupt
from ..runs.pace import SAVE_FREQ, Pace
from ..runs.progress import Progress
from ..runs.rows import ROWS, RowLog
from .launch import Team, open_team
from .optimiser import Stepper, parameter_groups
from .recipe import N, Recipe

LAST = "last.pt"


class Training:
    """A training at some step: networks, optimiser, log, and the seconds that it has taken.

    Args:
        recipe: What is trained.
        out: Run folder.
        team: The processes that train it.
    """

    def __init__(self, recipe: Recipe[Any], out: Path, team: Team) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe, self.out, self.team = recipe, out, team
        # Random weights are the same on every device, whatever torch makes things on by default.
        with HOST:
            self.net = recipe.make_net().to(team.device).train()
            self.heads = recipe.make_heads(self.net).to(team.device)
            self.ema = recipe.make_net().to(team.device)
            # Whoever waits for nothing to get better wants what was best, not what came after.
            self.kept = recipe.make_net().to(team.device) if recipe.patience else self.ema
        groups = parameter_groups(self.net, self.heads, recipe.weight_decay, recipe.layer_decay)
        params = [*self.net.parameters(), *self.heads.parameters()]
        self.stepper = Stepper(groups, params, recipe.lr, recipe.amp, team)
        self.ema.load_state_dict(self.net.state_dict())
        self.step, self.progress, self.rows = 0, Progress(out), RowLog(out / ROWS)
        # The best mean accuracy so far, and how many validations ago that was.
        self.best, self.age = -1.0, 0

    @property
    def is_over(self) -> bool:
        """Whether there is nothing left to do."""
        patience = self.recipe.patience
        return self.step >= self.recipe.steps or bool(patience and self.age >= patience)

    @property
    def result(self) -> ImageClassifier:
        """What is saved: the averaged weights; with patience, once they were validated, those that were best."""
        return self.ema if self.best < 0 else self.kept

    def _parts(self) -> dict[str, Any]:
        # "aux" is the name in checkpoints of version 0.1.
        parts = {"net": self.net, "aux": self.heads, "ema": self.ema, "optimizer": self.stepper}
        return parts | ({} if self.kept is self.ema else {"kept": self.kept})

    def load(self, last: Path) -> None:
        """Goes back to a checkpoint."""
        # To the host: what is to be on the device is copied there, and AdamW's counters are not, or a GPU would have to
        # be waited for at each of them.
        checkpoint = load_state(last)
        checkpoint.setdefault("kept", checkpoint["ema"])  # earlier versions kept none
        for name, part in self._parts().items():
            part.load_state_dict(checkpoint[name])
        self.step, self.best, self.age = (checkpoint[k] for k in ("step", "best", "age"))
        if self.team.is_main:
            self.rows.forget_after(self.step)

    def save(self) -> None:
        """Writes a checkpoint and the result, which take their places at once; the main process does."""
        if not self.team.is_main:
            return
        state = {"settings": asdict(self.recipe), "step": self.step, "best": self.best, "age": self.age}
        state |= {name: part.state_dict() for name, part in self._parts().items()}
        self.rows.flush()
        with staged(self.out) as folder:
            torch.save(state, folder / LAST)
            self.recipe.save(self.result, folder)
            self.progress.write(folder, self.step, self.recipe.steps)

    def advance(self) -> Tensor:
        """One step; returns its loss.

        Raises:
            FloatingPointError: If the loss is not finite.
        """
        recipe, step, team = self.recipe, self.step, self.team
        turns = recipe.turns(step, team.device, team.rank, team.size)
        losses = (loss for turn in turns for loss in recipe.losses(self.net, self.heads, turn))
        loss = self.stepper.step(losses, len(turns), recipe.learning_rate(step))
        if not torch.isfinite(loss):
            raise FloatingPointError(f"The loss is {loss.item()} at step {step}; lower --lr (now {recipe.lr}).")
        # Statistics of batch norm: every process has seen its own share of the images.
        team.average([b for name, b in self.net.named_buffers() if "running" in name])
        recipe.after_step(self.net, self.heads, step)
        _average(self.ema, self.net, min(recipe.ema_decay, (step + 1) / (step + 10)))
        self.step += 1
        return loss

    def validated(self) -> dict[str, float]:
        """Accuracies of the averaged weights by name."""
        found = self.recipe.validate(self.ema.eval())
        counted = [found[name] for name in self.recipe.trained or found]
        mean = sum(counted) / len(counted)
        if mean > self.best:
            self.best, self.age = mean, 0
            if self.kept is not self.ema:
                self.kept.load_state_dict(self.ema.state_dict())
        else:
            self.age += 1
        return found


class _Log:
    """What is said about a training, by the main process only.

    Args:
        training: The training.
    """

    def __init__(self, training: Training) -> None:
        step, self._main = training.step, training.team.is_main
        # What was logged at the step itself is not logged again.
        self._writer = SummaryWriter(str(training.out), purge_step=step + 1) if self._main else None
        total = training.recipe.steps
        self.bar = tqdm(initial=step, total=total, desc="supernet", unit="step", mininterval=1, disable=not self._main)

    def note(self, training: Training, loss: Tensor) -> None:
        """Validates, and adds a row to `metrics.jsonl` and TensorBoard."""
        row = {"step": training.step, "loss": loss.item(), "seconds": training.progress.seconds}
        found = training.validated()
        row |= {f"val_accuracy_{k}": v for k, v in found.items()}
        training.rows.write(row)
        for k, v in row.items():
            if self._writer is not None:
                self._writer.add_scalar(f"supernet/{k}", v, training.step)
        if self._writer is not None:
            self._writer.flush()  # before the checkpoint, from which a killed run goes on
        self.bar.set_postfix({name: found[name] for name in [*found][:2]}, loss=row["loss"])

    def say(self, text: str) -> None:
        """Prints a line below the bar."""
        self.bar.close()
        if self._main:
            print(text)

    def close(self) -> None:
        """Ends the bar and TensorBoard's file."""
        self.bar.close()
        if self._writer is not None:
            self._writer.close()


@torch.no_grad()
def _average(ema: ImageClassifier, net: ImageClassifier, decay: float) -> None:
    """Moves the averaged weights towards the current ones; counters are copied."""
    for averaged, value in zip(ema.state_dict().values(), net.state_dict().values(), strict=True):
        if averaged.is_floating_point():
            averaged.lerp_(value, 1 - decay)
        else:
            averaged.copy_(value)


def train_supernet(
    recipe: Recipe[N],
    out: Path,
    device: str = "cpu",
    resume: bool = False,
    save_freq: float = SAVE_FREQ,
    max_hours: float | None = None,
) -> N:
    """Trains a supernet, or whatever network the recipe makes, and writes it to `out`.

    Args:
        recipe: What is trained, and the settings.
        out: Run folder: `model.safetensors` and its description (averaged weights, with patience those of the best
            validation), `last.pt`, `metrics.jsonl`, TensorBoard events.
        device: Torch device; with several processes "cpu" or "cuda".
        resume: Continue from `out/last.pt`; the result is the same as without interruption. A run that was killed
            before its first checkpoint starts over.
        save_freq: Seconds between two checkpoints, beside those that are validated.
        max_hours: Stop with a checkpoint after so many hours; None: at the end.

    Returns:
        The averaged network, in evaluation mode; with patience the best one, which the main process knows.

    Raises:
        FileExistsError: If `out` holds a run and `resume` is False, or a network, or another process writes to it.
        FileNotFoundError: If `resume` is True and there is no run.
        ValueError: If the run was begun with other settings.
        FloatingPointError: If the loss is not finite.
    """
    team = open_team(device)
    recipe, last = recipe.prepared(), out / LAST
    with ExitStack() as stack:
        if team.is_main:
            stack.enter_context(open_run(out, recipe, last, resume, [out / WEIGHTS], may_change=recipe.may_change))
        team.wait()
        training = Training(recipe, out, team)
        recipe.open_images()
        if last.exists():
            training.load(last)
        interrupted = stack.enter_context(deferred_interrupt())
        log = stack.enter_context(_logging(training))
        _run(training, interrupted, log, Pace(save_freq), max_hours)
        interrupted.heed()
    return cast(N, training.result.eval())


@contextmanager
def _logging(training: Training) -> Iterator[_Log]:
    log = _Log(training)
    try:
        yield log
    finally:
        log.close()


def _run(training: Training, interrupted: Interruption, log: _Log, pace: Pace, max_hours: float | None) -> None:
    """Steps until there is nothing left to do, or a reason to stop."""
    recipe, team, begun = training.recipe, training.team, time.monotonic()
    while not team.any(training.is_over):
        loss = training.advance()
        log.bar.update()
        whole = training.step % recipe.checkpoint_every == 0 or training.step == recipe.steps
        if whole:
            team.average([loss])  # each process knows that of its own share of the images
        if whole and team.is_main:
            log.note(training, loss)
        late = max_hours is not None and time.monotonic() - begun > 3600 * max_hours
        stop = team.any(interrupted() or late)
        if whole or stop or pace.due():
            training.save()
        if stop and training.step < recipe.steps:
            log.say(f"Stopped after step {training.step} of {recipe.steps}; continue with --resume.")
            return
