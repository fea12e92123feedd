"""Settings of `PrancePPO`, and the two sets that are worth having."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Annotated, Any

from annotated_types import Ge, Gt, Le, Len, Lt

from supernet import SearchSpace, SubnetConfig
from supernet.config import Size
from supernet.reading import STRICT, check_fields

from .policy import ACTIVATIONS

STARTS_WITHIN = (0.05, 0.95)
Fraction = Annotated[float, Ge(0), Le(1)]
Positive = Annotated[float, Gt(0)]
Inside = Annotated[float, Gt(0), Lt(1)]


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

    __pydantic_config__ = STRICT

    n_envs: Size = 256
    n_steps: Size = 3
    n_epochs: Size = 10
    batch_size: Annotated[int, Ge(2)] | None = None
    gamma: Fraction = 0.9
    gae_lambda: Fraction = 0.9
    clip_range: Positive = 0.2
    ent_coef: Annotated[float, Ge(0), Le(1e9)] = 0.01
    actor_lr: Positive = 1e-4
    critic_lr: Positive = 5e-3
    final_lr: Fraction = 1.0
    max_grad_norm: Positive = 0.5
    hidden: Annotated[tuple[Size, ...], Len(0, 100)] = (256, 256)
    activation: str = "relu"
    initial_std: Positive = 0.3
    final_std: Positive = 0.05
    learn_std: bool = False
    initial_action: Inside | Annotated[tuple[Inside, ...], Len(1)] = 0.5
    standardise_observations: bool = False
    restart_every: Annotated[int, Ge(0)] = 10

    def __post_init__(self) -> None:
        for name in ("hidden", "initial_action"):
            if isinstance(getattr(self, name), Iterable):
                object.__setattr__(self, name, tuple(getattr(self, name)))
        check_fields(self)
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation={self.activation!r} must be one of {sorted(ACTIVATIONS)}.")

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
