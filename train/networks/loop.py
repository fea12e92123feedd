"""Stage 1: training a supernet on the Digits task.

Sandwich rule (once-for-all networks): every step trains the full network on the labels, and the smallest and a random
subnet on the full network's output. What the subnets want does not reach the stem and the first group, which would
otherwise learn to answer alone and leave nothing to decide; three auxiliary losses shape the tokens instead (which
digit a patch shows, how many digits there are, where the class token looks).
"""

from __future__ import annotations

import json
import math
import time
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from prance_env.images.digits import MAX_DIGITS, make_scenes
from supernet import GroupChoice, InferenceState, SearchSpace, SubnetConfig, Supernet, create_supernet, save_pretrained
from supernet.files import write_atomically

from ..runs.folder import write_command
from ..runs.interrupt import deferred_interrupt


@dataclass
class SupernetTraining:
    """Settings of supernet training.

    Attributes:
        steps: Optimiser steps.
        batch_size: Scenes per step.
        lr: Peak learning rate of AdamW; 5 % linear warm-up, then cosine to zero.
        weight_decay: On matrices only.
        full_only: Fraction of the steps in which only the full network is trained.
        label_smoothing: Of the full network's cross-entropy.
        ema_decay: Decay of the averaged weights, which are the ones that are saved.
        patch_weight: Weight of "which digit does this patch show", fading to a fifth.
        count_weight: Weight of "how many digits are there", read from the class token after the first group.
        attention_weight: Weight of "the class token attends to the digits, all alike".
        checkpoint_every: Steps between checkpoints and validations.
        val_scenes: Scenes per validation.
        seed: Fixes everything.
    """

    steps: int = 5000
    batch_size: int = 128
    lr: float = 2e-3
    weight_decay: float = 0.05
    full_only: float = 0.35
    label_smoothing: float = 0.05
    ema_decay: float = 0.998
    patch_weight: float = 0.5
    count_weight: float = 0.2
    attention_weight: float = 0.1
    checkpoint_every: int = 500
    val_scenes: int = 2000
    seed: int = 0


PRESETS = {
    "digits": SupernetTraining(),
    "digits-quick": SupernetTraining(steps=600, batch_size=96, checkpoint_every=200, ema_decay=0.98),
}


class AuxiliaryHeads(nn.Module):
    """Linear read-outs that shape the tokens during training and are thrown away."""

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.patch = nn.Linear(embed_dim, 11)
        self.count = nn.Linear(embed_dim, MAX_DIGITS)


def random_subnet(space: SearchSpace, batch_size: int, rng: np.random.Generator) -> SubnetConfig:
    """One random subnet for a whole batch, from small to large with equal chance.

    Half of them are narrower, by a random amount; the rest only drop patches. Half keep the groups after a random
    decision at full size, as Result-to-Go does.
    """
    actions = np.ones((space.num_decisions, space.action_size))
    if rng.random() < 0.5:
        n = space.blocks_per_decision
        low = rng.random(2)
        actions[:, :n] = rng.uniform(low[0], 1, (space.num_decisions, n))
        actions[:, n : 2 * n] = rng.uniform(low[1], 1, (space.num_decisions, n))
    actions[:, -1] = random_keep_actions(space, rng)
    if rng.random() < 0.5:
        actions[rng.integers(1, space.num_decisions + 1) :] = 1
    return SubnetConfig.from_actions(space, torch.from_numpy(actions)[None]).expand(batch_size)


def random_keep_actions(space: SearchSpace, rng: np.random.Generator) -> np.ndarray:
    """A keep action per decision: all patches, uniform, or log-uniform."""
    low = space.min_keep_rate
    keep = np.stack(
        [np.ones(space.num_decisions), rng.uniform(low, 1, space.num_decisions), low ** rng.random(space.num_decisions)]
    )[rng.integers(0, 3, space.num_decisions), np.arange(space.num_decisions)]
    return (keep - low) / (1 - low)


def min_subnet(space: SearchSpace, batch_size: int, rng: np.random.Generator) -> SubnetConfig:
    """The narrowest subnet with random keep rates."""
    actions = np.zeros((space.num_decisions, space.action_size))
    actions[:, -1] = random_keep_actions(space, rng)
    return SubnetConfig.from_actions(space, torch.from_numpy(actions)[None]).expand(batch_size)


def attention_loss(net: Supernet, state: InferenceState, choice: GroupChoice, cells: Tensor) -> Tensor:
    """Cross-entropy of the class attention to "uniform over the patches with a digit"; all patches must be present."""
    scores = net.class_attention(state, choice).view(len(cells), -1)[:, 1:]
    ink = (cells >= 0).float()
    return -(ink / ink.sum(1, keepdim=True) * scores.clamp_min(1e-6).log()).sum(1).mean()


def patch_loss(head: nn.Linear, state: InferenceState, cells: Tensor) -> Tensor:
    """Cross-entropy of "which digit, or none" at every patch; blanks weigh .3. All patches must be present."""
    logits = head(state.tokens.view(len(cells), -1, state.tokens.shape[1])[:, 1:])
    weight = torch.ones(11, device=cells.device)
    weight[10] = 0.3
    return F.cross_entropy(logits.flatten(0, 1), torch.where(cells < 0, 10, cells).flatten(), weight=weight)


def step_loss(net: Supernet, aux: AuxiliaryHeads, cfg: SupernetTraining, step: int, device: torch.device) -> Tensor:
    """The loss of training step `step`: everything random in it comes from (seed, step)."""
    scenes = make_scenes(cfg.batch_size, "train", seed=[cfg.seed, 1000 + step])
    rng = np.random.default_rng([cfg.seed, 2, step])
    images, labels, cells = scenes.images.to(device), scenes.labels.to(device), scenes.cells.to(device)
    space, batch = net.space, cfg.batch_size
    progress = step / cfg.steps
    fade = 1 - 0.8 * progress

    start = net.begin(images)
    loss = cfg.count_weight * F.cross_entropy(aux.count(start.class_token), scenes.num_digits.to(device) - 1)
    state = start
    for group in range(1, len(space.groups)):
        choice = GroupChoice.full(space, group, batch)
        loss = loss + cfg.attention_weight * attention_loss(net, state, choice, cells)
        state = net.run_group(state, group, choice)
    loss = loss + cfg.patch_weight * fade * patch_loss(aux.patch, state, cells)
    logits = net.forward_head(state)
    loss = loss + F.cross_entropy(logits, labels, label_smoothing=cfg.label_smoothing)

    if progress >= cfg.full_only:
        target = logits.detach().softmax(-1)
        frozen_start = start.detach()
        for subnet in (min_subnet(space, batch, rng), random_subnet(space, batch, rng)):
            loss = loss + F.cross_entropy(net.finish(frozen_start, subnet), target)
            loss = loss + cfg.attention_weight * attention_loss(net, frozen_start, subnet.group(space, 1), cells)
    return loss


@torch.inference_mode()
def subnet_accuracies(net: Supernet, cfg: SupernetTraining, split: str = "val") -> dict[str, float]:
    """Accuracy of the full, the smallest and random subnets (one per image)."""
    scenes = make_scenes(cfg.val_scenes, split, seed=77)
    device = net.pos_embed.device
    random = SubnetConfig.random(net.space, cfg.val_scenes, torch.Generator().manual_seed(0))
    start = net.begin(scenes.images.to(device))
    out = {}
    for name, subnet in (
        ("full", SubnetConfig.full(net.space)),
        ("random", random),
        ("min", SubnetConfig.min(net.space)),
    ):
        logits = net.finish(start, subnet.expand(cfg.val_scenes))
        out[name] = (logits.argmax(-1).cpu() == scenes.labels).double().mean().item()
    return out


def _learning_rate(cfg: SupernetTraining, step: int) -> float:
    warmup = 0.05 * cfg.steps
    if step < warmup:
        return cfg.lr * (step + 1) / warmup
    return cfg.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (cfg.steps - warmup)))


@torch.no_grad()
def _average(ema: Supernet, net: Supernet, decay: float) -> None:
    """Moves the averaged weights towards the current ones; counters are copied."""
    for averaged, value in zip(ema.state_dict().values(), net.state_dict().values(), strict=True):
        if averaged.is_floating_point():
            averaged.lerp_(value, 1 - decay)
        else:
            averaged.copy_(value)


def train_supernet(cfg: SupernetTraining, out: Path, device: str = "cpu", resume: bool = False) -> Supernet:
    """Trains the Digits supernet and writes it to `out`.

    Args:
        cfg: Settings.
        out: Run folder: `model.safetensors` and `config.json` (averaged weights), `last.pt`, `metrics.jsonl`,
            TensorBoard events.
        device: Torch device.
        resume: Continue from `out/last.pt`; the result is the same as without interruption.

    Returns:
        The averaged supernet, in evaluation mode.

    Raises:
        FileExistsError: If `out` holds a run and `resume` is False.
        FileNotFoundError: If `resume` is True and there is no checkpoint.
        ValueError: If the checkpoint was written with other settings.
        FloatingPointError: If the loss is not finite.
    """
    out.mkdir(parents=True, exist_ok=True)
    last = out / "last.pt"
    if last.exists() and not resume:
        raise FileExistsError(f"{out} holds a run already; pass --resume to continue it, or another --out.")
    if resume and not last.exists():
        raise FileNotFoundError(f"{last} does not exist, so there is nothing to resume; drop --resume.")
    if not resume:
        write_command(out, cfg)
    torch.manual_seed(cfg.seed)
    net = create_supernet("digits").to(device).train()
    aux = AuxiliaryHeads(net.config.embed_dim).to(device)
    params = [*net.parameters(), *aux.parameters()]
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in params if p.ndim > 1], "weight_decay": cfg.weight_decay},
            {"params": [p for p in params if p.ndim <= 1], "weight_decay": 0.0},
        ],
        lr=cfg.lr,
        betas=(0.9, 0.95),
    )
    ema = create_supernet("digits").to(device)
    ema.load_state_dict(net.state_dict())
    first, elapsed = 0, 0.0
    if resume:
        checkpoint = torch.load(last, map_location=device, weights_only=True)
        if checkpoint["settings"] != asdict(cfg):
            changed = {k for k, v in asdict(cfg).items() if checkpoint["settings"].get(k) != v}
            raise ValueError(
                f"{last} was written with other values of {sorted(changed)}; resume with the same settings."
            )
        net.load_state_dict(checkpoint["net"])
        aux.load_state_dict(checkpoint["aux"])
        ema.load_state_dict(checkpoint["ema"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        first, elapsed = checkpoint["step"], checkpoint["seconds"]
    begun = time.perf_counter() - elapsed
    writer = SummaryWriter(str(out), purge_step=first)

    def save(step: int) -> None:
        state = {
            "settings": asdict(cfg),
            "step": step,
            "seconds": time.perf_counter() - begun,
            "net": net.state_dict(),
            "aux": aux.state_dict(),
            "ema": ema.state_dict(),
            "optimizer": optimizer.state_dict(),
        }
        write_atomically(last, lambda name: torch.save(state, name))
        save_pretrained(ema, out)

    bar = tqdm(range(first, cfg.steps), initial=first, total=cfg.steps, desc="supernet", unit="step", mininterval=1)
    with deferred_interrupt() as interrupted, closing(writer):
        for step in bar:
            for group in optimizer.param_groups:
                group["lr"] = _learning_rate(cfg, step)
            loss = step_loss(net, aux, cfg, step, torch.device(device))
            if not torch.isfinite(loss):
                raise FloatingPointError(f"The loss is {loss.item()} at step {step}; lower --lr (now {cfg.lr}).")
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(params, 1.0)
            optimizer.step()
            _average(ema, net, min(cfg.ema_decay, (step + 1) / (step + 10)))
            if (step + 1) % cfg.checkpoint_every == 0 or step + 1 == cfg.steps:
                save(step + 1)
                row = {"step": step + 1, "loss": loss.item(), "seconds": time.perf_counter() - begun}
                row |= {f"val_accuracy_{k}": v for k, v in subnet_accuracies(ema.eval(), cfg).items()}
                with (out / "metrics.jsonl").open("a") as f:
                    f.write(json.dumps(row) + "\n")
                for k, v in row.items():
                    writer.add_scalar(f"supernet/{k}", v, step + 1)
                bar.set_postfix(full=row["val_accuracy_full"], min=row["val_accuracy_min"], loss=row["loss"])
            if interrupted():
                save(step + 1)
                bar.close()
                print(f"Stopped after step {step + 1} of {cfg.steps}; continue with --resume.")
                raise KeyboardInterrupt
    return ema.eval()
