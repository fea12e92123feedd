"""The case study's results as a page in Markdown."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from .judging import AGENT, FULL, HALF, STATIC

FULL_LOSS, HALF_LOSS, SMALLEST_LOSS, AGENT_LOSS = 0.005, 0.02, 0.08, 0.003
MOST_MACS, LEAST_SAVED, LEAST_TIME_SAVED = 0.55, 0.2, 0.1
VERDICT = {True: "holds", False: "**does not hold**"}
Seed = Mapping[str, Any]


def casestudy_page(report: Mapping[str, Any]) -> str:
    """What `run_casestudy` found, in tables; figures are means over seeds.

    Args:
        report: What `casestudy.json` holds.
    """
    seeds, sizes, machine = report["seeds"], report["sizes"], report["machine"]
    steps = " + ".join(str(sizes[f"{name}_steps"]) for name in ("plain", "supernet", "joint"))
    images = ", ".join(f"{count:,} {split}" for split, count in sizes["images"].items())
    settings = report["settings"]
    lines = [
        f"`prance casestudy fashion --effort {settings['effort']} --pixels {settings['pixels']}`, seeds "
        f"{', '.join(str(s['seed']) for s in seeds)}: images {images}; {steps} steps (plain + supernet + joint) of "
        f"{sizes['batch_size']} images; {machine['device']}, {machine['threads']} threads of {machine['cpus']} CPUs, "
        f"torch {machine['torch']}.",
        "",
        "| test images | accuracy | MACs / full | CPU ms an image |",
        "|---|---:|---:|---:|",
        *_rows(seeds),
        "",
        "| wanted | reached | |",
        "|---|---|---|",
        *(
            f"| {what} | {reached} | {'holds' if holds else '**does not hold**'} |"
            for what, reached, holds in wanted(seeds)
        ),
        "",
        "Accuracy on validation images before any training of subnets, all patches kept, by order of the units:",
        "",
        *_prefix_table(seeds),
        "",
        "Accuracy on validation images in training (averaged weights):",
        "",
        *_curves(seeds[0]),
        "",
        "![accuracy against MACs](pareto.png)",
    ]
    return "\n".join(lines) + "\n"


def _rows(seeds: list[Seed]) -> list[str]:
    accuracy: Callable[[str], float] = lambda name: _mean(s["accuracy"][name] for s in seeds)  # noqa: E731
    times = {name: _mean(s["milliseconds"].get(name) for s in seeds) for name in (FULL, STATIC, AGENT)}
    rows: list[tuple[str, float, float, float]] = [
        ("linear head on the pretrained network", accuracy("head"), 1, np.nan),
        ("plain fine-tuning", accuracy("plain"), 1, np.nan),
        ("plain fine-tuning for as long as the supernet", accuracy("plain-longer"), 1, np.nan),
        ("supernet: full network", accuracy("supernet"), 1, times[FULL]),
        (f"best static subnet at {HALF:.0%} of the MACs", *_pair(s["half"] for s in seeds), np.nan),
        ("smallest subnet", *_pair(s["smallest"] for s in seeds), np.nan),
        ("**PrancePPO**", *_pair(s["agent"] for s in seeds), times[AGENT]),
        ("cheapest static subnet that is as accurate", *_pair(s["equal_static"] for s in seeds), times[STATIC]),
        ("after joint fine-tuning: full network", accuracy("joint"), 1, np.nan),
        ("after joint fine-tuning: PrancePPO", *_pair(s["joint"]["after"]["policy"] for s in seeds), np.nan),
    ]
    return [
        f"| {name} | {_percent(a)} | {_percent(macs, 1)} | {'' if np.isnan(ms) else f'{ms:.2f}'} |"
        for name, a, macs, ms in rows
    ]


def wanted(seeds: list[Seed]) -> list[tuple[str, str, bool]]:
    """What the method ought to reach: in words, what it reaches, and whether that is enough; means over seeds."""
    full, plain = (_mean(s["accuracy"][name] for s in seeds) for name in ("supernet", "plain-longer"))
    half, _ = _pair(s["half"] for s in seeds)
    smallest, _ = _pair(s["smallest"] for s in seeds)
    agent, macs = _pair(s["agent"] for s in seeds)
    before, macs_before = _pair(s["joint"]["before"]["policy"] for s in seeds)
    after, macs_after = _pair(s["joint"]["after"]["policy"] for s in seeds)
    saved = _mean(s["saved"] for s in seeds)
    faster = _mean(
        1 - s["milliseconds"][AGENT] / s["milliseconds"][STATIC] if s["equal_static"] else None for s in seeds
    )
    rows = [
        ("full network at least plain fine-tuning - 0.5 points", full - plain, -FULL_LOSS),
        (f"best static subnet at {HALF:.0%} of the MACs at least full - 2 points", half - full, -HALF_LOSS),
        ("smallest subnet at least full - 8 points", smallest - full, -SMALLEST_LOSS),
        ("agent at least full - 0.3 points", agent - full, -AGENT_LOSS),
    ]
    found = [(what, f"{100 * value:+.2f} points", bool(value >= least)) for what, value, least in rows]
    found.append((f"agent at most {MOST_MACS:.0%} of the MACs", _percent(macs, 1), bool(macs <= MOST_MACS)))
    for what, value, least in (("MACs", saved, LEAST_SAVED), ("milliseconds", faster, LEAST_TIME_SAVED)):
        text = f"agent at least {least:.0%} fewer {what} than static subnets at equal accuracy"
        found.append((text, "not defined" if np.isnan(value) else f"{value:+.0%}", bool(value >= least)))
    gained = f"{100 * (after - before):+.2f} points at {_percent(macs_before, 1)}, then {_percent(macs_after, 1)}"
    found.append(
        ("joint fine-tuning gains at no more MACs", gained, bool(after > before and macs_after <= macs_before + 0.005))
    )
    prefixes = {order: _prefixes(seeds, order) for order in ("own", "random", "taylor")}
    behind = [
        name for name, value in prefixes["taylor"].items() if value < max(prefixes[o][name] for o in ("own", "random"))
    ]
    found.append(("order: taylor at least own and random at every size", ", ".join(behind) or "all", not behind))
    return found


def _prefixes(seeds: list[Seed], order: str) -> dict[str, float]:
    return {name: _mean(s["prefixes"][order][name] for s in seeds) for name in seeds[0]["prefixes"][order]}


def _prefix_table(seeds: list[Seed]) -> list[str]:
    orders = {order: _prefixes(seeds, order) for order in ("own", "random", "taylor")}
    names = list(orders["own"])
    rows = [
        f"| {order} | {' | '.join(_percent(found[name], 1) for name in names)} |" for order, found in orders.items()
    ]
    return [f"| | {' | '.join(names)} |", f"|---|{'---:|' * len(names)}", *rows]


def _curves(seed: Seed) -> list[str]:
    names = ("full", "narrowest", "min", "random")
    rows = [
        f"| {run} | {row['step']} | {' | '.join(_percent(row[f'val_accuracy_{name}'], 1) for name in names)} |"
        for run, found in seed["curves"].items()
        for row in found
    ]
    return [
        "| | step | full | narrowest, all patches | smallest | random subnets |",
        f"|---|{'---:|' * 5}",
        *rows,
    ]


def _pair(rows: Any) -> tuple[float, float]:
    """Means of accuracy and MACs; NaN if any row is None."""
    found = [*rows]
    if any(row is None for row in found):
        return np.nan, np.nan
    return _mean(r["accuracy"] for r in found), _mean(r["macs_fraction"] for r in found)


def _mean(values: Any) -> float:
    """NaN if any is None: a mean over some seeds would flatter."""
    found = [*values]
    return np.nan if any(v is None for v in found) else float(np.mean(found))


def _percent(value: float, digits: int = 2) -> str:
    return "none" if np.isnan(value) else f"{100 * value:.{digits}f} %"
