"""`prance benchmark`: the leaderboard, from training to the page, with one command.

What `out` holds already is not made again: a benchmark that was interrupted goes on, and one more seed costs one more
seed. All choices are made on training and validation images; test images are only looked at in the end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from agents.baselines import FullAgent
from supernet.files import write_text
from supernet.staging import finish_commit, staged

from ..evaluate.budget import at_price
from ..evaluate.evaluation import Evaluation, evaluate
from ..evaluate.intervals import RESAMPLES, difficulty_correlation, ends
from ..evaluate.pairs import gain_p
from ..machine import machine
from ..policies.load_agent import load_agent
from ..policies.settings import AgentTraining
from ..policies.train_agent import train_agent
from ..report.leaderboard_page import benchmark_page, board_table
from ..report.plots import plot_fronts
from ..report.tables import write_json
from ..runs.folder import CONFIG, check_noted, check_settings
from ..runs.lock import only_writer
from ..runs.progress import read_progress
from ..runs.trained import env_of_run
from ..search.memory import forget
from ..search.static import check_static
from .compute import YardstickSettings, run_yardsticks
from .fronts import FILE, Yardsticks
from .standing import standing

# Of the full network's MACs, in accuracy: low enough for agents that lose nothing.
PRICE = 0.03
PRICES = (0.01, 0.3)
SHOWN_LOSS = 0.06  # accuracy below the full network's down to which the figure reaches
FRONT = (0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.3)
STATIC, ADAPTIVE, EVERY_BUDGET = "learned static policy", "PrancePPO", "PrancePPO, every budget"


@dataclass(frozen=True)
class BenchmarkSettings:
    """What `prance benchmark` does.

    Attributes:
        entries: Trainings by name in the table; each is repeated for every seed.
        yardsticks: What agents are measured by; the static policies among the entries join their static front.
        seeds: One training of every entry each.
        resamples: Samples that the bootstrap draws.
        price: Of the full network's MACs, in accuracy, at which agents are judged; one of `FRONT`, if there are agents
            for every budget.

    Raises:
        ValueError: If there are no seeds, or one twice.
    """

    entries: Mapping[str, AgentTraining]
    yardsticks: YardstickSettings
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    resamples: int = RESAMPLES
    price: float = PRICE

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds={self.seeds} must name at least one, and none twice.")

    @classmethod
    def digits(
        cls,
        seeds: tuple[int, ...] = (0, 1, 2, 3, 4),
        total_timesteps: int = 200_000,
        yardsticks: YardstickSettings | None = None,
    ) -> BenchmarkSettings:
        """The leaderboard on Digits, or on another environment: that of the yardsticks."""
        yardsticks = yardsticks or YardstickSettings()
        ours = AgentTraining(
            env=yardsticks.env,
            algo="prance_ppo",
            macs_weight=PRICE,
            total_timesteps=total_timesteps,
            environment=yardsticks.environment,
        )
        entries = {
            ADAPTIVE: ours,
            "SB3 PPO": replace(ours, algo="ppo"),
            EVERY_BUDGET: replace(ours, macs_weight=PRICES),
            STATIC: replace(ours, observation="constant"),
        }
        return cls(entries, yardsticks, seeds)


def run_benchmark(settings: BenchmarkSettings, out: Path) -> dict[str, Any]:
    """Trains what is missing, evaluates everything on the same images, and writes the leaderboard.

    Args:
        settings: What to do.
        out: Folder for a run per entry and seed, `yardsticks`, `benchmark.json`, `benchmark.md` and `pareto.png`.

    Returns:
        What is written to `benchmark.json`.

    Raises:
        ValueError: If a run in `out`, or its yardsticks, were made with other settings, or keep rates are thresholds.
        FileExistsError: If another process writes to `out`.
    """
    console = Console()
    check_static(settings.yardsticks.settings(settings.yardsticks.split).config())
    runs = {name: [run_folder(out, name, seed) for seed in settings.seeds] for name in settings.entries}
    with only_writer(out):
        for name, training in settings.entries.items():
            for seed, run in zip(settings.seeds, runs[name], strict=True):
                _train(replace(training, seed=seed), run, console)
        folder = out / "yardsticks"
        finish_commit(folder)
        blind = [name for name, training in settings.entries.items() if training.observation == "constant"]
        wanted = replace(settings.yardsticks, also_static=tuple(str(run) for name in blind for run in runs[name]))
        if (folder / FILE).is_file():
            noted = Yardsticks.load(folder).settings  # more seeds are more static policies than there were
            check_noted(noted, wanted, f"{folder} holds yardsticks", f"Remove {folder}", may_change=["also_static"])
            forget(folder)
        else:
            run_yardsticks(wanted, folder)
        report = _judged(settings, runs, Yardsticks.load(folder), console)
        page = benchmark_page(report)
        with staged(out) as stage:
            write_json(stage / "benchmark.json", report)
            write_text(stage / "benchmark.md", page)
            _draw(report, stage / "pareto.png")
    console.print(board_table(report))
    console.print(f"Written to {out}: benchmark.md, benchmark.json, pareto.png")
    return report


def _judged(
    settings: BenchmarkSettings, runs: Mapping[str, list[Path]], yardsticks: Yardsticks, console: Console
) -> dict[str, Any]:
    """What all agents reach on the same images."""
    judged_on = settings.yardsticks.settings(settings.yardsticks.split)
    yardsticks.check(judged_on.engine())
    full = evaluate(FullAgent(judged_on.config(), judged_on.observation, judged_on.normalize_actions), judged_on)
    board, points = {}, {}
    for name, training in settings.entries.items():
        with console.status(f"{name} on {settings.yardsticks.split} ..."):
            played = [_play(run, settings.yardsticks.split, settings.price) for run in runs[name]]
        seen = [found[settings.price] if settings.price in found else found[None] for found, _ in played]
        board[name] = {
            **standing_of(seen, full, yardsticks, settings.resamples, settings.price),
            "shuffled": [_score(shuffled, settings.price) for _, shuffled in played],
            "cpu_seconds": [read_progress(run).get("cpu_seconds") for run in runs[name]],
            "total_timesteps": training.timesteps,
        }
        for price in played[0][0]:
            label = name if price is None else f"{name} ({price:g})"
            points[label] = _mean([evaluations[price].summary() for evaluations, _ in played])
    return {
        "machine": machine(judged_on.device),
        "split": settings.yardsticks.split,
        "price": settings.price,
        "seeds": list(settings.seeds),
        "full": full.summary(),
        "agents": board,
        "points": points,
        "fronts": {name: front.rows() for name, front in yardsticks.fronts.items()},
        "yardsticks": yardsticks.settings,
    }


def _draw(report: Mapping[str, Any], path: Path) -> None:
    """Accuracy against MACs of every agent, price and yardstick of a report."""
    points, full = report["points"], report["full"]
    lines = {name: [label for label in points if label.startswith(f"{name} (")] for name in report["agents"]}
    drawn = {**points, "full network": full}
    for name, rows in report["fronts"].items():
        drawn |= {f"{name} {i}": row for i, row in enumerate(rows)}
        lines[name] = [f"{name} {i}" for i in range(len(rows))]
    shown = {name: labels for name, labels in lines.items() if labels}
    plot_fronts(drawn, shown, report["split"], path, full["accuracy"] - SHOWN_LOSS)


def standing_of(
    seen: list[Evaluation],
    full: Evaluation,
    yardsticks: Yardsticks,
    resamples: int = RESAMPLES,
    price: float = PRICE,
) -> dict[str, Any]:
    """What several trainings of one agent reach.

    Args:
        seen: One evaluation per seed, on the same images.
        full: Evaluation of the full network.
        yardsticks: For these images.
        resamples: Samples that the bootstrap draws.
        price: Of the full network's MACs, in accuracy.

    Returns:
        Per seed `accuracy`, `macs_fraction`, `patches_fraction`, `macs_difficulty_spearman` and, under "standing",
        what `train.yardsticks.standing.standing` says; `loss` against the full network (mean over seeds) with
        `loss_interval`, for which images and seeds are resampled; `confidence_gain`, by how much accuracy - price *
        MACs exceeds that of the confidence heuristic tuned at the nearest price, and `confidence_p`, by chance (see
        `train.evaluate.pairs.gain_p`; over images, of means over seeds).
    """
    correct = np.stack([e.correct for e in seen]).astype(np.float64)
    loss = full.correct - correct
    nearest, confidence = yardsticks.point("confidence", price)
    score = (correct - nearest * np.stack([e.macs_fraction for e in seen])).mean(axis=0)
    gain = score - (confidence.correct - nearest * confidence.macs_fraction)
    return {
        "accuracy": [float(e.correct.mean()) for e in seen],
        "macs_fraction": [float(e.macs_fraction.mean()) for e in seen],
        "patches_fraction": [e.summary()["patches_fraction"] for e in seen],
        "macs_difficulty_spearman": [difficulty_correlation(e) for e in seen],
        "standing": [standing(e, yardsticks, price, resamples=resamples) for e in seen],
        "loss": float(loss.mean()),
        "loss_interval": seeds_and_images_interval(loss, resamples=resamples).tolist(),
        "confidence_price": nearest,
        "confidence_gain": float(gain.mean()),
        "confidence_p": gain_p(gain),
    }


def seeds_and_images_interval(
    values: NDArray[np.float64], seed: int = 0, resamples: int = RESAMPLES
) -> NDArray[np.float64]:
    """95 % interval of the mean of (S, N) values, bootstrapped over both seeds and images."""
    rng, (seeds, images) = np.random.default_rng(seed), values.shape
    means = []
    for _ in range(resamples):
        drawn = values[rng.integers(seeds, size=seeds)].mean(axis=0)
        means.append(drawn[rng.integers(images, size=images)].mean())
    return ends(np.array(means))


def _train(training: AgentTraining, run: Path, console: Console) -> None:
    if (run / f"model{training.algorithm.suffix}").exists():
        check_settings(run, training, "Choose another --out")
        return
    console.print(f"Training {run.name}")
    train_agent(training, run, resume=(run / CONFIG).exists())


def _play(run: Path, split: str, price: float) -> tuple[dict[float | None, Evaluation], Evaluation]:
    """By price (None if there was one only), and with other images' observations."""
    env = env_of_run(run, split)
    agent = load_agent(str(run), env)
    if env.cost_conditioning is None:
        return {None: evaluate(agent, env)}, evaluate(agent, env, shuffle_observations=True)
    played: dict[float | None, Evaluation] = {p: evaluate(agent, at_price(env, p)) for p in FRONT}
    return played, evaluate(agent, at_price(env, price), shuffle_observations=True)


def _score(e: Evaluation, price: float) -> dict[str, float]:
    accuracy, macs = float(e.correct.mean()), float(e.macs_fraction.mean())
    return {"accuracy": accuracy, "macs_fraction": macs, "score": accuracy - price * macs}


def _mean(rows: list[dict[str, float]]) -> dict[str, Any]:
    """Means over seeds, and from the least to the most where there are several."""
    means: dict[str, Any] = {key: float(np.mean([r[key] for r in rows])) for key in rows[0]}
    by_seed = {key: [r[key] for r in rows] for key in ("accuracy", "macs_fraction")}
    spread = {f"{key}_interval": [min(values), max(values)] for key, values in by_seed.items()}
    return means | (spread if len(rows) > 1 else {})


def run_folder(out: Path, name: str, seed: int) -> Path:
    """Where the training of an entry is."""
    return out / f"{_slug(name)}-{seed}"


def _slug(name: str) -> str:
    return name.lower().replace(",", "").replace(" ", "-")
