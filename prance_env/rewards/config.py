"""Result-to-Go rewards: accuracy minus what it costs.

R_t is the value of the inference if it were finished at full size after decision t:

    R_t = accuracy_t - macs_weight * cost_t / cost_full - token_weight * keep_t

PRANCE (arXiv 2407.05010) rewards every decision with its R_t. The cost is MACs, or milliseconds by a latency table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from supernet import SupernetConfig, supernet_config
from supernet.arrays import Bools, Floats, Ints, namespace
from supernet.macs import remaining_macs, stem_macs
from supernet.reading import check_fields, make_plain

from .latency import LatencyTable, load_latency_table
from .outcome import load_reward_function

MODES = ("result_to_go", "terminal", "potential")
ACCURACIES = ("agreement", "top1", "prob", "mixed")
COSTS = ("macs", "latency")
PRESETS = ("paper",)
# PRANCE's reward pays 0.008 for every 1e8 MACs and 0.1 for keeping every patch at a decision.
PAPER_PRICE, PAPER_MACS, PAPER_TOKEN_WEIGHT = 0.008, 1e8, 0.1


@dataclass(frozen=True)
class RewardConfig:
    """What a decision is worth.

    Attributes:
        mode: "result_to_go": every decision earns R_t, where keep_t is the keep rate it chose (the paper's reward).
            "terminal": only the last one earns R_T, where keep_T is the mean of all keep rates. "potential": every
            decision earns R_t - R_(t-1) with R_0 = 0 and keep_t the mean over all decisions, later ones counting 1: the
            sum over an episode is the terminal reward, so the best policy is the same. The terms in the
            info are those of R_t; with "terminal", 0 before the last decision.
        accuracy: "agreement": 1 unless the full network is right and this one is not. "top1": 1 if right. "prob":
            probability of the label. "mixed": half agreement, half min(1, 1 + p(label) - p_full(label)).
        macs_weight: Price of the full network: of all its MACs or, with cost="latency", of all its milliseconds.
        token_weight: Price of keeping every patch; where a decision has two rates, of both together.
        cost: "macs" or "latency".
        latency_table: File that `prance profile` wrote, needed by cost="latency". With either cost it adds `latency_ms`
            to the info. Read when this object is made.
        function: "package.module:name" of a function of yours that takes an `Outcome` and returns R_t, (B,) finite
            numbers; `mode` applies to it as to the formula above, and the terms in the info stay those of the formula.

    Raises:
        ValueError: If a value is unknown or out of range, or the function or the table does not load.
        FileNotFoundError: If there is no such table.
    """

    mode: str = "result_to_go"
    accuracy: str = "agreement"
    macs_weight: float = 0.2
    token_weight: float = 0.0
    cost: str = "macs"
    latency_table: str | None = None
    function: str | None = None

    def __post_init__(self) -> None:
        make_plain(self)
        check_fields(self, "reward ")
        for name, allowed in (("mode", MODES), ("accuracy", ACCURACIES), ("cost", COSTS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"reward {name}={getattr(self, name)!r} is unknown; choose one of {allowed}.")
        for name in ("macs_weight", "token_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"reward {name}={getattr(self, name)!r} must be a finite number >= 0.")
        if self.table is None and self.cost == "latency":
            raise ValueError("reward cost='latency' needs latency_table='FILE', which `prance profile` writes.")
        if self.function is not None:
            load_reward_function(self.function)

    @cached_property
    def table(self) -> LatencyTable | None:
        """What the file `latency_table` holds, None if there is none."""
        return None if self.latency_table is None else load_latency_table(self.latency_table)

    @classmethod
    def from_dict(
        cls, data: Mapping[str, Any] | RewardConfig | None, supernet: SupernetConfig | None = None
    ) -> RewardConfig:
        """From keyword arguments as plain data; None gives the defaults.

        Args:
            data: Fields of this class; {"preset": "paper"} starts from the paper's constants instead of the defaults.
            supernet: What the preset is computed for.

        Raises:
            ValueError: If a key is unknown or a value is out of range.
            FileNotFoundError: If there is no such latency table.
        """
        if isinstance(data, RewardConfig):
            return data
        data = {} if data is None else data
        known = [f.name for f in fields(cls)]
        if not isinstance(data, Mapping) or (set(data) - {*known, "preset"}):
            raise ValueError(f"reward={data!r} must be a dict with keys among {[*known, 'preset']}.")
        changes = dict(data)
        preset = changes.pop("preset", None)
        if preset is None:
            return cls(**changes)
        if preset not in PRESETS or supernet is None:
            raise ValueError(f"reward preset={preset!r} is unknown or lacks a supernet; choose one of {PRESETS}.")
        return replace(cls.paper(supernet), **changes)

    @classmethod
    def paper(cls, supernet: str | SupernetConfig = "small") -> RewardConfig:
        """PRANCE's reward, agreement - 0.008 * MACs / 1e8 - 0.1 * keep rate, at every decision.

        Args:
            supernet: "tiny", "small", "base", another registered name, or a configuration; its MACs give the weight.

        Raises:
            ValueError: If the name is unknown.
        """
        if isinstance(supernet, str):
            supernet = supernet_config(f"prance_vit_{supernet}" if supernet in ("tiny", "small", "base") else supernet)
        full_macs = stem_macs(supernet) + int(remaining_macs(supernet, 0, np.array([supernet.num_tokens]))[0])
        return cls(macs_weight=PAPER_PRICE * full_macs / PAPER_MACS, token_weight=PAPER_TOKEN_WEIGHT)


class Terms(NamedTuple):
    """R_t of B images, (B,) each; the costs are negative."""

    value: Floats
    accuracy: Floats
    macs: Floats
    tokens: Floats


def terms(
    reward: RewardConfig,
    accuracy: Floats,
    keep_rate: Floats,
    decision: int,
    cost: Floats | Ints,
    full: Floats | Ints | int,
    macs_weight: Floats | float,
) -> Terms:
    """R_t and its terms, of arrays or of tensors.

    Args:
        reward: How to score; a function of the user's is not asked.
        accuracy: (B,) accuracy term.
        keep_rate: (B, T) or (B, T, 2).
        decision: Decisions taken, at least 1.
        cost: (B,) what the inference costs.
        full: What the full network costs.
        macs_weight: (B,) price of the full network, or one for all.
    """
    kept = keep_rate.reshape(*keep_rate.shape[:2], -1).sum(-1)
    kept = kept[:, decision - 1] if reward.mode == "result_to_go" else kept.mean(1)
    tokens, macs = -reward.token_weight * kept, -macs_weight * cost / full
    return Terms(accuracy + macs + tokens, accuracy, macs, tokens)


def accuracy_term(kind: str, correct: Bools, full_correct: Bools, prob: Floats, full_prob: Floats) -> Floats:
    """The accuracy part of R_t for (B,) images.

    Args:
        kind: One of `ACCURACIES`.
        correct: Whether the subnet's prediction is the label.
        full_correct: Whether the full network's is.
        prob: Probability that the subnet gives the label.
        full_prob: Probability that the full network gives it.
    """
    arrays: Any = namespace(prob)
    ones, zeros = arrays.ones_like(prob), arrays.zeros_like(prob)
    if kind == "top1":
        top1: Floats = arrays.where(correct, ones, zeros)
        return top1
    if kind == "prob":
        return prob
    agreement: Floats = arrays.where(full_correct & ~correct, zeros, ones)
    if kind == "agreement":
        return agreement
    return 0.5 * (agreement + (1.0 + prob - full_prob).clip(max=1.0))
