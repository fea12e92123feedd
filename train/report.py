"""Tables and files of results: `prance eval` and `prance list`."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from rich.console import Console
from rich.table import Table

from agents.sb3 import ALGORITHMS
from prance_env.lanes import EnvSettings
from supernet import Supernet, list_supernets, supernet_config
from supernet.files import write_atomically, write_text

from .agent import PRANCE_PPO, load_agent
from .evaluate import Evaluation, evaluate
from .run_folder import read_config


def results_table(title: str, rows: dict[str, dict[str, Any]]) -> Table:
    """A rich table with one line per summary."""
    table = Table(title=title)
    for column in ("", "accuracy", "MACs / full", "patches left", "images"):
        table.add_column(column, justify="left" if not column else "right")
    for name, s in rows.items():
        table.add_row(
            name,
            f"{s['accuracy']:.2%}",
            f"{s['macs_fraction']:.1%}",
            f"{s['patches_fraction']:.1%}",
            str(s["n_images"]),
        )
    return table


def markdown_table(rows: dict[str, dict[str, Any]], first: str = "") -> str:
    """The same in Markdown."""
    lines = [f"| {first} | accuracy | MACs / full | patches left | images |", "|---|---:|---:|---:|---:|"]
    lines += [
        f"| {name} | {s['accuracy']:.2%} | {s['macs_fraction']:.1%} | {s['patches_fraction']:.1%} | {s['n_images']} |"
        for name, s in rows.items()
    ]
    return "\n".join(lines)


def write_json(path: Path, data: Any) -> None:
    """Writes JSON atomically."""
    write_text(path, json.dumps(data, indent=2) + "\n")


def write_rows(path: Path, evaluation: Evaluation, difficulty_name: str) -> None:
    """Writes one CSV line per image."""
    header = ["index", "label", "prediction", "correct", difficulty_name, "macs_fraction"]
    header += [f"patches_after_{t + 1}" for t in range(evaluation.patches.shape[1])]
    columns = [evaluation.index, evaluation.label, evaluation.prediction, evaluation.correct.astype(int)]
    columns += [evaluation.difficulty, np.round(evaluation.macs_fraction, 6), *np.round(evaluation.patches.T, 6)]

    def write(name: str) -> None:
        with open(name, "w", newline="") as f:
            writer = csv.writer(f)
            writer.writerow(header)
            writer.writerows(zip(*(c.tolist() for c in columns), strict=True))

    write_atomically(path, write)


def run_eval(
    agents: list[str], env: str, split: str, checkpoint: str | None, out: Path | None, seed: int, device: str
) -> dict[str, Any]:
    """Evaluates agents side by side and prints tables.

    Returns:
        What is written to `metrics.json`: a summary per agent with its breakdown by difficulty.
    """
    console = Console()
    metrics: dict[str, Any] = {}
    for name in agents:
        observation = "cls"
        if (Path(name) / "config.yml").is_file():
            trained = read_config(Path(name))
            observation = trained["observation"]
            if checkpoint is None:
                checkpoint = trained["checkpoint"]
        settings = EnvSettings.from_id(env, split, checkpoint, observation, device)
        with console.status(f"{name} on {split} ..."):
            result = evaluate(load_agent(name, settings, seed), settings)
        metrics[name] = {**result.summary(), "by_difficulty": result.by_difficulty()}
        difficulty_name = settings.engine().dataset.difficulty_name
        console.print(results_table(f"{name}: {split} by {difficulty_name}", metrics[name]["by_difficulty"]))
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            write_rows(out / f"{Path(name).name}.csv", result, difficulty_name)
    console.print(results_table(f"{env}, {split}", metrics))
    if out is not None:
        write_json(out / "metrics.json", metrics)
        console.print(f"Written to {out}")
    return metrics


def print_registered() -> None:
    """Prints what there is to use, with spaces and sizes."""
    console = Console()
    table = Table(
        "environment", "observation", "action", "supernet", title="Environments (gym.make, gym.make_vec, make_sb3_env)"
    )
    for spec in gym.registry.values():
        if spec.id.startswith("Prance-"):
            observation, action = EnvSettings.from_id(spec.id, "train").spaces()
            low, high = float(action.low.min()), float(action.high.max())
            box = f"Box({low:g}, {high:g}, {action.shape})"
            table.add_row(spec.id, f"Box{observation.shape}", box, spec.kwargs["supernet"])
    console.print(table)
    table = Table(title="Supernets")
    table.add_column("supernet", no_wrap=True)
    for column in ("groups", "embed_dim", "mlp_ratio", "heads", "image", "MMACs", "params"):
        table.add_column(column)
    for name in list_supernets():
        config = supernet_config(name)
        net = Supernet(config)
        space = config.space
        table.add_row(
            name,
            "+".join(map(str, space.groups)),
            " ".join(map(str, space.embed_dims)),
            " ".join(f"{r:g}" for r in space.mlp_ratios),
            " ".join(map(str, space.num_heads)),
            f"{config.in_chans}x{config.img_size}x{config.img_size}",
            f"{net.macs().item() / 1e6:.1f}",
            f"{net.params().item() / 1e6:.1f} M",
        )
    console.print(table)
    algorithms = ", ".join([*ALGORITHMS, PRANCE_PPO])
    console.print(f"Agents: full, random (prance eval); algorithms: {algorithms} (prance train agent)")
