"""`prance bench`: milliseconds beside MACs, for the full network, static and per-image subnets, timm's ViT and ToMe.

All contenders of a model and batch size are timed in one interleaved run on the same images, and the median counts.
"Kept" is the share of the saved MACs that becomes saved time, (time ratio) / (MACs ratio): 1 is all of it.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import timm
import torch
from rich.console import Console
from torch import Tensor, nn
from tqdm import tqdm
from tyro.conf import arg

from prance_env.supernets import DTYPES, usable_device
from supernet import SearchSpace, SubnetConfig, Supernet, extract, freeze, from_timm
from supernet.runtime.devices import current

from ..machine import machine, machine_in_words
from ..networks.sources import timm_problem
from ..options import Device, DType, TokenMode
from ..report.tables import Table, write_json
from .clock import check_rounds, time_interleaved
from .on_gpu import choices_on, compiled, forward_by_tiles, made_or_said, recorded
from .peak_memory import peak_memory

REFERENCES = ("timm", "full")
"""What the others are compared with, and without which there is nothing to say."""
CANDIDATES = 4096


@dataclass(frozen=True)
class BenchSettings:
    """What `prance bench` measures.

    Raises:
        ValueError: If a setting is unknown or out of range.
    """

    models: Annotated[tuple[str, ...], arg(name="model")] = ("deit_tiny_patch16_224", "deit_small_patch16_224")
    """Models of timm, with random weights; each becomes a supernet."""
    batch_sizes: Annotated[tuple[int, ...], arg(name="batch-size")] = (64, 256)
    """Images at a time."""
    token_mode: TokenMode = "prune"
    """How patches leave in the subnets."""
    macs_fraction: float = 0.5
    """MACs of the subnets, relative to the full network."""
    repeats: int = 5
    """Timed rounds, of which the median counts."""
    warmup: int = 1
    """Rounds before."""
    device: Device = "cpu"
    dtype: DType = "float32"
    """Precision of weights and images."""
    compiled: bool = True
    """On a GPU, also time timm's model compiled, which takes a minute to compile."""
    memory: bool = False
    """Also measure the peak memory of a forward pass."""
    seed: int = 0
    """Fixes subnets and images."""

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype={self.dtype!r} is unknown; choose one of {sorted(DTYPES)}.")
        if not 0 < self.macs_fraction <= 1:
            raise ValueError(f"macs_fraction={self.macs_fraction} must lie in (0, 1].")
        check_rounds(self.repeats, self.warmup)
        if not self.batch_sizes or min(self.batch_sizes) < 1:
            raise ValueError(f"batch_sizes={self.batch_sizes} must hold positive numbers.")


@dataclass(frozen=True)
class Contender:
    """Something to time: its name, MACs per image, and the forward pass."""

    name: str
    macs: float
    forward: Callable[[], Tensor]


def subnets_near(net: Supernet, macs_fraction: float, count: int, seed: int) -> SubnetConfig:
    """`count` different random subnets, those of `CANDIDATES` whose MACs are nearest to the wanted ones.

    Raises:
        ValueError: If the space has none within a tenth of the full network's MACs.
    """
    generator = torch.Generator().manual_seed(seed)
    subnets = SubnetConfig.random(net.space, max(CANDIDATES, 8 * count), generator)
    off = (net.macs(subnets) / net.macs() - macs_fraction).abs()
    best = off.argsort()[:count]
    if float(off[best].max()) > 0.1:
        raise ValueError(
            f"macs_fraction={macs_fraction} is out of reach: the nearest subnets are {off[best].max():.2f} off."
        )
    return subnets[best[torch.randperm(count, generator=generator)]]


def tome_net(model: nn.Module, full: Supernet, macs: float) -> tuple[Supernet, SubnetConfig]:
    """ToMe at constant width: equally many tokens merge in every block, as many as bring it nearest to `macs`."""
    space, depth = full.space, full.space.depth
    net = from_timm(
        model,
        SearchSpace(
            (1,) * depth, space.embed_dims[-1:], space.mlp_ratios[-1:], space.num_heads[-1:], 0.0, "tome", True
        ),
    )
    patches = full.config.num_patches
    best: tuple[float, SubnetConfig] | None = None
    for per_block in np.linspace(0, (patches - 1) / depth, 200):
        left = patches - np.round(per_block * np.arange(depth + 1))
        subnet = replace(SubnetConfig.full(net.space), keep_rate=torch.from_numpy(left[1:] / left[:-1])[None])
        off = abs(float(net.macs(subnet)) - macs)
        if best is None or off < best[0]:
            best = off, subnet
    assert best is not None
    return net, best[1]


def contenders(settings: BenchSettings, name: str, batch_size: int) -> list[Contender]:
    """What is timed for one model and batch size."""
    device, dtype = usable_device(settings.device), DTYPES[settings.dtype]
    torch.manual_seed(settings.seed)
    try:
        model = timm.create_model(name).eval()
    except RuntimeError as e:
        raise ValueError(timm_problem(name, e)) from e
    net = from_timm(model)
    net = freeze(from_timm(model, replace(net.space, token_mode=settings.token_mode)))
    subnets = subnets_near(net, settings.macs_fraction, batch_size, settings.seed)
    mean_macs = float(net.macs(subnets).double().mean())
    one = subnets[int((net.macs(subnets) - mean_macs).abs().argmin())]
    static = extract(net, one)
    tome, tome_subnet = tome_net(model, net, mean_macs)
    merged = extract(tome, tome_subnet)
    c = net.config
    images = torch.randn(batch_size, c.in_chans, c.img_size, c.img_size, device=device, dtype=dtype)
    for module in (model, net, static, merged):
        module.to(device, dtype).requires_grad_(False)
    full = float(net.macs())
    entrants = [
        Contender("timm", full, lambda: model(images)),
        Contender("full", full, lambda: net(images)),
        Contender("static", float(net.macs(one)), lambda: static(images)),
        Contender("per image", mean_macs, lambda: net(images, subnets)),
        Contender("tome", float(tome.macs(tome_subnet)), lambda: merged(images)),
    ]
    if device.type != "cuda":
        return entrants
    with current(device):
        entrants = [c for c in entrants if c.name in REFERENCES or made_or_said(c.name, lambda c=c: c.forward)]  # type: ignore[misc]
    choices = choices_on(net, subnets, device)
    makers: dict[str, tuple[float, Callable[[], Callable[[], Tensor]]]] = {
        "full, graph": (full, lambda: recorded(lambda: net(images))),
        "per image, graph": (mean_macs, lambda: recorded(lambda: forward_by_tiles(net, images, choices))),
    }
    if settings.compiled:
        makers["timm, compiled"] = full, lambda: compiled(model, images)
    with current(device):
        made = [(name, macs, made_or_said(name, make)) for name, (macs, make) in makers.items()]
    return [*entrants, *(Contender(name, macs, forward) for name, macs, forward in made if forward is not None)]


def run_bench(settings: BenchSettings, out: Path | None) -> list[dict[str, Any]]:
    """Measures, prints a table per model and batch size, and writes `out` (JSON).

    Returns:
        One row per model, batch size and contender.
    """
    console, rows = Console(), []
    with tqdm(total=0, desc="bench", unit="pass", mininterval=1) as bar:
        for name in settings.models:
            for batch_size in settings.batch_sizes:
                entrants = contenders(settings, name, batch_size)
                calls = {c.name: c.forward for c in entrants}
                bar.total = (bar.total or 0) + len(calls) * (settings.warmup + settings.repeats)
                with torch.inference_mode():
                    seconds = time_interleaved(calls, settings.device, settings.warmup, settings.repeats, bar)
                rows += _rows(entrants, seconds, settings, name, batch_size)
                if out is not None:  # what there is, should the next model fail
                    write_json(out, {"machine": machine(settings.device), "settings": asdict(settings), "rows": rows})
    _print(rows, settings, console)
    if out is not None:
        console.print(f"Written to {out}")
    return rows


def _rows(
    entrants: list[Contender], seconds: dict[str, list[float]], settings: BenchSettings, name: str, batch_size: int
) -> list[dict[str, Any]]:
    full = next(c for c in entrants if c.name == "full")

    def faster_than(reference: str, name: str) -> float:
        """Median over the rounds, in each of which both were timed: a machine that slows down slows both."""
        return statistics.median(r / s for r, s in zip(seconds[reference], seconds[name], strict=True))

    return [
        {
            "model": name,
            "batch_size": batch_size,
            "contender": c.name,
            "macs_per_image": c.macs,
            "ms_per_image": 1e3 * statistics.median(seconds[c.name]) / batch_size,
            "images_per_second": batch_size / statistics.median(seconds[c.name]),
            "throughput_vs_timm": faster_than("timm", c.name),
            "kept_of_saved_macs": faster_than("full", c.name) * c.macs / full.macs,
            "kept_of_saved_macs_vs_timm": faster_than("timm", c.name) * c.macs / full.macs,
            "peak_mib": peak_memory(c.forward, settings.device) / 2**20 if settings.memory else None,
            "seconds": seconds[c.name],
        }
        for c in entrants
    ]


def _print(rows: list[dict[str, Any]], settings: BenchSettings, console: Console) -> None:
    info = machine(settings.device)
    console.print(
        f"{machine_in_words(info)}, {settings.dtype}, token mode {settings.token_mode}, median of {settings.repeats}"
    )
    for model, batch_size in dict.fromkeys((r["model"], r["batch_size"]) for r in rows):
        table = Table(title=f"{model}, {batch_size} images")
        columns = ["", "GMACs/image", "ms/image", "throughput / timm", "kept of saved MACs", "... against timm"]
        for i, column in enumerate(columns + ["peak MiB"] * settings.memory):
            table.add_column(column, justify="left" if i == 0 else "right")
        for r in rows:
            if (r["model"], r["batch_size"]) == (model, batch_size):
                cells = [
                    r["contender"],
                    f"{r['macs_per_image'] / 1e9:.3f}",
                    f"{r['ms_per_image']:.2f}",
                    f"{r['throughput_vs_timm']:.2f}",
                    f"{r['kept_of_saved_macs']:.2f}",
                    f"{r['kept_of_saved_macs_vs_timm']:.2f}",
                ]
                table.add_row(*cells, *([f"{r['peak_mib']:.0f}"] if settings.memory else []))
        console.print(table)
