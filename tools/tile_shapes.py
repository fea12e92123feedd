"""Which tiles are fastest on this GPU: `python -m tools.tile_shapes`, in two to five minutes.

The kernels of the tiled runtime cut their work as `supernet.runtime.devices.tile_sizes` says, by figures of one GPU.
Here two batches are timed with those tiles and with others, all in turns, as CUDA graphs: one in which every image has
a size of its own, and one at full size. What is above 1 in both columns should become what `tile_sizes` says.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import timm
import torch
import tyro
from rich.console import Console
from torch import Tensor
from tqdm import tqdm

from prance_env.supernets import DTYPES, usable_device
from supernet import GroupChoice, Supernet, freeze, from_timm, runtime
from supernet.runtime import devices
from supernet.runtime.devices import TileSizes
from supernet.tiled_state import TiledState
from train.machine import machine, machine_in_words
from train.options import DType
from train.report.tables import Table, write_json
from train.timing.clock import check_rounds, time_interleaved
from train.timing.networks import subnets_near
from train.timing.on_gpu import choices_on, forward_by_tiles, made_or_said, recorded

MIXED, FULL = "per image", "full size"


@dataclass(frozen=True)
class Shapes:
    """What to measure."""

    model: str = "deit_small_patch16_224"
    """Model of timm, with random weights."""
    batch_size: int = 256
    """Images at a time."""
    device: str = "cuda"
    """"cpu" takes Triton's interpreter, which says nothing about a GPU."""
    dtype: DType = "bfloat16"
    """Precision of weights and images."""
    macs_fraction: float = 0.5
    """MACs of the images with sizes of their own, relative to the full network."""
    warmup: int = 3
    """Rounds before."""
    repeats: int = 11
    """Timed rounds, of which the median of the ratios counts."""
    out: Path | None = None
    """JSON file for the figures."""


def candidates(standard: TileSizes) -> dict[str, TileSizes]:
    """Tiles to compare, by what is different about them; the standard ones first."""
    changes = [
        {"warps": 12 - standard.warps},
        {"stages": standard.stages + 1},
        {"stages": max(standard.stages - 1, 1)},
        {"depth": standard.depth // 2, "stages": standard.stages + 1},
        {"depth": standard.depth * 2, "stages": max(standard.stages - 1, 1)},
        {"rows": standard.rows // 2},
        {"rows": standard.rows // 2, "columns": standard.columns * 2},
        {"rows": standard.rows * 2, "warps": 8},
        {"columns": standard.columns * 2, "warps": 8},
        {"columns": standard.columns // 2},
        {"queries": standard.queries * 2},
        {"keys": standard.keys // 2},
        {"normed": standard.normed * 2},
    ]
    tiles = {"as they are": standard}
    for change in changes:
        if (changed := replace(standard, **change)) not in tiles.values():
            tiles[", ".join(f"{name}={value}" for name, value in change.items())] = changed
    return tiles


@contextmanager
def cut_by(sizes: TileSizes) -> Iterator[None]:
    """Within the block, kernels are launched with these tiles."""
    before = devices.tile_sizes
    devices.tile_sizes = lambda device_type, dtype: sizes
    try:
        yield
    finally:
        devices.tile_sizes = before


def calls_of(
    sizes: TileSizes, name: str, net: Supernet, images: Tensor, choices: list[GroupChoice]
) -> dict[str, Callable[[], Tensor]]:
    """What is timed with some tiles, by the name of the batch; nothing that this GPU cannot run."""

    def by_tiles(function: Callable[[], Tensor]) -> Callable[[], Tensor]:
        def cut() -> Tensor:
            with cut_by(sizes), runtime.use("tiles"):
                return function()

        return recorded(cut) if images.is_cuda else cut

    functions = {
        MIXED: lambda: forward_by_tiles(net, images, choices),
        FULL: lambda: net.finish(TiledState.of(net.begin(images), net.config)),
    }
    made = {batch: made_or_said(f"{name}, {batch}", lambda f=f: by_tiles(f)) for batch, f in functions.items()}  # type: ignore[misc]
    return {batch: call for batch, call in made.items() if call is not None}


def measured(shapes: Shapes) -> dict[str, dict[str, float]]:
    """By tiles and batch, how many times faster it is than with the tiles as they are.

    Raises:
        ValueError: If the device is not there, or a setting is out of range.
    """
    check_rounds(shapes.repeats, shapes.warmup)
    device, dtype = usable_device(shapes.device), DTYPES[shapes.dtype]
    torch.manual_seed(0)
    net = freeze(from_timm(timm.create_model(shapes.model).eval()))
    subnets = subnets_near(net, shapes.macs_fraction, shapes.batch_size, 0)
    config = net.to(device, dtype).config
    images = torch.randn(shapes.batch_size, config.in_chans, config.img_size, config.img_size, device=device)
    choices, calls = choices_on(net, subnets, device), {}
    tiles = candidates(devices.tile_sizes(device.type, dtype))
    with torch.inference_mode(), devices.current(device):
        for name, sizes in tqdm(tiles.items(), desc="compiling", unit="tiles"):
            made = calls_of(sizes, name, net, images.to(dtype), choices)
            calls.update({f"{name}; {batch}": call for batch, call in made.items()})
        total = len(calls) * (shapes.warmup + shapes.repeats)
        with tqdm(total=total, desc="timing", unit="pass", mininterval=1) as bar:
            seconds = time_interleaved(calls, shapes.device, shapes.warmup, shapes.repeats, bar)
    standard = next(iter(tiles))

    def times_faster(name: str, batch: str) -> float:
        rounds = zip(seconds[f"{standard}; {batch}"], seconds[f"{name}; {batch}"], strict=True)
        return statistics.median(before / after for before, after in rounds)

    run = [batch for batch in (MIXED, FULL) if f"{standard}; {batch}" in calls]
    return {name: {batch: times_faster(name, batch) for batch in run if f"{name}; {batch}" in calls} for name in tiles}


def main(shapes: Shapes) -> None:
    """Measures, prints a table and writes the figures."""
    faster, info = measured(shapes), machine(shapes.device)
    table = Table("tiles", f"{MIXED}, times faster", f"{FULL}, times faster")
    for name, by_batch in faster.items():
        table.add_row(name, *(f"{by_batch[batch]:.3f}" if batch in by_batch else "-" for batch in (MIXED, FULL)))
    Console().print(f"{machine_in_words(info)}, {shapes.model}, {shapes.batch_size} images, {shapes.dtype}", table)
    if shapes.out is not None:
        write_json(shapes.out, {"machine": info, "settings": asdict(replace(shapes, out=None)), "times_faster": faster})


if __name__ == "__main__":
    main(tyro.cli(Shapes, description=__doc__))
