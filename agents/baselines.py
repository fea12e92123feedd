"""Agents that need no training: everything at full size, random choices, one fixed subnet."""

from __future__ import annotations

import copy
import json
from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from typing_extensions import TypedDict

from prance_env.spaces import action_space, encode_actions, observation_layout
from supernet import SubnetConfig, SupernetConfig
from supernet.files import write_text
from supernet.reading import OPEN, checked, read_json

from .protocol import BatchAgent


class Saved(TypedDict):
    """What every baseline's file holds."""

    agent: str
    supernet: SupernetConfig
    observation: str
    normalize_actions: bool


Saved.__pydantic_config__ = OPEN  # type: ignore[attr-defined]


class BaselineAgent(BatchAgent):
    """An agent with SB3's `predict` and a JSON file instead of weights.

    Attributes:
        reads: Parts of the observation that it needs.

    Args:
        config: The supernet.
        observation: Observation mode of the environment.
        normalize_actions: Whether its action space is Box(-1, 1).

    Raises:
        ValueError: If the observation is unknown or lacks what the agent reads.
    """

    reads: ClassVar[tuple[str, ...]] = ()
    _kinds: ClassVar[dict[str, type[BaselineAgent]]] = {}

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        BaselineAgent._kinds[cls.__name__] = cls

    def __init__(self, config: SupernetConfig, observation: str = "cls", normalize_actions: bool = True) -> None:
        self.config, self.observation, self.normalize_actions = config, observation, normalize_actions
        self.action_space = action_space(config.space, normalize_actions)
        self.layout = observation_layout(config, observation)
        if lacking := [name for name in self.reads if name not in self.layout]:
            holding = [name for name in ("constant", "cls") if set(self.reads) <= {*observation_layout(config, name)}]
            raise ValueError(
                f"observation={observation!r} does not show {lacking}, which a {type(self).__name__} reads; use "
                f"{holding[0]!r}, or another one that does."
            )

    def for_environment(self, config: SupernetConfig, observation: str, normalize_actions: bool) -> BaselineAgent:
        """The same choices, from other observations and as other actions.

        Args:
            config: The supernet.
            observation: Observation mode of the environment.
            normalize_actions: Whether its action space is Box(-1, 1).

        Returns:
            This agent if it is for that environment already.

        Raises:
            ValueError: If the supernet is another one, or the observation lacks what the agent reads.
        """
        if config.unnamed != self.config.unnamed:
            raise ValueError(
                f"The {type(self).__name__} was made for another supernet than this environment's: "
                f"{differences(self.config, config)}. Make it for this one, or pass the checkpoint that it is for."
            )
        if (observation, normalize_actions) == (self.observation, self.normalize_actions):
            return self
        other = copy.copy(self)
        BaselineAgent.__init__(other, config, observation, normalize_actions)
        return other

    @abstractmethod
    def act(self, observation: NDArray[np.float32]) -> NDArray[np.float64]:
        """Actions (B, A) in [0, 1] for observations (B, O)."""

    def decision(self, observation: NDArray[np.float32]) -> NDArray[np.int64]:
        """(B,) number of the coming decision, as observations (B, O) tell it."""
        return observation[:, self.layout["decision"]].argmax(1)

    def actions(self, observations: NDArray[np.float32], deterministic: bool) -> NDArray[np.float32]:
        """Actions (B, A) of the environment's Box for observations (B, O)."""
        return encode_actions(self.act(observations), self.normalize_actions)

    def save(self, path: str | Path) -> None:
        """Writes a JSON file."""
        write_text(Path(path), json.dumps(self.to_dict(), indent=2) + "\n")

    def to_dict(self) -> dict[str, Any]:
        """What the file holds, JSON-able."""
        return {
            "agent": type(self).__name__,
            "supernet": self.config.to_dict(),
            "observation": self.observation,
            "normalize_actions": self.normalize_actions,
            **self._extra(),
        }

    def _extra(self) -> dict[str, Any]:
        """What the file holds beside the arguments of this class; as `_restore` reads it."""
        return {}

    @classmethod
    def _restore(
        cls, data: dict[str, Any], config: SupernetConfig, observation: str, normalized: bool
    ) -> BaselineAgent:
        return cls(config, observation, normalized)

    @staticmethod
    def from_dict(data: dict[str, Any], source: str = "The baseline") -> BaselineAgent:
        """Inverse of `to_dict`, for any baseline.

        Args:
            data: What the file holds.
            source: Where it comes from, for messages.

        Raises:
            ValueError: If it is something else; the message says in which field.
        """
        remedy = "save the agent again"
        saved: Any = checked(data, Saved, source, remedy)
        if saved["agent"] not in BaselineAgent._kinds:
            kinds = sorted(BaselineAgent._kinds)
            raise ValueError(f"{source}: agent={saved['agent']!r} must be one of {kinds}; {remedy}.")
        try:
            kind = BaselineAgent._kinds[saved["agent"]]
            return kind._restore(saved, saved["supernet"], saved["observation"], saved["normalize_actions"])
        except (AttributeError, IndexError, KeyError, OverflowError, RuntimeError, TypeError, ValueError) as e:
            raise ValueError(f"{source} is not a {saved['agent']}'s file ({e!r}); {remedy}.") from e

    @staticmethod
    def load(path: str | Path) -> BaselineAgent:
        """Loads any baseline that `save` wrote.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is not an agent's file.
        """
        data = read_json(Path(path), dict[str, Any], "save the agent again")
        return BaselineAgent.from_dict(data, str(path))


def differences(own: SupernetConfig, other: SupernetConfig) -> str:
    """The first settings in which two supernets differ."""
    pairs = [(own.unnamed.to_dict(), other.unnamed.to_dict())]
    pairs += [(a.pop("space"), b.pop("space")) for a, b in list(pairs)]
    found = [f"{k}={a[k]!r} instead of {b[k]!r}" for a, b in pairs for k in a if a[k] != b[k]]
    return ", ".join(found[:3])


class FullAgent(BaselineAgent):
    """Every choice at its maximum: the full network."""

    def act(self, observation: NDArray[np.float32]) -> NDArray[np.float64]:
        return np.ones((len(observation), self.config.space.action_size))


class RandomAgent(BaselineAgent):
    """Uniform actions, from a generator of its own.

    Args:
        config: Configuration of the supernet.
        observation: Observation of the environment.
        normalize_actions: Whether the environment's action space is Box(-1, 1).
        seed: Fixes the actions.
    """

    def __init__(
        self, config: SupernetConfig, observation: str = "cls", normalize_actions: bool = True, seed: int = 0
    ) -> None:
        super().__init__(config, observation, normalize_actions)
        self.seed = seed
        self._generator = np.random.default_rng(seed)

    def act(self, observation: NDArray[np.float32]) -> NDArray[np.float64]:
        return self._generator.random((len(observation), self.config.space.action_size))

    def _extra(self) -> dict[str, Any]:
        return {"seed": self.seed}

    @classmethod
    def _restore(cls, data: dict[str, Any], config: SupernetConfig, observation: str, normalized: bool) -> RandomAgent:
        return cls(config, observation, normalized, data["seed"])


class StaticAgent(BaselineAgent):
    """The same subnet for every image.

    Args:
        subnet: Exactly one subnet of the search space.
        config: Configuration of the supernet.
        observation: Observation of the environment.
        normalize_actions: Whether the environment's action space is Box(-1, 1).

    Raises:
        ValueError: If `subnet` holds more than one or is not in the search space, or the observation does not tell
            which decision is due.
    """

    reads = ("decision",)

    def __init__(
        self, subnet: SubnetConfig, config: SupernetConfig, observation: str = "cls", normalize_actions: bool = True
    ) -> None:
        super().__init__(config, observation, normalize_actions)
        if len(subnet) != 1:
            raise ValueError(f"StaticAgent takes one subnet, not {len(subnet)}; index the batch first: subnet[0].")
        subnet.validate(config.space)
        self.subnet = subnet
        self._actions = subnet.to_actions(config.space)[0].numpy()

    def act(self, observation: NDArray[np.float32]) -> NDArray[np.float64]:
        return self._actions[self.decision(observation)]

    def _extra(self) -> dict[str, Any]:
        return {"subnet": json.loads(self.subnet.to_json())}

    @classmethod
    def _restore(cls, data: dict[str, Any], config: SupernetConfig, observation: str, normalized: bool) -> StaticAgent:
        return cls(SubnetConfig.from_json(json.dumps(data["subnet"])), config, observation, normalized)
