"""Everything that only a GPU can show: `python -m tools.gpu_check`, in less than five minutes.

First the tests that need one and those of the tiled runtime, which run on it where there is one; then `prance bench`
and `prance bench-env` at the sizes for which there are targets, and a table of what was reached. Needs PyTorch with
CUDA, timm and Triton, and the rest of this package's dependencies with pytest and hypothesis.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from rich.console import Console
from rich.table import Table

from supernet.files import write_text

TESTS = ("tests/supernet/test_tiles.py", "tests/prance_env/test_device_engine.py", "tests/prance_env/test_output.py")
PER_IMAGE, TIMM, FULL = "per image, graph", "timm", "full, graph"


@dataclass(frozen=True)
class Target:
    """One figure that is wanted.

    Attributes:
        what: In words.
        value: What was reached; None: it was not measured.
        at_least: Its lower bound, or None.
        at_most: Its upper bound, or None.
    """

    what: str
    value: float | None
    at_least: float | None = None
    at_most: float | None = None

    @property
    def met(self) -> bool:
        """Whether it was measured and lies within the bounds."""
        if self.value is None:
            return False
        return (self.at_least is None or self.value >= self.at_least) and (
            self.at_most is None or self.value <= self.at_most
        )


@dataclass(frozen=True)
class Check:
    """What to measure."""

    out: Path = Path("gpu-check")
    """Folder for the figures (JSON) and `report.md`."""
    tests: bool = True
    """Also run the tests."""
    repeats: int = 7
    """Timed rounds of every benchmark, of which the median counts."""


def run(name: str, *command: str) -> tuple[bool, float]:
    """Runs a module in a process of its own: whether it succeeded, and the seconds it took."""
    begun = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", *command], check=False)
    seconds = time.perf_counter() - begun
    print(f"{name}: {'done' if done.returncode == 0 else 'FAILED'} in {seconds:.0f} s", flush=True)
    return done.returncode == 0, seconds


def bench(out: Path, repeats: int, model: str, batch_size: int) -> dict[str, dict[str, Any]]:
    """Rows of `prance bench` by contender; empty if it failed."""
    path = out / f"bench-{model}-{batch_size}.json"
    command = ["bench", "--model", model, "--batch-size", str(batch_size), "--device", "cuda", "--dtype", "bfloat16"]
    command += ["--repeats", str(repeats), "--warmup", "3", "--memory", "--out", str(path)]
    worked, _ = run(path.stem, "train.commands.main", *command)
    return {row["contender"]: row for row in json.loads(path.read_text())["rows"]} if worked else {}


def bench_env(out: Path, repeats: int, batch_size: int) -> dict[str, dict[str, Any]]:
    """Rows of `prance bench-env` with the small supernet by contender; empty if it failed."""
    path = out / f"bench-env-{batch_size}.json"
    command = [
        "bench-env",
        "--supernet",
        "prance_vit_small",
        "--num-images",
        str(batch_size),
        "--repeats",
        str(repeats),
    ]
    command += ["--warmup", "3", "--device", "cuda", "--dtype", "bfloat16", "--out", str(path)]
    worked, _ = run(path.stem, "train.commands.main", *command)
    return {row["contender"]: row for row in json.loads(path.read_text())["rows"]} if worked else {}


def targets_of(
    model: str, size: int, rows: dict[str, dict[str, Any]], faster: float, kept: float | None
) -> list[Target]:
    """What is wanted of one model and batch size."""
    mine, timm, full = (rows.get(name, {}) for name in (PER_IMAGE, TIMM, FULL))
    wanted = [Target(f"{model}, {size} images at half of the MACs, over timm", mine.get("throughput_vs_timm"), faster)]
    if kept is not None:
        mine_share = None
        if mine and full:
            macs = mine["macs_per_image"] / full["macs_per_image"]
            mine_share = full["ms_per_image"] / mine["ms_per_image"] * macs
        memory = mine["peak_mib"] / timm["peak_mib"] if mine and timm else None
        wanted += [
            Target(f"{model}, {size} images, full width over timm", full.get("throughput_vs_timm"), 1.0),
            Target(f"{model}, {size} images, kept of the saved MACs", mine_share, kept),
            Target(f"{model}, {size} images, peak memory over timm's", memory, at_most=1.0),
        ]
    return wanted


def main(check: Check) -> None:
    """Runs everything, writes the report, and ends with an error if a test failed or a target was missed."""
    if not torch.cuda.is_available():
        sys.exit("gpu-check needs a GPU that PyTorch can use; torch.cuda.is_available() says there is none.")
    check.out.mkdir(parents=True, exist_ok=True)
    tested = run("tests", "pytest", "-q", "-p", "no:cacheprovider", *TESTS)[0] if check.tests else None
    wanted = []
    for model, size, faster, kept in (
        ("deit_small_patch16_224", 256, 1.6, 0.8),
        ("deit_small_patch16_224", 1024, 1.9, 0.9),
        ("deit_tiny_patch16_224", 256, 1.3, None),
        ("deit_base_patch16_224", 256, 1.6, None),
    ):
        wanted += targets_of(model, size, bench(check.out, check.repeats, model, size), faster, kept)
    for size, most in ((256, 0.75), (1024, 0.6)):
        rows = bench_env(check.out, check.repeats, size)
        forwards = rows.get("prefix cached, tensors", {}).get("full_forwards", {}).get("environment")
        wanted.append(Target(f"an episode of {size} images in full forwards, prefix cached", forwards, at_most=most))
    report(check, tested, wanted)


def report(check: Check, tested: bool | None, wanted: list[Target]) -> None:
    """Prints the table and writes it, and what it is made of."""
    table = Table("", "reached", "wanted", "")
    lines = ["| | reached | wanted | |", "|---|---:|---:|---|"]
    for target in wanted:
        bound = f">= {target.at_least:g}" if target.at_least is not None else f"<= {target.at_most:g}"
        cells = [
            target.what,
            "-" if target.value is None else f"{target.value:.2f}",
            bound,
            "met" if target.met else "MISSED",
        ]
        table.add_row(*cells)
        lines.append(f"| {' | '.join(cells)} |")
    device = f"{torch.cuda.get_device_name()}, torch {torch.__version__}, bfloat16"
    words = {None: "not run", True: "passed", False: "FAILED"}[tested]
    Console().print(device, f"tests {words}", table, sep="\n")
    write_text(check.out / "report.md", "\n".join([f"{device}; tests {words}", "", *lines, ""]))
    if tested is False or not all(target.met for target in wanted):
        sys.exit(1)


if __name__ == "__main__":
    main(tyro.cli(Check, description=__doc__))
