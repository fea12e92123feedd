"""Settings of `PrancePPO`, and the two sets that are worth having."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from supernet import SearchSpace, SubnetConfig

from .policy import ACTIVATIONS

STARTS_WITHIN = (0.05, 0.95)


@dataclass(frozen=True)
class PrancePPOConfig:
    """Settings of `PrancePPO`; the defaults are the paper's, see `paper`.

    Attributes:
        n_envs: Environments to make when only an id is given.
        n_steps: Steps of each environment in a rollout.
        n_epochs: Passes over a rollout.
        batch_size: Transitions in a mini-batch; None: the whole rollout.
        gamma: Discount.
        gae_lambda: Decay of later steps in generalised advantage estimation, in [0, 1].
        clip_range: How far the probability ratio of an action may move.
        ent_coef: Weight of the entropy; without effect on a standard deviation that is not learned.
        actor_lr: Learning rate of the policy.
        critic_lr: Learning rate of the value network.
        final_lr: What both have fallen to, linearly, at the end of training, as a fraction.
        max_grad_norm: Gradients of either network are clipped to this norm.
        hidden: Widths of the hidden layers of either network.
        activation: Between them, "relu" or "tanh".
        initial_std: Standard deviation of the actions, as a fraction of the range of the action box.
        final_std: What it has fallen to, linearly, at the end of training.
        learn_std: Let the optimiser change it instead.
        initial_action: Mean action before training, as fractions of the range of the action box: one for all entries,
            or one each, such as `starting_action` gives.
        standardise_observations: Show the networks observations with mean 0 and standard deviation 1 in an episode of
            the untrained policy: entries with a small range, such as a price, then count as much as others.
        restart_every: Rollouts after which the environment is reset, with a seed that `seed` and the number of steps
            determine: what training can be resumed at, bit for bit. 0: never, which episodes that are
            longer than this need.

    Raises:
        ValueError: If a value is out of range.
    """

    n_envs: int = 256
    n_steps: int = 3
    n_epochs: int = 10
    batch_size: int | None = None
    gamma: float = 0.9
    gae_lambda: float = 0.9
    clip_range: float = 0.2
    ent_coef: float = 0.01
    actor_lr: float = 1e-4
    critic_lr: float = 5e-3
    final_lr: float = 1.0
    max_grad_norm: float = 0.5
    hidden: tuple[int, ...] = (256, 256)
    activation: str = "relu"
    initial_std: float = 0.3
    final_std: float = 0.05
    learn_std: bool = False
    initial_action: float | tuple[float, ...] = 0.5
    standardise_observations: bool = False
    restart_every: int = 10

    def __post_init__(self) -> None:
        object.__setattr__(self, "hidden", tuple(self.hidden))
        for name in ("n_envs", "n_steps", "n_epochs"):
            _check(name, getattr(self, name), _whole(getattr(self, name), 1), "a whole number of at least 1")
        _check("restart_every", self.restart_every, _whole(self.restart_every, 0), "a whole number of at least 0")
        good = self.batch_size is None or _whole(self.batch_size, 2)
        _check("batch_size", self.batch_size, good, "None or a whole number of at least 2")
        _check("hidden", self.hidden, all(_whole(h, 1) for h in self.hidden), "whole numbers of at least 1")
        for name in ("gamma", "gae_lambda", "final_lr"):
            _check(name, getattr(self, name), _within(getattr(self, name), 0, 1), "a number in [0, 1]")
        for name in ("clip_range", "actor_lr", "critic_lr", "max_grad_norm", "initial_std", "final_std"):
            value = getattr(self, name)
            _check(name, value, _within(value, 0, math.inf) and 0 < value < math.inf, "a positive number")
        _check("ent_coef", self.ent_coef, _within(self.ent_coef, 0, 1e9), "a number of at least 0")
        if isinstance(self.initial_action, Iterable):
            object.__setattr__(self, "initial_action", tuple(self.initial_action))
        entries = self.initial_action if isinstance(self.initial_action, tuple) else (self.initial_action,)
        good = bool(entries) and all(_within(entry, 0, 1) and 0 < entry < 1 for entry in entries)
        _check("initial_action", self.initial_action, good, "a number in (0, 1), or one for each entry of an action")
        _check("activation", self.activation, self.activation in ACTIVATIONS, f"one of {sorted(ACTIVATIONS)}")
        for name in ("learn_std", "standardise_observations"):
            _check(name, getattr(self, name), isinstance(getattr(self, name), bool), "True or False")

    @classmethod
    def paper(cls, **overrides: Any) -> PrancePPOConfig:
        """PRANCE's selector (arXiv 2407.05010), as in the authors' code, with every advantage from its own episode."""
        return cls(**overrides)

    @classmethod
    def tuned(cls, **overrides: Any) -> PrancePPOConfig:
        """What learns best and fastest on `Prance-Digits-v0` with potential-based rewards."""
        settings: dict[str, Any] = {
            "n_envs": 512,
            "n_steps": 3,
            "n_epochs": 4,
            "batch_size": 768,
            "gamma": 1.0,
            "gae_lambda": 0.95,
            "ent_coef": 0.0,
            "actor_lr": 2e-3,
            "critic_lr": 4e-3,
            "final_lr": 1 / 15,
            "hidden": (64, 64),
            "activation": "tanh",
            "initial_std": 0.2,
            "final_std": 0.03,
            "initial_action": 0.9,
            "standardise_observations": True,
        }
        return cls(**{**settings, **overrides})

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> PrancePPOConfig:
        """Inverse of `to_dict`.

        Raises:
            ValueError: If a key is unknown or missing, or a value is out of range.
        """
        names = {f.name for f in fields(cls)}
        if set(data) != names:
            missing, unknown = sorted(names - set(data)), sorted(set(data) - names)
            raise ValueError(f"Of the settings of PrancePPO, missing are {missing} and unknown are {unknown}.")
        return cls(**data)


def starting_action(subnet: SubnetConfig, space: SearchSpace) -> tuple[float, ...]:
    """What `initial_action` has to be for a policy that starts near one subnet, such as a design of `supernet.design`.

    Args:
        subnet: Exactly one subnet that has an action (`SubnetConfig.to_actions`).
        space: Its search space.

    Returns:
        (A,) its mean action over the decisions, since the untrained policy does the same at all of them; within
        [0.05, 0.95], where the mean of a policy can still move.

    Raises:
        ValueError: If it is not exactly one, or has no action.
    """
    if len(subnet) != 1:
        raise ValueError(f"A policy starts at one subnet, not at {len(subnet)}; index the batch first: subnet[0].")
    action = subnet.to_actions(space)[0].mean(dim=0).clamp(*STARTS_WITHIN)
    return tuple(action.tolist())


def _whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _within(value: Any, low: float, high: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


def _check(name: str, value: Any, good: bool, allowed: str) -> None:
    if not good:
        raise ValueError(f"{name}={value!r} must be {allowed}.")
