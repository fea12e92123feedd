"""Where an agent stands between the yardsticks: what it saves, what share of what there is to win, what it leaves."""

from __future__ import annotations

from typing import Any

import numpy as np

from supernet.arrays import Floats

from ..evaluate.intervals import RESAMPLES, draws, ends
from ..evaluate.pairs import Outcomes, regret_to_oracle
from ..report.tables import Table
from .fronts import Front, Yardsticks, macs_at

BETWEEN = {"headroom_won": "per_stratum", "way_to_oracle": "oracle"}
DEFAULT_PRICE = 0.05


def standing(
    agent: Outcomes, yardsticks: Yardsticks, price: float = DEFAULT_PRICE, seed: int = 0, resamples: int = RESAMPLES
) -> dict[str, Any]:
    """Compares an agent with all yardsticks at its own accuracy, on the same images.

    What a yardstick costs at that accuracy is read off the upper hull of its points, see `macs_at`.

    Args:
        agent: One row per image, those of the yardsticks.
        yardsticks: The fronts.
        price: Of the full network's MACs, in accuracy, for the regret; the nearest one of the oracle's is taken.
        seed: Fixes the bootstrap.
        resamples: Samples that the bootstrap draws.

    Returns:
        `macs_at_equal_accuracy` by name of the front; `saved` against the static front, as a fraction of its MACs;
        `saved_against_confidence`; `headroom_won`, the share of the MACs between the static and the per-stratum
        front; `way_to_oracle`, the same share of the way to the cross-fitted oracle; `saved_against_free`, if there are
        networks of any sizes, against the front of those. All but the first have an
        `..._interval`. They are None where there is nothing to win between two fronts, or the agent is less accurate
        than their cheapest points. `beyond_static`: whether the agent is more accurate than every static subnet.
        `macs_weight`, and what `regret_to_oracle` returns for it.

    Raises:
        ValueError: If the rows are not the same images.
    """
    if not np.array_equal(agent.index, yardsticks.index) or not np.array_equal(agent.label, yardsticks.label):
        raise ValueError(
            f"The yardsticks are for {len(yardsticks.index)} other images (split "
            f"{yardsticks.settings.get('split')!r}); evaluate on those, or run `prance yardsticks` for these."
        )
    columns = [np.stack([agent.correct, agent.macs_fraction])]
    columns += [np.concatenate([f.correct, f.macs_fraction]) for f in yardsticks.fronts.values()]
    rows = np.concatenate(columns).astype(np.float64).T
    found = _measures(rows.mean(axis=0), yardsticks.fronts)
    drawn = [_measures(means, yardsticks.fronts) for means in _resampled_means(rows, seed, resamples)]
    needed = _needed(rows.mean(axis=0), yardsticks.fronts)
    result: dict[str, Any] = {
        "macs_at_equal_accuracy": {name: None if np.isnan(macs) else macs for name, macs in needed.items()},
        "beyond_static": bool(agent.correct.mean() > yardsticks.fronts["static"].correct.mean(axis=1).max()),
    }
    for key, value in found.items():
        values = [d[key] for d in drawn]
        known = not np.isnan(value)
        result |= {key: value if known else None, f"{key}_interval": ends(np.array(values)).tolist() if known else None}
    weight, oracle = yardsticks.point("oracle", price)
    return result | {"macs_weight": weight, **regret_to_oracle(agent, oracle, weight, seed, resamples)}


def _needed(means: Floats, fronts: dict[str, Front]) -> dict[str, float]:
    """MACs of every front at the agent's accuracy, from the means of the columns of `standing`'s rows."""
    needed, at = {}, 2
    for name, front in fronts.items():
        accuracy, macs = means[at : at + 2 * len(front.price)].reshape(2, -1)
        needed[name] = macs_at(macs, accuracy, float(means[0]))
        at += 2 * len(front.price)
    return needed


def _measures(means: Floats, fronts: dict[str, Front]) -> dict[str, float]:
    """From the means of the columns of `standing`'s rows."""
    macs, needed = means[1], _needed(means, fronts)
    measures = {
        "saved": 1 - macs / needed["static"],
        "saved_against_confidence": 1 - macs / needed["confidence"],
    }
    if "free" in fronts:
        measures["saved_against_free"] = 1 - macs / needed["free"]
    for key, name in BETWEEN.items():
        room = needed["static"] - needed[name]
        measures[key] = (needed["static"] - macs) / room if room > 0 else np.nan
    return {key: float(value) for key, value in measures.items()}


def _resampled_means(rows: Floats, seed: int, resamples: int) -> Floats:
    """(resamples, C) means of columns over rows (N, C) drawn with replacement."""
    total = len(rows)
    counts = (np.stack([np.bincount(d, minlength=total) for d in part]) for part in draws(total, seed, resamples))
    return np.concatenate([count @ rows / total for count in counts])


def standings_table(standings: dict[str, dict[str, Any]]) -> Table:
    """A table with one line per agent."""
    table = Table(title="against the yardsticks, at each agent's own accuracy (95 %)")
    columns = {
        "MACs saved, static front": "saved",
        "confidence heuristic": "saved_against_confidence",
        "networks of any sizes": "saved_against_free",
        "headroom won": "headroom_won",
        "way to oracle": "way_to_oracle",
    }
    columns = {title: key for title, key in columns.items() if all(key in s for s in standings.values())}
    for column in ("", *columns, "regret"):
        table.add_column(column, justify="left" if not column else "right")
    for name, s in standings.items():
        cells = []
        for key in columns.values():
            ends = s[f"{key}_interval"]
            cells.append("-" if s[key] is None else f"{s[key]:.0%} ({ends[0]:.0%} .. {ends[1]:.0%})")
        low, high = s["regret_interval"]
        cells.append(f"{s['regret']:.4f} ({low:.4f} .. {high:.4f}) at {s['macs_weight']:g}")
        table.add_row(name, *cells)
    return table
