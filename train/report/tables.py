"""Tables and files of results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.table import Table

from supernet.files import write_text


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
