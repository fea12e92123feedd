"""How figures look: what things are called, their colours and markers, the same in every figure; labels and axes.

Colours are those of Okabe and Ito, which people with any kind of colour vision tell apart; markers differ as well, for
prints without colours.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from supernet.files import write_atomically

BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
BLUE, VERMILLION, PURPLE, GREY = "#0072B2", "#D55E00", "#CC79A7", "#808080"
DPI = 150


class Look(NamedTuple):
    """How one thing is drawn.

    Attributes:
        label: What it is called.
        colour: Of its line and markers.
        marker: Of its points, as matplotlib names it.
    """

    label: str
    colour: str
    marker: str


KNOWN = {
    "full": Look("full network", BLACK, "s"),
    "random": Look("random choices", GREY, "X"),
    "static": Look("static subnets", GREY, "o"),
    "per_stratum": Look("best subnet of each stratum", SKY, "v"),
    "confidence": Look("confidence heuristic", ORANGE, "^"),
    "oracle": Look("oracle, knows the label", PURPLE, "D"),
    "oracle_lucky": Look("oracle, lucky guesses allowed", PURPLE, "p"),
    "agent": Look("agent", VERMILLION, "*"),
    "mean_action": Look("agent's mean action, static", ORANGE, "P"),
    "prance_ppo": Look("PrancePPO", VERMILLION, "*"),
    "every_budget": Look("PrancePPO, every budget", VERMILLION, "o"),
    "ppo": Look("SB3 PPO", BLUE, "s"),
    "a2c": Look("SB3 A2C", GREEN, "^"),
    "trpo": Look("SB3 TRPO", SKY, "v"),
    "sac": Look("SB3 SAC", ORANGE, "D"),
    "td3": Look("SB3 TD3", PURPLE, "P"),
    "tqc": Look("SB3 TQC", BLACK, "p"),
    "learned_static": Look("learned static policy", BLACK, "d"),
    "joint": Look("agent, after joint fine-tuning", BLUE, "*"),
    "plain": Look("plain fine-tuning", GREEN, "s"),
    "free": Look("networks of any sizes", GREEN, "P"),
    "deepmad": Look("DeepMAD's designs", BLUE, "P"),
    "nvit": Look("NViT's pruning", GREEN, "X"),
}
"""By the names that files and tables use."""
ALSO = {
    "full network": "full",
    "supernet, full": "full",
    "PrancePPO": "prance_ppo",
    "PrancePPO, every budget": "every_budget",
    "SB3 PPO": "ppo",
    "learned static policy": "learned_static",
    "agent, after joint": "joint",
    "plain fine-tuning": "plain",
}
"""Other names of the same things."""
FREE = [(colour, marker) for marker in "os^Dv" for colour in (VERMILLION, BLUE, GREEN, ORANGE, PURPLE, SKY, BLACK)]
"""For what has no look of its own, in this order."""


def looks(names: Iterable[str]) -> dict[str, Look]:
    """How the things with these names are drawn, each under a label of its own, that of `short_names` if unknown."""
    names = list(dict.fromkeys(names))
    found = {name: KNOWN[key] for name in names if (key := ALSO.get(name, name)) in KNOWN}
    taken = {(look.colour, look.marker) for look in found.values()}
    free = iter([pair for pair in FREE if pair not in taken] * (len(names) // len(FREE) + 2))
    short = short_names(names, {name: look.label for name, look in found.items()})
    return {name: Look(short[name], *(found[name][1:] if name in found else next(free))) for name in names}


def short_names(names: Iterable[str], known: Mapping[str, str] | None = None) -> dict[str, str]:
    """What things are called: run folders and other paths by their last part, but in full where others share it.

    Args:
        names: Their names.
        known: What some of them are called instead.
    """
    short = {name: Path(name).name or name for name in names} | dict(known or {})
    # As their own names as well: what is called in full must not be another one's last part.
    shared = Counter(called for name, last in short.items() for called in {name, last})
    return {name: last if shared[last] == 1 else name for name, last in short.items()}


def save_figure(figure: plt.Figure, path: Path) -> None:
    """Writes a figure as PNG and closes it."""
    write_atomically(path, lambda name: figure.savefig(name, format="png", dpi=DPI, bbox_inches="tight"))
    plt.close(figure)


def plain_axes(axes: Axes) -> None:
    """No frame but the two axes, and faint lines."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)


def percent(axes: Axes, x: bool = False, y: bool = True) -> None:
    """Shares as percent."""
    for wanted, axis in ((x, axes.xaxis), (y, axes.yaxis)):
        if wanted:
            axis.set_major_formatter(lambda value, _: f"{100 * value:.6g} %")


def fit(values: Iterable[float], margin: float = 0.04) -> tuple[float, float]:
    """The ends of an axis that ends where its data end, but for a margin."""
    values = list(values)
    low, high = min(values), max(values)
    room = margin * ((high - low) or abs(high) or 1.0)
    return low - room, high + room
