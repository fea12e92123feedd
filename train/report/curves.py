"""Learning curves: of runs one by one, and of seeds together."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from ..runs.curves import CURVES, Curve, read_curves
from ..runs.folder import CONFIG, read_config
from .style import Look, fit, looks, percent, plain_axes, save_figure

TITLES = {
    "rollout/ep_rew_mean": "return in training",
    "rollout/accuracy": "accuracy in training",
    "rollout/macs_fraction": "MACs / full in training",
    "eval/return": "return on validation images",
    "eval/accuracy": "accuracy on validation images",
    "eval/macs_fraction": "MACs / full on validation images",
}
SHARES = ("accuracy", "macs_fraction")
UNEQUAL = ("seed", "eval_freq", "eval_images", "total_timesteps")
"""Settings in which runs of one group may differ."""


def grouped(runs: Sequence[Path]) -> dict[str, list[Path]]:
    """Runs of the same settings but the seed, by a name that says in what the groups differ.

    Args:
        runs: Run folders of `prance train agent`.
    """
    # A setting that one version notes as null is left out by another.
    configs = {run: {k: v for k, v in read_config(run).items() if k not in UNEQUAL and v is not None} for run in runs}
    groups: list[tuple[dict[str, Any], list[Path]]] = []
    for run, config in configs.items():
        same = next((members for settings, members in groups if settings == config), None)
        if same is None:
            groups.append((config, [run]))
        else:
            same.append(run)
    keys = dict.fromkeys(key for config, _ in groups for key in config)
    differing = [k for k in keys if any(config.get(k) != groups[0][0].get(k) for config, _ in groups)]
    named: dict[str, list[Path]] = {}
    for config, members in groups:
        said = [str(config.get("algo", members[0].name))]
        said += [f"{k}={config.get(k)}" for k in differing if k != "algo"]
        named[", ".join(said)] = members
    return named


def plot_runs(runs: Sequence[Path], path: Path) -> dict[str, list[Path]]:
    """Draws the curves of runs, those of the same settings but the seed as their mean, with a band to both extremes.

    Args:
        runs: Run folders of `prance train agent`.
        path: PNG file to write.

    Returns:
        What was drawn together, by name.

    Raises:
        ValueError: If nothing has been logged yet.
    """
    groups = grouped(runs)
    curves = {name: [read_curves(run) for run in members] for name, members in groups.items()}
    if not any(found for members in curves.values() for found in members):
        raise ValueError(f"{', '.join(map(str, runs))}: nothing is logged there yet.")
    # An algorithm has its own look, unless two groups have the same one.
    algorithms = [name.split(", ")[0] for name in groups]
    known = len({*algorithms}) == len(groups)
    named = looks(algorithms if known else groups)
    drawn = {}
    for (name, members), look in zip(groups.items(), named.values(), strict=True):
        label = look.label if known else name  # which is no path, though it may end in that of a setting
        label = label if len(members) == 1 else f"{label} ({len(members)} seeds)"
        drawn[label] = look, curves[name]
    _draw(drawn, path)
    return groups


def plot_learning_curves(runs: Mapping[str, Mapping[str, Curve]], path: Path) -> None:
    """One panel per scalar, one line per run, against the decisions taken.

    Args:
        runs: `read_curves` of every run, by name.
        path: PNG file to write.
    """
    named = looks(runs)
    _draw({named[run].label: (named[run], [curves]) for run, curves in runs.items()}, path)


def together(curves: Sequence[Curve]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Steps, and (runs, steps) values there; as far as all of the runs are, which may be nowhere."""
    begin, end = max(steps[0] for steps, _ in curves), min(steps[-1] for steps, _ in curves)
    steps = curves[0][0][(curves[0][0] >= begin) & (curves[0][0] <= end)]
    return steps, np.stack([np.interp(steps, *curve) for curve in curves])


def is_run(folder: Path) -> bool:
    """Whether a folder is a run of `prance train agent`; warns of one whose settings cannot be read."""
    try:
        return (folder / CONFIG).is_file() and "algo" in read_config(folder)
    except ValueError as e:
        warnings.warn(f"{folder} is left out: {e}", stacklevel=2)
        return False


def _draw(drawn: Mapping[str, tuple[Look, Sequence[Mapping[str, Curve]]]], path: Path) -> None:
    tags = [tag for tag in CURVES if any(tag in curves for _, members in drawn.values() for curves in members)]
    rows = [[tag for tag in tags if tag.startswith(kind)] for kind in ("rollout/", "eval/")]
    rows = [row for row in rows if row]
    size = (4.4 * max(map(len, rows)), 3.2 * len(rows) + 0.4)
    figure, grid = plt.subplots(
        len(rows), max(map(len, rows)), figsize=size, squeeze=False, sharex=True, layout="constrained"
    )
    for row, panels in zip(rows, grid, strict=True):
        for tag, axes in zip(row, panels, strict=False):
            _panel(axes, tag, drawn)
    for axes in grid[-1]:
        axes.set_xlabel("decisions")
    found = [zip(*axes.get_legend_handles_labels(), strict=True) for axes in grid.flat]
    handles = {label: handle for pairs in reversed(found) for handle, label in pairs}
    names = [label for label in drawn if label in handles]
    figure.legend(
        [handles[name] for name in names], names, loc="outside lower center", ncols=min(3, len(names)), frameon=False
    )
    save_figure(figure, path)


def _panel(axes: Axes, tag: str, drawn: Mapping[str, tuple[Look, Sequence[Mapping[str, Curve]]]]) -> None:
    last = []
    for label, (look, members) in drawn.items():
        curves = [found[tag] for found in members if tag in found]
        if not curves:
            continue
        shared = together(curves)
        lines = [shared] if len(shared[0]) else [together([curve]) for curve in curves]
        for number, (steps, values) in enumerate(lines):
            marker, name = look.marker if len(steps) <= 30 else None, None if number else label
            axes.plot(steps, values.mean(axis=0), color=look.colour, marker=marker, markersize=5, label=name)
            if len(values) > 1:
                low, high = values.min(axis=0), values.max(axis=0)
                axes.fill_between(steps, low, high, color=look.colour, alpha=0.18, linewidth=0)
            last.append(steps[-1])
    axes.set_title(TITLES[tag], fontsize=10)
    axes.set_xlim(0, fit([0, *last], 0.02)[1])
    axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:g}k" if value >= 1000 else f"{value:g}")
    percent(axes, y=tag.rpartition("/")[2] in SHARES)
    plain_axes(axes)
