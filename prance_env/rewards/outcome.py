"""What a reward is computed from, and reward functions of users."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from importlib import import_module
from typing import Any

import numpy as np

from supernet.arrays import Floats, Ints
from supernet.extension import Registry


@dataclass(frozen=True)
class Outcome:
    """B inferences after a decision, if they were finished at full size from here. The arrays are read-only.

    Attributes:
        index: (B,) image of the data set.
        label: (B,) its class.
        decision: (B,) decisions taken so far, 1..T.
        prediction: (B,) class that the network predicts.
        prob: (B,) probability it gives the label.
        full_prediction: (B,) class that the full network predicts.
        full_prob: (B,) probability that the full network gives the label.
        accuracy: (B,) the accuracy term that `RewardConfig.accuracy` names.
        macs: (B,) multiply-accumulates.
        full_macs: (B,) those of the full network, all equal.
        latency_ms: (B,) milliseconds by the latency table; NaN without one.
        full_latency_ms: (B,) those of the full network, all equal; NaN without a table.
        embed_dim: (B, depth) width of every block, full where undecided.
        mlp_ratio: (B, depth) MLP ratio of every block, the largest where undecided.
        keep_rate: (B, T) rate that every decision chose: ceil(rate * patches) go on, at least one (in modes with
            thresholds, the threshold); 1 where undecided; (B, T, 2) where a decision has two rates.
        num_tokens: (B,) tokens left, class token included.
        macs_weight: (B,) price of the full network: `RewardConfig.macs_weight`, or the episode's own when conditioned.
    """

    index: Ints
    label: Ints
    decision: Ints
    prediction: Ints
    prob: Floats
    full_prediction: Ints
    full_prob: Floats
    accuracy: Floats
    macs: Ints
    full_macs: Ints
    latency_ms: Floats
    full_latency_ms: Floats
    embed_dim: Ints
    mlp_ratio: Floats
    keep_rate: Floats
    num_tokens: Ints
    macs_weight: Floats

    def __post_init__(self) -> None:
        for f in fields(self):
            # The environment goes on with these arrays, so a reward function must not write into them.
            view = getattr(self, f.name).view()
            view.flags.writeable = False
            object.__setattr__(self, f.name, view)


Reward = Callable[[Outcome], Any]
REWARDS: Registry[Reward] = Registry("reward", "register_reward", "reward function")


def register_reward(name: str, function: Reward | None = None) -> Callable[[Reward], Reward]:
    """Makes `reward={"function": name}` known. A decorator or a function.

        @register_reward("frugal")
        def frugal(outcome):
            return outcome.accuracy - outcome.macs_weight * (outcome.macs / outcome.full_macs) ** 2

    Processes that are spawned have to register it as well: do so in a module that they import, or in a plug-in
    (`supernet.extension`); or name the function by its place, "package.module:name", which needs no registration.

    Args:
        name: Any text without a colon.
        function: Takes an `Outcome` and gives R_t, (B,) finite numbers; None: what is returned is used as a decorator.

    Returns:
        A decorator that registers its function under the name.

    Raises:
        ValueError: If the name holds a colon or is taken by another function.
    """
    if ":" in name:
        raise ValueError(f"name={name!r} must have no colon, which stands in the place of a function in a module.")

    def register(registered: Reward) -> Reward:
        return REWARDS.add(name, registered)

    if function is not None:
        register(function)
    return register


def load_reward_function(path: str) -> Reward:
    """The function at "package.module:name", or the one registered under this name.

    Raises:
        ValueError: If the path is malformed, or there is no such module or function.
    """
    module, colon, name = path.partition(":") if isinstance(path, str) else ("", "", "")
    if not colon and path in REWARDS:
        return REWARDS[path]
    if not (module and colon and name):
        raise ValueError(
            f"reward function={path!r} must have the form 'package.module:name', or be a name given to "
            f"register_reward (known are {REWARDS.names()})."
        )
    try:
        function = getattr(import_module(module), name)
    except (ImportError, AttributeError) as e:
        raise ValueError(f"reward function={path!r} cannot be imported ({e}); is its folder on the path?") from e
    if not callable(function):
        raise ValueError(f"reward function={path!r} is a {type(function).__name__}, not a function.")
    return function


def call_reward_function(path: str, outcome: Outcome) -> Floats:
    """What the function at `path` says about every image: (B,).

    Raises:
        ValueError: If it returns another shape, something that is no number, or a number that is not finite.
    """
    expected = outcome.index.shape
    result = load_reward_function(path)(outcome)
    try:
        if np.iscomplexobj(result):  # NumPy would drop the imaginary part with a mere warning
            raise TypeError("complex numbers")
        rewards = np.array(result, dtype=np.float64)
    except (TypeError, ValueError) as e:
        raise ValueError(
            f"reward function={path!r} returned {type(result).__name__} ({e}); expected {expected} numbers."
        ) from e
    if rewards.shape != expected:
        raise ValueError(f"reward function={path!r} returned the shape {rewards.shape}; expected {expected}.")
    if not np.isfinite(rewards).all():
        image = int(np.flatnonzero(~np.isfinite(rewards))[0])
        raise ValueError(
            f"reward function={path!r} returned {rewards[image]} for image {outcome.index[image]} after decision "
            f"{outcome.decision[image]}; every reward must be finite."
        )
    return rewards
