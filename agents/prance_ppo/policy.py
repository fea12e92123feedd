"""The policy and value networks of PRANCE's selector."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, cast

import numpy as np
import torch
from gymnasium.spaces import Box
from numpy.typing import NDArray
from torch import Tensor, nn

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh}
LEAST_DEVIATION = 0.1
HALF_LOG_2_PI = 0.5 * math.log(2 * math.pi)


class GaussianPolicy(nn.Module):
    """A normal distribution whose mean lies in the action box, and a value network of the same size.

    The mean is `centre + half_range * tanh(actor(observation))`; the standard deviation is the same for every state.
    Samples may lie outside the box and are scored there: the environment clips, the policy does not.

    Args:
        observation_size: O.
        action_box: Bounded box of shape (A,).
        hidden: Widths of the hidden layers, of both networks.
        activation: Key of `ACTIVATIONS`.
        std: Standard deviation, as a fraction of the box's range.
        learn_std: Whether the optimiser sees it.
        initial_action: Mean of the untrained policy, as fractions of the box's range: one for all entries, or one each.

    Raises:
        ValueError: If there are as many initial actions as neither 1 nor the box has entries.
    """

    low: Tensor
    high: Tensor
    centre: Tensor
    half_range: Tensor
    shift: Tensor
    scale: Tensor

    def __init__(
        self,
        observation_size: int,
        action_box: Box,
        hidden: Sequence[int] = (256, 256),
        activation: str = "relu",
        std: float = 0.3,
        learn_std: bool = False,
        initial_action: float | tuple[float, ...] = 0.5,
    ) -> None:
        super().__init__()
        low, high = torch.as_tensor(action_box.low), torch.as_tensor(action_box.high)
        bounds = {"low": low, "high": high, "centre": (high + low) / 2, "half_range": (high - low) / 2}
        for name, bound in bounds.items():
            self.register_buffer(name, bound, persistent=False)
        self.register_buffer("shift", torch.zeros(observation_size))
        self.register_buffer("scale", torch.ones(observation_size))
        sizes = [observation_size, *hidden]
        self.actor = _mlp([*sizes, len(low)], activation, last_gain=0.01)
        self.critic = _mlp([*sizes, 1], activation, last_gain=1.0)
        start = torch.as_tensor(initial_action, dtype=torch.float64)
        if start.numel() not in (1, len(low)):
            raise ValueError(f"initial_action has {start.numel()} entries, actions have {len(low)}; pass one for all.")
        with torch.no_grad():
            cast(nn.Linear, self.actor[-1]).bias.copy_((2 * start - 1).atanh())
        self.log_std = nn.Parameter(torch.zeros(len(low)), requires_grad=learn_std)
        self.set_std(std)

    @torch.no_grad()
    def set_std(self, std: float) -> None:
        """Sets the standard deviation of every action, as a fraction of the box's range."""
        self.log_std.copy_((2 * std * self.half_range).log())

    @property
    def standardised(self) -> bool:
        """Whether `standardise` has been called."""
        return not bool((self.scale == 1).all())

    @torch.no_grad()
    def standardise(self, observations: Tensor) -> None:
        """Has both networks see observations with the mean 0 and the standard deviation 1 that these (B, O) then have.

        What hardly varies in them is not blown up: it counts as if its deviation were `LEAST_DEVIATION`.
        """
        self.shift.copy_(observations.mean(0))
        self.scale.copy_(1 / observations.std(0).clamp_min(LEAST_DEVIATION))

    def mean(self, observations: Tensor) -> Tensor:
        """(B, A) means, within the box, for (B, O) observations."""
        return self.centre + self.half_range * torch.tanh(self.actor(self._seen(observations)))

    def value(self, observations: Tensor) -> Tensor:
        """(B,) expected returns from (B, O) observations."""
        return self.critic(self._seen(observations)).squeeze(-1)

    def _seen(self, observations: Tensor) -> Tensor:
        return (observations - self.shift) * self.scale

    @torch.no_grad()
    def sample(self, observations: Tensor, generator: torch.Generator) -> Tensor:
        """(B, A) actions, not clipped."""
        mean = self.mean(observations)
        noise = torch.randn(mean.shape, generator=generator, device=mean.device)
        return mean + self.log_std.exp() * noise

    @torch.no_grad()
    def act(self, observations: NDArray[np.float32], generator: torch.Generator | None) -> NDArray[np.float32]:
        """(B, A) actions as the environment takes them, for (B, O) observations; the mean ones without a generator."""
        batch = torch.as_tensor(observations, dtype=torch.float32, device=self.low.device)
        return self.clip(self.mean(batch) if generator is None else self.sample(batch, generator)).cpu().numpy()

    def clip(self, actions: Tensor) -> Tensor:
        """(B, A) actions as the environment takes them."""
        return actions.clamp(self.low, self.high)

    def log_prob(self, observations: Tensor, actions: Tensor) -> Tensor:
        """(B,) joint log-density of the (B, A) actions."""
        z = (actions - self.mean(observations)) * torch.exp(-self.log_std)
        return -0.5 * z.square().sum(-1) - self.log_std.sum() - HALF_LOG_2_PI * actions.shape[-1]

    def entropy(self) -> Tensor:
        """() joint entropy, the same in every state."""
        return (self.log_std + 0.5 + HALF_LOG_2_PI).sum()


def _mlp(sizes: Sequence[int], activation: str, last_gain: float) -> nn.Sequential:
    """Linear layers with `activation` between them; orthogonal weights of gain 1 (`last_gain` at the end), no bias."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        linear: Any = nn.Linear(inputs, outputs)
        nn.init.orthogonal_(linear.weight, 1.0)
        nn.init.zeros_(linear.bias)
        layers += [linear, ACTIVATIONS[activation]()]
    nn.init.orthogonal_(layers[-2].weight, last_gain)  # type: ignore[arg-type]
    return nn.Sequential(*layers[:-1])
