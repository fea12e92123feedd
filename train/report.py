"""Tables and files of results, and `prance list`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium as gym
from rich.console import Console
from rich.table import Table

from agents.sb3 import ALGORITHMS
from prance_env.lanes import EnvSettings
from supernet import Supernet, list_supernets, supernet_config
from supernet.files import write_text

from .agent import PRANCE_PPO


def results_table(title: str, rows: dict[str, dict[str, Any]]) -> Table:
    """A rich table with one line per summary; with 95 % intervals, and patches after each decision, where known."""
    table = Table(title=title)
    for column in ("", "accuracy", "MACs / full", "patches left", "images"):
        table.add_column(column, justify="left" if not column else "right")
    for name, s in rows.items():
        patches = s.get("patches_after", [s["patches_fraction"]])
        table.add_row(
            name,
            f"{s['accuracy']:.2%}{_interval(s, 'accuracy', 2)}",
            f"{s['macs_fraction']:.1%}{_interval(s, 'macs_fraction', 1)}",
            " ".join(f"{p:.1%}" for p in patches),
            str(s["n_images"]),
        )
    return table


def _interval(summary: dict[str, Any], key: str, digits: int) -> str:
    if f"{key}_interval" not in summary:
        return ""
    low, high = (f"{100 * v:.{digits}f}" for v in summary[f"{key}_interval"])
    return f" ({low} .. {high})"


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
