"""`prance bench-training`: algorithms side by side, what they reach after equally many decisions and how fast.

Every algorithm trains as `prance train agent` does, once per seed, one after the other in an order that is reversed
from seed to seed, so that a machine that slows down does so for all of them. What no action can change is computed
before. The return is that of the deterministic policy on images that it has not been trained on.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from rich.console import Console

from agents.protocol import Agent
from prance_env.settings import EnvSettings

from ..machine import machine, machine_in_words
from ..options import Split
from ..play import batches, mean_return
from ..policies.registry import PRANCE_PPO
from ..policies.settings import AgentTraining, AlgorithmName, TrainingTask
from ..policies.train_agent import train_agent
from ..report.tables import Table, write_json
from ..runs.folder import plain

BATCH = 512
FASTER = 1.3
SPEEDS = {"decisions_per_second": "seconds", "decisions_per_cpu_second": "cpu_seconds"}


@dataclass(frozen=True, kw_only=True)
class TrainingBenchSettings(TrainingTask):
    """What `prance bench-training` measures.

    Raises:
        ValueError: If there are fewer than two algorithms or no seed, an algorithm is unknown, or there is a range of
            prices.
    """

    algos: tuple[AlgorithmName, ...] = ("ppo", PRANCE_PPO)
    """As in prance train agent; all are compared with the first."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """One training each."""
    total_timesteps: int | None = 200_000
    """Decisions of one training."""
    split: Split = "val"
    """Images for the returns."""
    macs_weight: float | None = None
    """Price of all MACs of the full network, in accuracy: one, so that returns compare; 0.05, or the paper's with
    --reward paper, if not given."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(set(self.algos)) < 2 or len(set(self.algos)) < len(self.algos) or not self.seeds:
            raise ValueError(f"algos={self.algos} must be two or more different ones, and seeds={self.seeds} some.")
        for algo in self.algos:
            self.training(algo, 0)
        if self.cost_conditioning is not None:
            raise ValueError(f"macs_weight={self.macs_weight} must be one price, so that returns compare.")

    def training(self, algo: str, seed: int) -> AgentTraining:
        """One of the trainings."""
        return AgentTraining(**{f.name: getattr(self, f.name) for f in fields(TrainingTask)}, algo=algo, seed=seed)


def play_split(agent: Agent, settings: TrainingTask, split: str) -> dict[str, float]:
    """Mean `return`, `accuracy` and `macs_fraction` of the deterministic policy, one episode an image."""
    task = EnvSettings.from_id(settings.env, **{**settings.env_arguments, "split": split})  # type: ignore[arg-type]
    names = ("return", "accuracy", "macs_fraction")
    return dict(zip(names, mean_return(agent, task, BATCH), strict=True))


def _compute_prefixes(settings: TrainingTask) -> None:
    engine = EnvSettings.from_id(settings.env, **settings.environment).engine()
    for index in batches(len(engine.dataset), BATCH):
        engine.start(index)


def measure_training(settings: TrainingBenchSettings, folder: Path, console: Console) -> list[dict[str, Any]]:
    """One row per training: algorithm, seed, decisions, wall and CPU seconds, both speeds, and `play_split`.

    Args:
        settings: What to train.
        folder: Where the runs are written.
        console: For progress.
    """
    rows = []
    _compute_prefixes(settings)
    for turn, seed in enumerate(settings.seeds):
        for algo in settings.algos[:: -1 if turn % 2 else 1]:
            training = settings.training(algo, seed)
            with console.status(f"{algo}, seed {seed} ..."):
                wall, cpu = time.perf_counter(), time.process_time()
                run = folder / f"{algo}-{seed}"
                agent: Any = train_agent(training, run, progress_bar=False, advice="nothing of it is kept")
                wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            row = {"algo": algo, "seed": seed, "decisions": agent.num_timesteps, "seconds": wall, "cpu_seconds": cpu}
            speeds = {name: row["decisions"] / row[key] for name, key in SPEEDS.items()}
            rows.append({**row, **speeds, **play_split(agent, training, settings.split)})
    return rows


def summarise_training(rows: list[dict[str, Any]], algos: tuple[str, ...]) -> dict[str, dict[str, float]]:
    """For every algorithm: means over seeds, decisions per second (medians over seeds) and both relative to the first.

    Ratios of speed are medians of ratios between trainings with the same seed, which were neighbours in time.
    """
    out: dict[str, dict[str, float]] = {}
    for algo in algos:
        pairs = [
            (mine, first)
            for mine in rows
            for first in rows
            if mine["algo"] == algo and first["algo"] == algos[0] and mine["seed"] == first["seed"]
        ]
        means = {k: statistics.mean(mine[k] for mine, _ in pairs) for k in ("return", "accuracy", "macs_fraction")}
        gain = statistics.mean(mine["return"] - first["return"] for mine, first in pairs)
        out[algo] = {**means, "return_gain": gain}
        for name in SPEEDS:
            out[algo][name] = statistics.median(mine[name] for mine, _ in pairs)
            out[algo][f"{name}_ratio"] = statistics.median(mine[name] / first[name] for mine, first in pairs)
    return out


def run_bench_training(settings: TrainingBenchSettings, out: Path | None) -> dict[str, Any]:
    """Measures, prints a table, and writes `out` (JSON).

    Returns:
        What is written: machine, settings, rows and `summarise_training`.
    """
    console = Console()
    with tempfile.TemporaryDirectory(prefix="prance-") as folder:
        rows = measure_training(settings, Path(folder), console)
    summary = summarise_training(rows, settings.algos)
    info = machine(settings.environment.get("device", "cpu"))
    console.print(
        f"{machine_in_words(info)}; {settings.env}, {settings.total_timesteps} decisions each, macs_weight "
        f"{settings.macs_weight}, seeds {[*settings.seeds]}, returns on {settings.split}"
    )
    console.print(_table(summary))
    if PRANCE_PPO in settings.algos[1:]:
        found = summary[PRANCE_PPO]
        for met, what in (
            (found["return_gain"] >= 0, f"return of {PRANCE_PPO} not below {settings.algos[0]}'s"),
            (found["decisions_per_second_ratio"] >= FASTER, f"{FASTER} times its speed"),
        ):
            console.print(f"{'met   ' if met else 'MISSED'}  {what}")
    result = {"machine": info, "settings": plain(settings), "rows": rows, "summary": summary}
    if out is not None:
        write_json(out, result)
        console.print(f"Written to {out}")
    return result


def _table(summary: dict[str, dict[str, float]]) -> Table:
    """One line per algorithm."""
    table = Table()
    columns = ("return", "- first", "accuracy", "MACs / full", "decisions/s", "/ first", "per CPU-s", "/ first")
    table.add_column("", justify="left")
    for column in columns:
        table.add_column(column, justify="right")
    for algo, s in summary.items():
        table.add_row(
            algo,
            f"{s['return']:.4f}",
            f"{s['return_gain']:+.4f}",
            f"{s['accuracy']:.2%}",
            f"{s['macs_fraction']:.1%}",
            f"{s['decisions_per_second']:.0f}",
            f"{s['decisions_per_second_ratio']:.2f}",
            f"{s['decisions_per_cpu_second']:.0f}",
            f"{s['decisions_per_cpu_second_ratio']:.2f}",
        )
    return table
