"""`prance demo`: the whole story on the bundled task, from an untrained agent to a report."""

from __future__ import annotations

import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from tqdm import tqdm

from agents.baselines import FullAgent, RandomAgent, StaticAgent
from agents.protocol import Agent
from prance_env.settings import EnvSettings
from supernet import SubnetConfig
from supernet.arrays import evenly
from supernet.files import write_text
from supernet.staging import staged

from .evaluate.evaluation import Evaluation, evaluate
from .policies.settings import AgentTraining
from .policies.train_agent import train_agent
from .report.episodes import plot_episodes, plot_scenes
from .report.plots import plot_by_difficulty, plot_pareto
from .report.tables import markdown_table, results_table, write_json
from .runs.folder import CONFIG, changed_settings
from .search.static import evolve_static_front

ENV = "Prance-Digits-v0"
TIMESTEPS, SUBNETS, SEARCH_IMAGES = 450_000, 300, 1024
QUICK_TIMESTEPS, QUICK_SUBNETS, QUICK_SEARCH_IMAGES = 15_360, 30, 256
FRONT_POINTS = 20
SHOWN = np.array([24, 13, 10])
"""Test scenes of 3, 5 and 9 digits that are easily read."""
QUESTION = "Which digit occurs twice?"


def _remove_earlier(folder: Path, training: AgentTraining) -> None:
    """Removes the agent of an earlier demo, whole or not; nothing of anybody else's.

    Raises:
        FileExistsError: If it is not a demo's.
    """
    if not folder.exists():
        return
    for timesteps in (TIMESTEPS, QUICK_TIMESTEPS):
        one = replace(training, total_timesteps=timesteps)
        if (folder / CONFIG).is_file() and not set(changed_settings(folder, one)) - {"seed", "device"}:
            shutil.rmtree(folder)
            return
    raise FileExistsError(f"{folder} is not the agent of an earlier demo, and is not replaced; pass another --out.")


def run_demo(out: Path, seed: int = 0, quick: bool = False, device: str = "cpu") -> dict[str, Any]:
    """Trains an agent on the bundled supernet and compares it on test with static subnets.

    Training sees the train split, the search for static subnets the validation split; the test split is read once.

    Args:
        out: Folder to write.
        seed: Fixes everything.
        quick: Short forms of training and search.
        device: Torch device of the supernet.

    Returns:
        What is written to `metrics.json`.

    Raises:
        FileExistsError: If `out` holds an agent that is not an earlier demo's.
    """
    begun = time.perf_counter()
    console = Console()
    timesteps, subnets, images = (
        (QUICK_TIMESTEPS, QUICK_SUBNETS, QUICK_SEARCH_IMAGES) if quick else (TIMESTEPS, SUBNETS, SEARCH_IMAGES)
    )
    training = AgentTraining(env=ENV, total_timesteps=timesteps, seed=seed, environment={"device": device})
    console.rule("1/3  training: PPO chooses widths and patches for every image")
    _remove_earlier(out / "agent", training)
    agent = train_agent(training, out / "agent", advice="the demo begins anew")

    console.rule("2/3  the opponent: an evolutionary search for the best static subnets")
    val = EnvSettings.from_id(ENV, split="val", device=device).engine()
    with tqdm(total=subnets, desc="static subnets", unit="subnet") as bar:
        found = evolve_static_front(val, np.arange(images), subnets, seed, progress=lambda tried: bar.update(1))
    front = found.front()
    front = front[evenly(len(front), FRONT_POINTS)]

    console.rule("3/3  evaluation on test digits that nobody has seen")
    settings = EnvSettings.from_id(ENV, split="test", device=device)
    results, metrics = _evaluated(agent, found.actions[front], settings, seed)
    metrics["seed"], metrics["quick"] = seed, quick

    summaries = {name: metrics[name] for name in results}
    with staged(out) as folder:
        _draw(agent, results, metrics, settings, folder)
        metrics["seconds"] = round(time.perf_counter() - begun, 1)
        write_json(folder / "metrics.json", metrics)
        write_text(folder / "report.md", _report(metrics, summaries))

    console.print(results_table("the agent on test, by number of digits", metrics["agent"]["by_difficulty"]))
    fronts = {f"static {i + 1}": s for i, s in enumerate(metrics["static_front"])}
    console.print(results_table("test", {**summaries, **fronts}))
    console.print(f"{metrics['seconds']:.0f} s. Look at {out}/report.md, {out}/pareto.png and {out}/episodes.png")
    return metrics


def _evaluated(
    agent: Agent, static_actions: NDArray[np.float64], settings: EnvSettings, seed: int
) -> tuple[dict[str, Evaluation], dict[str, Any]]:
    """What the agent and its opponents reach, and the same as numbers, those of the static subnets included."""
    config = settings.config()
    results = {"full": evaluate(FullAgent(config), settings), "agent": evaluate(agent, settings)}
    results["random"] = evaluate(RandomAgent(config, seed=seed), settings)
    mean = SubnetConfig.from_actions(config.space, torch.from_numpy(results["agent"].mean_action()))
    results["mean_action"] = evaluate(StaticAgent(mean, config), settings)
    metrics: dict[str, Any] = {
        name: {**result.summary(), "by_difficulty": result.by_difficulty()} for name, result in results.items()
    }
    metrics["static_front"] = []
    for actions in tqdm(static_actions, desc="static front", unit="subnet"):
        subnet = SubnetConfig.from_actions(config.space, torch.from_numpy(actions[None]))
        static = evaluate(StaticAgent(subnet, config), settings)
        metrics["static_front"].append({**static.summary(), "actions": actions.round(4).tolist()})
    return results, metrics


def _draw(
    agent: Agent, results: dict[str, Evaluation], metrics: dict[str, Any], settings: EnvSettings, out: Path
) -> None:
    """The figures of the report."""
    engine = settings.engine()
    plot_pareto(metrics, out / "pareto.png")
    strata = {name: results[name].by_difficulty() for name in ("full", "agent", "mean_action")}
    plot_by_difficulty(strata, engine.dataset.difficulty_name, out / "difficulty.png")
    plot_scenes(engine, np.arange(24), out / "scenes.png")
    plot_episodes(agent, engine, settings, SHOWN[len(engine.dataset) > SHOWN], out / "episodes.png", QUESTION)


def _report(metrics: dict[str, Any], summaries: dict[str, Any]) -> str:
    fronts = {f"static {i + 1}": s for i, s in enumerate(metrics["static_front"])}
    lines = [
        "# prance demo",
        "",
        f"Seed {metrics['seed']}{', quick form' if metrics['quick'] else ''}, {metrics['seconds']} s. The agent was "
        "trained on the train split, static subnets were searched on the validation split, and all figures are "
        "from the test split. "
        "`mean_action` is the agent's average action as one static subnet for all images.",
        "",
        markdown_table(summaries),
        "",
        "![accuracy against MACs](pareto.png)",
        "",
        "## The agent by number of digits",
        "",
        markdown_table(metrics["agent"]["by_difficulty"], "digits"),
        "",
        "![by number of digits](difficulty.png)",
        "",
        f"## The task: {QUESTION[0].lower()}{QUESTION[1:]}",
        "",
        "![scenes](scenes.png)",
        "",
        "## What the agent keeps",
        "",
        "![episodes](episodes.png)",
        "",
        "## The static front",
        "",
        markdown_table(fronts),
        "",
    ]
    return "\n".join(lines)
