"""Everything that only a GPU can show: `python -m tools.gpu_check`, in less than five minutes.

First the tests that need one and those of the tiled runtime, which run on it where there is one; then `prance bench`
and `prance bench-env` at the sizes for which there are targets, and a table of what was reached. Needs PyTorch with
CUDA, timm and Triton, and the rest of this package's dependencies with pytest and hypothesis.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import timm
import torch
import tyro
from rich.console import Console

from supernet import from_timm, save_pretrained
from supernet.files import write_text
from train.report.tables import Table, write_json

TESTS = (
    *("tests/supernet/test_tiles.py", "tests/supernet/test_tiles_at_full_size.py"),
    *("tests/prance_env/test_device_engine.py", "tests/prance_env/test_output.py"),
)
# Drawn sizes are compiled anew for every example: minutes, and Triton's interpreter has shown what there is to show.
LEFT_OUT = "not any_sizes"
SMALL = "deit_small_patch16_224"
PER_IMAGE, TIMM, FULL = "per image, graph", "timm", "full, graph"
TENSORS, ENGINE, LEARNING = "prefix cached, tensors", "engine alone", "tensors + PrancePPO"
SECONDS = 290.0
PARTS = {"tests": 4, "small": 3, "env-256": 2, "env-1024": 2, "others": 2, "compiled": 1}
"""Parts in order, and how they share the time: each may take its share of what those before it have left."""
EPISODES_BEFORE = 1342
"""Episodes a second on 256 images of DeiT-S on an H100 before there were tiles (commit 160f525)."""
Rows = dict[tuple[str, int, str], dict[str, Any]]
"""Rows of `prance bench` by model, batch size and contender."""


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
    seconds: float = SECONDS
    """For everything; what is not done by then is stopped, and what it has measured so far is reported."""


class Clock:
    """Shares the time out among the parts.

    Args:
        seconds: From now on, for all of them.
    """

    def __init__(self, seconds: float) -> None:
        self._end = time.perf_counter() + seconds

    def share(self, part: str) -> float:
        """Seconds for a part that begins now, if those after it are to have theirs."""
        names = list(PARTS)
        coming = sum(PARTS[name] for name in names[names.index(part) :])
        return max(self._end - time.perf_counter(), 0) * PARTS[part] / coming


def run(name: str, seconds: float, *command: str) -> str:
    """Runs a module in a process of its own, for at most so many seconds: "done", "FAILED" or "STOPPED"."""
    begun = time.perf_counter()
    try:
        done = subprocess.run([sys.executable, "-m", *command], timeout=seconds)
        words = "done" if done.returncode == 0 else "FAILED"
    except subprocess.TimeoutExpired:
        words = "STOPPED"
    print(f"{name}: {words} after {time.perf_counter() - begun:.0f} s", flush=True)
    return words


def rows_in(path: Path) -> list[dict[str, Any]]:
    """The rows that a benchmark has written so far, all or some of them."""
    return json.loads(path.read_text())["rows"] if path.exists() else []  # type: ignore[no-any-return]


def bench(out: Path, seconds: float, repeats: int, models: list[str], sizes: list[int], compiled: bool) -> Rows:
    """Rows of `prance bench`; those before it failed or was stopped, if it was."""
    path = out / f"bench-{'-'.join(models)}{'-compiled' if compiled else ''}.json"
    path.unlink(missing_ok=True)
    command = ["bench", "--model", *models, "--batch-size", *(str(size) for size in sizes), "--repeats", str(repeats)]
    command += ["--warmup", "3", "--device", "cuda", "--dtype", "bfloat16", "--memory", "--out", str(path)]
    run(path.stem, seconds, "train", *command, "--compiled" if compiled else "--no-compiled")
    return {(row["model"], row["batch_size"], row["contender"]): row for row in rows_in(path)}


def bench_env(
    out: Path, seconds: float, repeats: int, checkpoint: Path | None, batch_size: int
) -> dict[str, dict[str, Any]]:
    """Rows of `prance bench-env` by contender; empty if it failed, or there is no checkpoint."""
    path = out / f"bench-env-{batch_size}.json"
    path.unlink(missing_ok=True)
    if checkpoint is None:
        return {}
    command = ["bench-env", "--checkpoint", str(checkpoint), "--timm", SMALL, "--num-images", str(batch_size)]
    command += ["--repeats", str(repeats), "--warmup", "3", "--device", "cuda", "--dtype", "bfloat16"]
    run(path.stem, seconds, "train", *command, "--supernet", "prance_vit_small", "--out", str(path))
    return {row["contender"]: row for row in rows_in(path)}


def write_supernet(folder: Path) -> Path | None:
    """DeiT-S with random weights as a supernet, in a folder; None, with a line about it, if that fails."""
    try:
        save_pretrained(from_timm(timm.create_model(SMALL)), folder)
    except Exception as e:  # of timm, PyTorch or the disk: the other parts are run all the same
        print(f"supernet: FAILED ({type(e).__name__}: {e})", flush=True)
        return None
    return folder


def ratio(row: dict[str, Any], other: dict[str, Any], *keys: str) -> float | None:
    """One number of a row over that of another; None if one of them was not measured."""
    for key in keys:
        row, other = row.get(key) or {}, other.get(key) or {}
    return row / other if row and other else None  # type: ignore[operator,return-value]


def targets_of(model: str, size: int, rows: Rows, faster: float, kept: float | None) -> list[Target]:
    """What is wanted of networks of one model and batch size."""
    names = (PER_IMAGE, FULL, "per image", "full")
    mine, full, mine_eager, full_eager = (rows.get((model, size, name), {}) for name in names)
    what = f"{model}, {size} images"
    wanted = [Target(f"{what} at half of the MACs, over timm", mine.get("throughput_vs_timm"), faster)]
    if kept is not None:
        speed, macs = ratio(full, mine, "ms_per_image"), ratio(mine, full, "macs_per_image")
        wanted += [
            Target(f"{what}, full width over timm", full.get("throughput_vs_timm"), 1.0),
            Target(f"{what}, kept of the saved MACs", speed * macs if speed and macs else None, kept),
            # A graph's memory is taken before it is replayed: these run without.
            Target(
                f"{what}, peak memory over the full batch's", ratio(mine_eager, full_eager, "peak_mib"), at_most=1.0
            ),
        ]
    return wanted


def episode_targets(size: int, rows: dict[str, dict[str, Any]], most: float) -> list[Target]:
    """What is wanted of episodes."""
    of = ("ms_per_episode", "environment")
    step, engine, learning, timm_row = (rows.get(name, {}) for name in (TENSORS, ENGINE, LEARNING, TIMM))
    wanted = [
        Target(f"{SMALL}, an episode of {size} images in timm forwards", ratio(step, timm_row, *of), at_most=most)
    ]
    if size == 256:
        faster = step.get("episodes_per_second", {}).get("environment")
        wanted += [
            Target("the environment's step over the engine alone", ratio(step, engine, *of), at_most=1.05),
            Target("the same with PrancePPO's learning", ratio(learning, engine, *of), at_most=1.2),
            Target("episodes/s over the build before", faster / EPISODES_BEFORE if faster else None, 12.0),
        ]
    return wanted


def main(check: Check) -> None:
    """Runs everything, writes the report, and ends with an error if a test failed or a target was missed."""
    if not torch.cuda.is_available():
        sys.exit("gpu-check needs a GPU that PyTorch can use; torch.cuda.is_available() says there is none.")
    clock = Clock(check.seconds)
    check.out.mkdir(parents=True, exist_ok=True)
    tests = ("pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow", "-k", LEFT_OUT, *TESTS)
    tested = run("tests", clock.share("tests"), *tests) if check.tests else None
    # Reported after every part, should the machine be taken away before the last.
    rows = bench(check.out, clock.share("small"), check.repeats, [SMALL], [256, 1024], compiled=False)
    wanted = targets_of(SMALL, 256, rows, 1.6, 0.8) + targets_of(SMALL, 1024, rows, 1.9, 0.9)
    report(check, tested, wanted)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = write_supernet(Path(folder) / "supernet")
        for size, most in ((256, 0.75), (1024, 0.6)):
            found = bench_env(check.out, clock.share(f"env-{size}"), check.repeats, checkpoint, size)
            wanted += episode_targets(size, found, most)
            report(check, tested, wanted)
    others = ["deit_tiny_patch16_224", "deit_base_patch16_224"]
    rows |= bench(check.out, clock.share("others"), check.repeats, others, [256], compiled=False)
    wanted += targets_of(others[0], 256, rows, 1.3, None) + targets_of(others[1], 256, rows, 1.6, None)
    report(check, tested, wanted)
    # Compiling takes a minute, and no target asks for it.
    bench(check.out, clock.share("compiled"), check.repeats, [SMALL], [256], compiled=True)
    if tested not in (None, "done") or not all(target.met for target in wanted):
        sys.exit(1)


def report(check: Check, tested: str | None, wanted: list[Target]) -> None:
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
    words = "not run" if tested is None else {"done": "passed"}.get(tested, tested)
    Console().print(device, f"tests {words}", table, sep="\n")
    figures = {"device": device, "tests": words, "targets": [asdict(t) | {"met": t.met} for t in wanted]}
    write_json(check.out / "report.json", figures)
    write_text(check.out / "report.md", "\n".join([f"{device}; tests {words}", "", *lines, ""]))


if __name__ == "__main__":
    main(tyro.cli(Check, description=__doc__))
