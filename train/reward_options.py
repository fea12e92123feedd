"""Rewards on the command line: by name, with changes, and as run folders note them."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from typing_extensions import TypedDict
from tyro.conf import arg

from prance_env.rewards.config import ACCURACIES, COSTS, MODES, PRESETS
from prance_env.rewards.outcome import REWARDS

from .options import choice

MACS_WEIGHT = 0.05
"""Price of agents for which none is given."""
POTENTIAL = "potential"
"""Name of the reward that agents are trained with unless something else is said."""
SHAPED = {"mode": "potential", "accuracy": "mixed"}
"""It is dense, and has the same best policy as the terminal reward."""


class RewardTerms(TypedDict, total=False):
    """Fields of `RewardConfig` that a command line can change."""

    mode: str
    accuracy: str
    macs_weight: float
    token_weight: float
    cost: str
    function: str


_HELP: dict[str, tuple[Any, str]] = {
    "mode": (Literal[MODES], "When decisions are paid (docs/environment.md)."),
    "accuracy": (Literal[ACCURACIES], "What being right is worth."),
    "macs_weight": (float, "Price of the full network's MACs, or of its milliseconds."),
    "token_weight": (float, "Price of keeping every patch."),
    "cost": (Literal[COSTS], "What is paid for; latency if there is a --latency-table."),
    "function": (str, "A function of yours as package.module:name, instead of the formula."),
}


def _terms(without: tuple[str, ...]) -> Any:
    """Marks a field as the options `--reward.mode`, `--reward.accuracy`, ..."""

    def options() -> type:
        found = {
            name: Annotated[
                kind, arg(name=f"reward.{name.replace('_', '-')}", help=text, help_behavior_hint="(as --reward says)")
            ]
            for name, (kind, text) in _HELP.items()
            if name not in without
        }
        return TypedDict("RewardOptions", found, total=False)  # type: ignore[operator]

    return arg(constructor_factory=options)


RewardName = Annotated[str, choice(lambda: [POTENTIAL, *PRESETS, *REWARDS.names()])]
TrainingTerms = Annotated[RewardTerms, _terms(("macs_weight",))]
"""`--reward.mode`, ... beside an option --macs-weight for the price."""
AllTerms = Annotated[RewardTerms, _terms(())]
"""`--reward.mode`, ..., --reward.macs-weight included."""


def reward_arguments(
    name: str | None,
    macs_weight: float | None = None,
    latency_table: str | None = None,
    changes: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The environment's argument `reward`.

    Args:
        name: "potential", "paper", or a name given to `register_reward`; None is "potential".
        macs_weight: Price of the full network; None: as the named reward says, or as the episode's own price.
        latency_table: File that `prance profile` wrote: milliseconds are paid instead of MACs.
        changes: Fields of `RewardConfig`, which win.
    """
    found: dict[str, Any] = {"preset": name} if name in PRESETS else {**SHAPED}
    if name not in (None, POTENTIAL, *PRESETS):
        found["function"] = name
    if macs_weight is not None:
        found["macs_weight"] = macs_weight
    if latency_table is not None:
        found |= {"latency_table": latency_table, "cost": "latency"}
    return {**found, **(changes or {})}


def noted_reward(noted: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The reward that a run folder of `prance train agent` notes.

    Args:
        noted: Its settings.
        source: The folder, for the message.

    Raises:
        ValueError: If it is a function of a module that nobody has imported: a folder is not to have anything run.
    """
    price = noted.get("macs_weight")
    price = price if isinstance(price, int | float) else None
    reward = reward_arguments(noted.get("reward"), price, noted.get("latency_table"), noted.get("reward_terms"))
    module, colon, _ = str(reward.get("function", "")).partition(":")
    if colon and module not in sys.modules:
        raise ValueError(
            f"{source} was trained with the reward {reward['function']!r}, whose module is imported only if you say "
            f"so: --import {module}"
        )
    return reward
