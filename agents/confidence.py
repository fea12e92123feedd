"""A heuristic that looks: how much to compute is read off the classifier's confidence, by thresholds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from supernet import SupernetConfig

from .baselines import BaselineAgent

SIGNALS = ("max_prob", "entropy")


@dataclass(frozen=True)
class ConfidenceRule:
    """What to do at one decision.

    Attributes:
        signal: The entry of the observation that is compared, one of `SIGNALS`.
        thresholds: Ascending; a signal that reaches k of them has level k.
        actions: In [0, 1], A numbers for each level, one level more than thresholds.

    Raises:
        ValueError: If one of them is not as described.
    """

    signal: str
    thresholds: tuple[float, ...]
    actions: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        if self.signal not in SIGNALS:
            raise ValueError(f"signal={self.signal!r} is unknown; choose one of {SIGNALS}.")
        if len(self.actions) != len(self.thresholds) + 1:
            raise ValueError(
                f"{len(self.thresholds)} thresholds make {len(self.thresholds) + 1} levels, but there are "
                f"{len(self.actions)} actions; give one for each level."
            )
        if not (np.diff(self.thresholds) > 0).all() or not np.isfinite(self.thresholds).all():
            raise ValueError(f"thresholds={self.thresholds} must ascend and be finite.")

    def level(self, signal: NDArray[np.floating]) -> NDArray[np.int64]:
        """(B,) how many thresholds signals (B,) reach."""
        return np.searchsorted(self.thresholds, signal, side="right")


class ConfidenceAgent(BaselineAgent):
    """At every decision one of a few preset actions, by how sure the classifier already is of the class token.

    Args:
        rules: One for each decision.
        config: Configuration of the supernet.
        observation: Observation of the environment; "cls" holds the confidence.
        normalize_actions: Whether the environment's action space is Box(-1, 1).

    Raises:
        ValueError: If the rules do not fit the decisions or their actions the supernet, or the observation does not
            hold the confidence.
    """

    reads = ("decision", *SIGNALS)

    def __init__(
        self,
        rules: Sequence[ConfidenceRule],
        config: SupernetConfig,
        observation: str = "cls",
        normalize_actions: bool = True,
    ) -> None:
        super().__init__(config, observation, normalize_actions)
        space = config.space
        if len(rules) != space.num_decisions:
            raise ValueError(f"There are {len(rules)} rules for {space.num_decisions} decisions; give one each.")
        self.rules = tuple(rules)
        self._actions = [np.array(rule.actions, dtype=np.float64) for rule in rules]
        for actions in self._actions:
            if (
                actions.ndim != 2
                or actions.shape[1] != space.action_size
                or not ((actions >= 0) & (actions <= 1)).all()
            ):
                raise ValueError(f"actions={actions.tolist()} must be {space.action_size} numbers in [0, 1] per level.")

    def act(self, observation: NDArray[np.float32]) -> NDArray[np.float64]:
        decision = self.decision(observation)
        actions = np.empty((len(observation), self.config.space.action_size))
        for t, rule in enumerate(self.rules):
            rows = decision == t
            actions[rows] = self._actions[t][rule.level(observation[rows, self.layout[rule.signal].start])]
        return actions

    def _extra(self) -> dict[str, Any]:
        return {"rules": [asdict(rule) for rule in self.rules]}

    @classmethod
    def _restore(
        cls, data: dict[str, Any], config: SupernetConfig, observation: str, normalized: bool
    ) -> ConfidenceAgent:
        rules = [
            ConfidenceRule(r["signal"], tuple(r["thresholds"]), tuple(tuple(a) for a in r["actions"]))
            for r in data["rules"]
        ]
        return cls(rules, config, observation, normalized)
