"""Trained policies as plain networks: safetensors and JSON in the place of pickles, tensors in that of arrays."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from prance_env.spaces import IntegerActions

from ..protocol import BatchAgent

ACTIVATIONS: dict[str, type[nn.Module]] = {
    name: getattr(nn, name) for name in ("Tanh", "ReLU", "LeakyReLU", "ELU", "GELU", "SiLU", "Sigmoid")
}
OUTPUTS = ("clip", "centre", "unscale", "integers")


@dataclass(frozen=True)
class NetworkSpec:
    """What a policy's network looks like, as plain data; its numbers are tensors.

    Attributes:
        layers: Sizes of linear layers, [in, out], and names of `ACTIVATIONS`, in order.
        output: What becomes of the last layer: "clip" into the box, "centre" (tanh as a part of half the range from the
            centre, as `PrancePPO`), "unscale" (tanh from [-1, 1] to the box, as SAC), or "integers" (rows of tables).
        columns: Which entries of the observation are read, in order; None: all, as they are.
        normalised: Precision in which observations are shifted, scaled and clipped first; None: they are not.
        tables: [rows, entries] of every table of "integers"; the largest of as many scores chooses a row.
    """

    layers: tuple[Any, ...]
    output: str
    columns: tuple[int, ...] | None = None
    normalised: str | None = None
    tables: tuple[Any, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> NetworkSpec:
        """Inverse of `to_dict`.

        Raises:
            ValueError: If it is something else.
        """
        try:
            columns = None if data["columns"] is None else tuple(data["columns"])
            layers = tuple(v if isinstance(v, str) else tuple(v) for v in data["layers"])
            tables = tuple(tuple(v) for v in data["tables"])
            spec = cls(layers, data["output"], columns, data["normalised"], tables)
            named = {v for v in layers if isinstance(v, str)}
            known = spec.output in OUTPUTS and spec.normalised in (None, "float32", "float64")
            if not known or len(layers) == sum(isinstance(v, str) for v in layers) or not named <= {*ACTIVATIONS}:
                raise ValueError(f"layers={reprlib.repr(layers)}, output={reprlib.repr(spec.output)}")
        except (KeyError, TypeError, ValueError) as e:
            raise ValueError(f"This is no description of a policy's network ({e!r}); save the model again.") from e
        return spec


class NetworkPolicy(nn.Module, BatchAgent):
    """A feed-forward policy as a module: from observations to deterministic actions, on any device.

    Args:
        spec: What it looks like; its weights are random until they are loaded.
        observation_space: Of one environment.
        action_space: Of one environment.
    """

    shift: Tensor
    scale: Tensor
    bound: Tensor
    low: Tensor
    high: Tensor
    columns: Tensor

    def __init__(self, spec: NetworkSpec, observation_space: gym.spaces.Box, action_space: gym.spaces.Box) -> None:
        super().__init__()
        self.spec, self.observation_space, self.action_space = spec, observation_space, action_space
        (self.observation_size,) = observation_space.shape
        # What others draw does not depend on whether a policy was made.
        with torch.random.fork_rng(devices=[]):
            layers = [ACTIVATIONS[v]() if isinstance(v, str) else nn.Linear(*v) for v in spec.layers]
        self.layers = nn.Sequential(*layers)
        first = next(v[0] for v in spec.layers if not isinstance(v, str))
        if spec.normalised:
            for name in ("shift", "scale", "bound"):
                self.register_buffer(name, torch.zeros(first, dtype=getattr(torch, spec.normalised)))
        for i, shape in enumerate(spec.tables):
            self.register_buffer(f"table{i}", torch.zeros(*shape, dtype=torch.float64))
        self.register_buffer("low", torch.as_tensor(action_space.low), persistent=False)
        self.register_buffer("high", torch.as_tensor(action_space.high), persistent=False)
        self.register_buffer("columns", torch.tensor(spec.columns or range(self.observation_size)), persistent=False)
        self.eval().requires_grad_(False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> NetworkPolicy:
        """Moves to another device, but keeps its precision: a policy is tiny, and must choose the same."""
        moved: NetworkPolicy = super()._apply(lambda t: t.to(fn(t).device), recurse)
        return moved

    def forward(self, observations: Tensor) -> Tensor:
        """(B, A) float32 actions of the environment's Box for (B, O) observations, the same whatever is autocast."""
        with torch.autocast(observations.device.type, enabled=False):
            x = observations.float()
            if self.spec.columns is not None:
                x = x.index_select(1, self.columns)
            if self.spec.normalised:
                x = ((x.to(self.shift.dtype) - self.shift) * self.scale).clamp(-self.bound, self.bound).float()
            return self._taken(self.layers(x)).clamp(self.low, self.high)

    def _taken(self, x: Tensor) -> Tensor:
        low, high = self.low, self.high
        if self.spec.output == "centre":
            return (high + low) / 2 + (high - low) / 2 * torch.tanh(x)
        if self.spec.output == "unscale":
            return low + 0.5 * (torch.tanh(x) + 1.0) * (high - low)
        if self.spec.output == "clip":
            return x
        tables = [getattr(self, f"table{i}") for i in range(len(self.spec.tables))]
        scores = x.split([len(t) for t in tables], dim=1)
        unit = torch.cat([t[s.argmax(1)] for t, s in zip(tables, scores, strict=True)], dim=1)
        return (low + (high - low) * unit).float()

    def actions(self, observations: NDArray[np.float32], deterministic: bool) -> NDArray[np.float32]:
        """Actions (B, A) of the environment's Box for observations (B, O); they are always the deterministic ones."""
        with torch.no_grad():
            seen = torch.as_tensor(observations, dtype=torch.float32, device=self.low.device)
            taken: NDArray[np.float32] = self(seen).cpu().numpy()
        return taken


@dataclass
class Sight:
    """What comes before a policy's first layer.

    Attributes:
        columns: Entries of the observation that are read, in order; None: all, as they are.
        shift: Subtracted from them; None: nothing is.
        scale: By which they are then multiplied.
        bound: To [-bound, bound] they are then clipped; None: not at all.
    """

    columns: Sequence[int] | None = None
    shift: Any = None
    scale: Any = None
    bound: Any = None


def network_policy(
    layers: Sequence[nn.Module],
    output: str,
    spaces: tuple[gym.spaces.Box, gym.spaces.Box],
    sight: Sight,
    integers: IntegerActions | None = None,
) -> NetworkPolicy:
    """A plain policy with copies of layers.

    Args:
        layers: Linear layers and activations, in order.
        output: One of `OUTPUTS`.
        spaces: Observation and action space of the bare environment.
        sight: What comes before the first layer.
        integers: What integers stand for, of "integers".

    Raises:
        ValueError: If there is another kind of layer.
    """
    names: dict[Any, str] = {kind: name for name, kind in ACTIVATIONS.items()}
    kept = [layer for layer in layers if not isinstance(layer, nn.Flatten | nn.Identity)]
    described: list[Any] = []
    for layer in kept:
        plain = type(layer) in names and repr(layer) == repr(type(layer)())
        if type(layer) is not nn.Linear and not plain:
            raise ValueError(
                f"The policy has the layer {layer}; what can be saved without pickling is linear layers and "
                f"{', '.join(ACTIVATIONS)}. The model runs all the same."
            )
        linear: Any = layer
        described.append(names.get(type(layer)) or (int(linear.in_features), int(linear.out_features)))
    tables = [] if integers is None else [torch.as_tensor(np.asarray(t), dtype=torch.float64) for t in integers.tables]
    columns = None if sight.columns is None else tuple(int(i) for i in sight.columns)
    precision = None if sight.shift is None else str(torch.as_tensor(sight.shift).dtype).removeprefix("torch.")
    spec = NetworkSpec(tuple(described), output, columns, precision, tuple(tuple(t.shape) for t in tables))
    policy = NetworkPolicy(spec, *spaces)
    for own, layer in zip(policy.layers, kept, strict=True):
        own.load_state_dict({k: v.detach().cpu() for k, v in layer.state_dict().items()})
        if isinstance(own, nn.Linear) and layer.bias is None:
            raise ValueError(f"The policy has the layer {layer}, without a bias; such are not known here.")
    if sight.shift is not None:
        policy.shift = torch.as_tensor(sight.shift).detach().cpu()
        policy.scale = torch.as_tensor(sight.scale).detach().cpu()
        # Files hold no infinity.
        most = torch.full_like(policy.scale, torch.finfo(torch.float32).max)
        policy.bound = most if sight.bound is None else torch.as_tensor(sight.bound).minimum(most)
    for i, table in enumerate(tables):
        setattr(policy, f"table{i}", table)
    return policy
