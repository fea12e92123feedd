"""The leaderboard as a page in Markdown."""

from __future__ import annotations

from typing import Any

import numpy as np

from .tables import Table

ACCURACY_LOSS, WORST_LOSS, MACS, SAVED, HEADROOM, P = 0.003, 0.006, 0.55, 0.25, 0.8, 0.01


def benchmark_page(report: dict[str, Any]) -> str:
    """What `train.yardsticks.leaderboard.run_benchmark` found, in words and tables."""
    machine, yardsticks, full = report["machine"], report["yardsticks"], report["full"]
    agents: dict[str, Any] = report["agents"]
    lines = [
        f"`prance benchmark`, {yardsticks['env']}, {full['n_images']:.0f} images of the {report['split']} split, seeds "
        f"{', '.join(map(str, report['seeds']))}; {machine['device']}, {machine['threads']} threads of "
        f"{machine['cpus']} CPUs, torch {machine['torch']}. Figures are means over seeds, with the least and the most "
        f"in brackets; prices are of the full network's MACs, in accuracy; agents are trained or read at "
        f"{report['price']:g}.",
        "",
        "| | accuracy | loss against full, points (95 %) | MACs / full | patches left | rank correlation of MACs with "
        "difficulty | decisions | CPU s |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
        f"| full network | {full['accuracy']:.2%} | 0 | 100 % | 100 % | | | |",
    ]
    for name, a in agents.items():
        low, high = a["loss_interval"]
        rho = [r for r in a["macs_difficulty_spearman"] if r is not None]
        seconds = [s for s in a["cpu_seconds"] if s is not None]
        lines.append(
            f"| {name} | {_spread(a['accuracy'], 2)} | {100 * a['loss']:.2f} ({100 * low:.2f} .. {100 * high:.2f}) | "
            f"{_spread(a['macs_fraction'])} | {_spread(a['patches_fraction'])} | "
            f"{f'{np.mean(rho):+.2f}' if rho else ''} | {a['total_timesteps']:,} | "
            f"{f'{np.mean(seconds):.0f}' if seconds else ''} |"
        )
    measures = {"saved": "MACs saved against the static front", "saved_against_free": "networks of any sizes"}
    measures |= {"headroom_won": "headroom won", "way_to_oracle": "way to the oracle"}
    measures = {k: text for k, text in measures.items() if all(k in s for a in agents.values() for s in a["standing"])}
    lines += [
        "",
        "Against the yardsticks, each agent at its own accuracy:",
        "",
        f"| | {' | '.join(measures.values())} | regret to the oracle | gain over the confidence heuristic, points (p) "
        "| loss of score when shuffled, points |",
        f"|---|{'---:|' * (len(measures) + 3)}",
    ]
    for name, a in agents.items():
        cells = [_spread([s[key] for s in a["standing"]]) for key in measures]
        regret = np.mean([s["regret"] for s in a["standing"]])
        gain = f"{100 * a['confidence_gain']:+.2f} ({a['confidence_p']:.1g})"
        lines.append(f"| {name} | {' | '.join(cells)} | {regret:.4f} | {gain} | {100 * shuffling(a, report):.2f} |")
    lines += ["", "| yardstick | accuracy @ MACs / full, cheapest first |", "|---|---|"]
    for name, rows in report["fronts"].items():
        points = sorted({(round(r["macs_fraction"], 3), round(r["accuracy"], 4)) for r in rows})
        lines.append(f"| {name} | {', '.join(f'{accuracy:.2%} @ {macs:.1%}' for macs, accuracy in points)} |")
    lines += ["", "| wanted of | | reached | |", "|---|---|---:|---|"]
    lines += [
        f"| {name} | {what} | {reached} | {'met' if met else 'missed'} |"
        for name, a in agents.items()
        if any(rho is not None for rho in a["macs_difficulty_spearman"])
        for what, reached, met in wanted(a, report)
    ]
    return "\n".join(lines) + "\n"


def board_table(report: dict[str, Any]) -> Table:
    """The agents of a benchmark, for the terminal: means over seeds, the least and the most in brackets."""
    full, seeds = report["full"], len(report["seeds"])
    table = Table("", title=f"{report['yardsticks']['env']}, {report['split']}, {seeds} seed{'s' * (seeds > 1)}")
    for column in ("accuracy", "MACs / full", "points lost (95 %)", "MACs saved, static front"):
        table.add_column(column, justify="right")
    table.add_row("full network", f"{full['accuracy']:.2%}", "100 %", "0")
    for name, a in report["agents"].items():
        low, high = (100 * end for end in a["loss_interval"])
        lost = f"{100 * a['loss']:.2f} ({low:.2f} .. {high:.2f})"
        saved = _spread([s["saved"] for s in a["standing"]])
        table.add_row(name, _spread(a["accuracy"], 2), _spread(a["macs_fraction"]), lost, saved)
    return table


def shuffling(agent: dict[str, Any], report: dict[str, Any]) -> float:
    """Score, accuracy - price * MACs, that an agent loses when it sees other images' observations."""
    seen = np.array(agent["accuracy"]) - report["price"] * np.array(agent["macs_fraction"])
    return float((seen - [s["score"] for s in agent["shuffled"]]).mean())


def wanted(agent: dict[str, Any], report: dict[str, Any]) -> list[tuple[str, str, bool]]:
    """What an adaptive agent ought to reach: in words, what it reaches, whether that is enough."""
    saved, headroom = (_mean([s[key] for s in agent["standing"]]) for key in ("saved", "headroom_won"))
    loss, worst, macs = agent["loss"], agent["loss_interval"][1], float(np.mean(agent["macs_fraction"]))
    better = agent["confidence_gain"] > 0 and agent["confidence_p"] < P
    shuffled = shuffling(agent, report)
    return [
        (f"loss at most {100 * ACCURACY_LOSS:g} points", f"{100 * loss:.2f}", loss <= ACCURACY_LOSS),
        (f"its upper bound at most {100 * WORST_LOSS:g} points", f"{100 * worst:.2f}", worst <= WORST_LOSS),
        (f"at most {MACS:.0%} of the MACs", f"{macs:.1%}", macs <= MACS),
        (f"at least {SAVED:.0%} fewer MACs than the static front at equal accuracy", _percent(saved), saved >= SAVED),
        (f"at least {HEADROOM:.0%} of the headroom", _percent(headroom), headroom >= HEADROOM),
        (
            f"a better score than the confidence heuristic, p < {P:g}",
            f"{100 * agent['confidence_gain']:+.2f} points, p = {agent['confidence_p']:.1g}",
            better,
        ),
        ("observations matter: shuffled, it loses score", f"{100 * shuffled:.2f} points", shuffled > 0),
    ]


def _mean(values: list[float | None]) -> float:
    """NaN if any is None: a mean over some seeds would flatter."""
    return float("nan") if any(v is None for v in values) else float(np.mean([v for v in values if v is not None]))


def _percent(value: float) -> str:
    return "not defined" if np.isnan(value) else f"{value:.0%}"


def _spread(values: list[float | None], digits: int = 1) -> str:
    """Mean, least and most, in percent."""
    known = [100 * v for v in values if v is not None]
    if not known:
        return "not defined"
    missing = f", {len(values) - len(known)} not defined" if len(known) < len(values) else ""
    return f"{np.mean(known):.{digits}f} % ({min(known):.{digits}f} .. {max(known):.{digits}f}{missing})"
