"""Tables and files of results, and `prance list`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from rich.console import Console
from rich.table import Table

from prance_env.images.config import TIMM_READERS
from prance_env.images.loading import list_datasets
from prance_env.spaces import OBSERVATIONS, action_space, observation_space
from prance_env.supernets import BUNDLED, token_modes
from supernet import TOKEN_MODES, SubnetConfig, SupernetConfig, list_supernets, supernet_config
from supernet.files import write_text
from supernet.macs import remaining_macs, stem_macs, subnet_params

from ..policies.algorithms import ALGORITHMS


def results_table(title: str, rows: dict[str, dict[str, Any]]) -> Table:
    """A rich table with one line per summary; with intervals, patches after each decision, and latency where known."""
    timed = any("latency_ms" in s for s in rows.values())
    table = Table(title=title)
    for column in ("", "accuracy", "MACs / full", "params / full", "patches left", "images"):
        table.add_column(column, justify="left" if not column else "right")
    for column in ("ms / image", "ms / full") if timed else ():
        table.add_column(column, justify="right")
    for name, s in rows.items():
        patches = s.get("patches_after", [s["patches_fraction"]])
        cells = [
            f"{s['accuracy']:.2%}{_interval(s, 'accuracy', 2)}",
            f"{s['macs_fraction']:.1%}{_interval(s, 'macs_fraction', 1)}",
            f"{s['params_fraction']:.1%}",
            " ".join(f"{p:.1%}" for p in patches),
            str(s["n_images"]),
        ]
        if timed:
            cells += [f"{s['latency_ms']:.3f}", f"{s['latency_fraction']:.2f}"] if "latency_ms" in s else ["", ""]
        table.add_row(name, *cells)
    return table


def _interval(summary: dict[str, Any], key: str, digits: int) -> str:
    if f"{key}_interval" not in summary:
        return ""
    low, high = (f"{100 * v:.{digits}f}" for v in summary[f"{key}_interval"])
    return f" ({low} .. {high})"


def markdown_table(rows: dict[str, dict[str, Any]], first: str = "") -> str:
    """A Markdown table with one line per summary; `first` heads the column of their names."""
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
    table = Table(title="Environments (gym.make, gym.make_vec, make_sb3_env)")
    table.add_column("environment", no_wrap=True)
    for column in ("observation", "action", "supernet", "needs"):
        table.add_column(column)
    for spec in gym.registry.values():
        if spec.vector_entry_point == "prance_env.vector_env:PranceVectorEnv":
            given = {"supernet": "digits", "dataset": "digits", **spec.kwargs}
            config = supernet_config(given["supernet"])
            action = action_space(config.space, given.get("normalize_actions", True))
            observation = observation_space(config, given.get("observation", "cls"))
            needs = [] if given["supernet"] in BUNDLED or given.get("checkpoint") else ["checkpoint="]
            needs += [] if given["dataset"] else ["dataset="]
            table.add_row(
                spec.id,
                f"Box{observation.shape}",
                f"Box({action.low.min():g}, {action.high.max():g}, {action.shape})",
                given["supernet"],
                ", ".join(needs) or "nothing",
            )
    console.print(table)
    table = Table(title="Supernets")
    table.add_column("supernet", no_wrap=True)
    for column in ("groups", "embed_dim", "mlp_ratio", "heads", "image", "MMACs", "params"):
        table.add_column(column)
    for name in list_supernets():
        config = supernet_config(name)
        space = config.space
        tokens = np.array([config.num_tokens])
        full_macs = stem_macs(config) + remaining_macs(config, 0, tokens).item()
        table.add_row(
            name,
            "+".join(map(str, space.groups)),
            " ".join(map(str, space.embed_dims)),
            " ".join(f"{r:g}" for r in space.mlp_ratios),
            " ".join(map(str, space.num_heads)),
            f"{config.in_chans}x{config.img_size}x{config.img_size}",
            f"{full_macs / 1e6:.1f}",
            f"{subnet_params(config, SubnetConfig.full(space)).item() / 1e6:.1f} M",
        )
    console.print(table)
    algorithms = ", ".join(ALGORITHMS)
    modes = [f"{m} (two keep rates)" if TOKEN_MODES[m].num_rates == 2 else m for m in token_modes(SupernetConfig())]
    console.print(f"Observations (observation=): {', '.join(OBSERVATIONS)}")
    console.print(f"Token modes (token_mode=): {', '.join(modes)}")
    sources = [*list_datasets(), "a folder", *(f"{reader}/..." for reader in TIMM_READERS)]
    console.print(f"Data sets (dataset=): {', '.join(sources)}")
    console.print(f"Agents: full, random (prance eval); algorithms: {algorithms} (prance train agent)")
