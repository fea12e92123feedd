"""Figures: the front of accuracy against MACs, and what an agent does to images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from ..evaluate.evaluation import Evaluation
from .labels import Entry, label_beside
from .style import Look, fit, looks, percent, plain_axes, save_figure, short_names


def plot_pareto(metrics: dict[str, Any], path: Path) -> None:
    """Accuracy against MACs of the agents in `metrics` and of the static front.

    Args:
        metrics: As in `metrics.json`: summaries by name, and "static_front", a list of summaries.
        path: PNG file to write.
    """
    points = {f"static {i}": summary for i, summary in enumerate(metrics["static_front"])}
    shown = {name: metrics[name] for name in ("full", "agent", "random", "mean_action") if name in metrics}
    plot_fronts(points | shown, {"static": [*points]}, "test", path)


def plot_fronts(
    metrics: Mapping[str, Mapping[str, Any]],
    fronts: Mapping[str, Iterable[str]],
    split: str,
    path: Path,
    lowest: float | None = None,
) -> None:
    """Accuracy against MACs: a line for every agent with several prices, a point for every other.

    Args:
        metrics: Summaries by name; where they have intervals ("accuracy_interval", ...), these are drawn.
        fronts: The names in `metrics` that are one agent, by that agent's name.
        split: Whose accuracy it is.
        path: PNG file to write.
        lowest: Accuracy at which the picture ends; None: it shows all points.
    """
    lines = {agent: [*names] for agent, names in fronts.items()}
    alone = [name for name in metrics if not any(name in names for names in lines.values())]
    drawn = looks([*lines, *alone])
    figure, axes = plt.subplots(figsize=(7, 4.6), layout="constrained")
    entries, every = {}, []
    for agent, look in drawn.items():
        rows = sorted(
            (metrics[name] for name in lines.get(agent, [agent])), key=lambda s: (s["macs_fraction"], s["accuracy"])
        )
        points = np.array([(s["macs_fraction"], s["accuracy"]) for s in rows])
        drawn_lines = _draw_line(axes, look, rows, points)
        shown = points if lowest is None else points[points[:, 1] >= lowest]
        if len(shown):
            entries[look.label] = Entry(shown, drawn_lines, look.colour)
            every.append(shown)
    x, y = np.concatenate(every).T
    axes.set_xlim(*fit(x))
    bottom, top = fit(y)
    axes.set_ylim(bottom if lowest is None else lowest, top)
    axes.set_xlabel("MACs / MACs of the full network")
    axes.set_ylabel(f"accuracy on {split}")
    percent(axes, x=True)
    plain_axes(axes)
    if missing := label_beside(axes, entries):
        handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
        figure.legend([handles[name] for name in missing], missing, loc="outside lower center", ncols=3, frameon=False)
    save_figure(figure, path)


def _draw_line(
    axes: Axes, look: Look, rows: Sequence[Mapping[str, Any]], points: NDArray[np.float64]
) -> list[NDArray[np.float64]]:
    """One agent's points, with their intervals; the lines that it draws."""
    size = 11 if look.marker == "*" else 6
    style: dict[str, Any] = {"color": look.colour, "marker": look.marker, "markersize": size, "linewidth": 1.4}
    axes.plot(*points.T, label=look.label, **style, zorder=3 if len(points) == 1 else 2)
    lines = [points]
    for row, point in zip(rows, points, strict=True):
        for key, axis in (("macs_fraction", 0), ("accuracy", 1)):
            if interval := row.get(f"{key}_interval"):
                ends = np.tile(point, (2, 1))
                ends[:, axis] = interval
                axes.plot(*ends.T, color=look.colour, linewidth=1, alpha=0.6, zorder=1)
                lines.append(ends)
    return lines


def plot_by_difficulty(rows: dict[str, dict[str, dict[str, float]]], difficulty_name: str, path: Path) -> None:
    """MACs and accuracy per stratum.

    Args:
        rows: Agent name to `Evaluation.by_difficulty()`.
        difficulty_name: Label of the axis.
        path: PNG file to write.
    """
    figure, panels = plt.subplots(1, 2, figsize=(9.5, 3.6), layout="constrained")
    drawn = looks(rows)
    for axes, key, title in zip(panels, ("macs_fraction", "accuracy"), ("MACs / full", "accuracy"), strict=True):
        for name, strata in rows.items():
            look, at = drawn[name], [int(d) for d in strata]
            axes.plot(at, [s[key] for s in strata.values()], color=look.colour, marker=look.marker, label=look.label)
            axes.set_xlim(*fit(at, 0.03))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel(difficulty_name)
        axes.set_ylabel(title)
        percent(axes)
        plain_axes(axes)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    save_figure(figure, path)


def plot_choices(results: Mapping[str, Evaluation], names: Sequence[str], difficulty_name: str, path: Path) -> None:
    """What is chosen for whom: mean of every entry of every decision ("2: ...") for every stratum, a panel per agent.

    Args:
        results: Evaluations by name.
        names: Names of the entries of an action, as `prance_env.spaces.action_names` gives them.
        difficulty_name: Label of the axis.
        path: PNG file to write.
    """
    shape = next(iter(results.values())).actions.shape[1:]
    columns = [f"{t + 1}: {name}" for t in range(shape[0]) for name in names]
    figure, panels = plt.subplots(
        len(results), 1, figsize=(1 + 0.45 * len(columns), 1.6 + 2.6 * len(results)), squeeze=False, sharex=True
    )
    titles = short_names(results)
    for axes, (agent, result) in zip(panels[:, 0], results.items(), strict=True):
        strata = np.unique(result.difficulty)
        chosen = np.stack([result.actions[result.difficulty == d].mean(axis=0).ravel() for d in strata])
        picture = axes.imshow(chosen, vmin=0, vmax=1, aspect="auto", cmap="viridis")
        axes.set_yticks(range(len(strata)), [str(d) for d in strata])
        axes.set_ylabel(difficulty_name)
        axes.set_title(f"{titles[agent]}: mean choice, 0 the least and 1 all", fontsize=9)
        for t in range(1, shape[0]):
            axes.axvline(t * len(names) - 0.5, color="white", linewidth=2)
        figure.colorbar(picture, ax=axes)
    panels[-1, 0].set_xticks(range(len(columns)), columns, rotation=90, fontsize=8)
    save_figure(figure, path)
