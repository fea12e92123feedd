"""`prance bench-supernet`: what a step of supernet training costs, beside a plain step of the same network."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from torch import nn
from tqdm import tqdm

from prance_env.images.source import ImageDataset, ImageSource
from prance_env.supernets import usable_device

from ..machine import machine, machine_in_words
from ..networks.importance import full_network
from ..networks.launch import Team
from ..networks.loop import Training
from ..networks.optimiser import BETAS, DTYPES, Amp
from ..networks.recipes.images import ImagesRecipe
from ..report.tables import Table, write_json
from .clock import check_rounds, time_interleaved

PLAIN = "plain network"
NUM_CLASSES = 1000


@dataclass(frozen=True)
class SupernetBenchSettings:
    """What `prance bench-supernet` measures.

    Raises:
        ValueError: If nothing would be timed.
    """

    source: str = "timm:vit_small_patch16_224"
    """Network, with random weights: timm:NAME, a registered name, or a folder."""
    img_size: int | None = 64
    """Pixels of a network of timm."""
    batch_size: int = 32
    """Images a step."""
    amp: Amp = "off"
    """Precision of the passes."""
    repeats: int = 5
    """Rounds that are timed; in each, every kind of step is made once."""
    warmup: int = 1
    """Rounds before."""

    def __post_init__(self) -> None:
        check_rounds(self.repeats, self.warmup)


@dataclass(frozen=True)
class NoiseRecipe(ImagesRecipe):
    """Training on one batch of noise, since only the time counts."""

    noise: int = field(default=0, repr=False)
    """Images that there are."""

    def _loaded(self, split: str) -> ImageSource:
        c = self.config
        generator = torch.Generator().manual_seed(0)
        shape = (self.noise, c.in_chans, c.img_size, c.img_size)
        images = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
        return ImageDataset.from_tensors(images, torch.arange(self.noise) % c.num_classes)


def measure_steps(settings: SupernetBenchSettings, device: str = "cpu") -> dict[str, list[float]]:
    """Seconds of every round by kind of step: CPU seconds of this process, or on a GPU seconds on the clock.

    "plain network" is a step of the full network as an ordinary module; the others are steps of the trainer: the full
    network alone, and four passes (full, narrowest, two random subnets), which begin at the full network's first group
    or at the image.
    """
    recipe = NoiseRecipe(
        source=settings.source,
        init="random",
        img_size=settings.img_size,
        batch_size=settings.batch_size,
        amp=settings.amp,
        noise=settings.batch_size,
        num_classes=NUM_CLASSES,  # encoders come without a classifier
        steps=10_000,
    )
    kinds = {
        "full network alone": replace(recipe, subnets=0, smallest=False),
        "four passes, shared start": recipe,
        "four passes": replace(recipe, shared_start=False),
    }
    team, rounds = Team(usable_device(device)), settings.warmup + settings.repeats
    with tempfile.TemporaryDirectory(prefix="prance-") as folder:
        trainings = {name: Training(kind, Path(folder), team) for name, kind in kinds.items()}
        calls: dict[str, Callable[[], Any]] = {PLAIN: _plain_step(recipe, team.device)}
        calls |= {name: training.advance for name, training in trainings.items()}
        with tqdm(total=rounds * len(calls), desc="steps", unit="step") as bar:
            return time_interleaved(calls, device, settings.warmup, settings.repeats, bar, time.process_time)


def _plain_step(recipe: NoiseRecipe, device: torch.device) -> Callable[[], Any]:
    """AdamW on the full network as an ordinary module."""
    net = recipe.make_net()
    static = full_network(net).to(device).train()
    source = recipe._loaded("train")
    images = net.normalised(source.fetch(torch.arange(recipe.noise).numpy())).to(device)
    labels = source.labels.to(device)
    optimizer = torch.optim.AdamW(static.parameters(), lr=recipe.lr, betas=BETAS)
    precision = DTYPES.get(recipe.amp)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, precision, enabled=precision is not None):
            loss = F.cross_entropy(static(images).float(), labels)
        loss.backward()
        nn.utils.clip_grad_norm_(static.parameters(), 1.0)
        optimizer.step()

    return step


def run_bench_supernet(settings: SupernetBenchSettings, device: str, out: Path | None) -> dict[str, Any]:
    """Measures, prints a table, and writes `out` (JSON).

    Returns:
        What is written: machine, settings, seconds, medians, and medians of ratios to the plain network's step.
    """
    seconds = measure_steps(settings, device)
    plain = seconds[PLAIN]
    summary = {
        name: {
            "seconds": statistics.median(values),
            "ratio": statistics.median(v / p for v, p in zip(values, plain, strict=True)),
        }
        for name, values in seconds.items()
    }
    info = machine(device)
    table = Table("step", title=f"{settings.source}, {settings.batch_size} images; {machine_in_words(info)}")
    table.add_column("seconds" if torch.device(device).type == "cuda" else "CPU seconds", justify="right")
    table.add_column("/ plain", justify="right")
    for name, found in summary.items():
        table.add_row(name, f"{found['seconds']:.3f}", f"{found['ratio']:.2f}")
    console = Console()
    console.print(table)
    result = {"machine": info, "settings": vars(settings), "seconds": seconds, "summary": summary}
    if out is not None:
        write_json(out, result)
        console.print(f"Written to {out}")
    return result
