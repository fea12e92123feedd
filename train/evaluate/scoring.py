"""By which reward an evaluation counts returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..reward_options import MACS_WEIGHT, noted_reward
from ..runs.trained import trained_settings


@dataclass(frozen=True)
class Scoring:
    """The rewards by which agents are scored.

    Attributes:
        rewards: The environment's argument `reward` of every agent; None: it cannot be computed here.
        remarks: What a reader of the returns should know.
    """

    rewards: Mapping[str, dict[str, Any] | None]
    remarks: tuple[str, ...]


def scoring_of(names: Sequence[str], given: dict[str, Any] | None) -> Scoring:
    """Every agent by the reward it was trained with; one that was not, by that of the others.

    Args:
        names: The agents.
        given: A reward for all of them instead; a price that it lacks is that of the agent's training.
    """
    trained = {name: settings for name in names if "algo" in (settings := trained_settings(name))}
    rewards: dict[str, dict[str, Any] | None] = {}
    remarks = []
    for name, noted in trained.items():
        price = noted.get("macs_weight")
        if given is not None:
            rewards[name] = _priced(given, price)
            continue
        try:
            rewards[name] = noted_reward(noted, name)
        except ValueError as e:
            rewards[name] = None
            remarks.append(f"No return of {name}: {e}")
    known = [reward for reward in rewards.values() if reward is not None]
    differ = any(reward != known[0] for reward in known)
    if differ:
        remarks.append("Each agent's return is by the reward of its own training; --reward names one for all.")
    usual = noted_reward({}, "") if given is None else given
    common = known[0] if known and not differ else usual
    rewards |= {name: _priced(common, None) for name in names if name not in trained}
    if (known and not differ) or not trained:
        remarks.append(f"Returns are by the reward {_in_words(common if trained else _priced(common, None))}.")
    return Scoring(rewards, tuple(remarks))


def _priced(reward: dict[str, Any], price: Any) -> dict[str, Any]:
    """A reward with a price, which the paper's has anyway."""
    if "preset" in reward or isinstance(price, list):
        return reward
    return {"macs_weight": MACS_WEIGHT if price is None else price, **reward}


def _in_words(reward: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in reward.items())
