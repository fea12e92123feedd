"""What an agent is: whatever has Stable-Baselines3's `predict`."""

from __future__ import annotations

import inspect
import reprlib
from abc import ABC, abstractmethod
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from prance_env.arrays import as_array

INTEGERS = (
    " What integers stand for is known of Stable-Baselines3's models that bring their environment: "
    "agent.set_env(make_sb3_env(..., wrappers=[...]))."
)
SIGNATURE = "predict(observation, state=None, episode_start=None, deterministic=False)"


class Agent(Protocol):
    """Whatever has SB3's `predict`."""

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[Any, Any]:
        """Actions for a batch of observations, and the state that is handed back at the next decision.

        Agents without memory may return the actions alone.
        """


class BatchAgent(ABC):
    """SB3's `predict` around a function that answers a batch of observations; for agents without memory.

    Attributes:
        observation_size: O, which observations must have; None: not checked.
    """

    observation_size: int | None = None

    @abstractmethod
    def actions(self, observations: NDArray[np.float32], deterministic: bool) -> NDArray[np.float32]:
        """Actions (B, A) of the environment's Box for observations (B, O)."""

    def predict(
        self,
        observation: NDArray[np.float32],
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = False,
    ) -> tuple[NDArray[np.float32], Any]:
        """SB3's signature: (B, O) or (O,) observations to actions of the environment's Box, and the state unchanged.

        Raises:
            ValueError: If the observations have another shape.
        """
        size, shape = self.observation_size, np.shape(observation)
        if size is not None and (len(shape) not in (1, 2) or shape[-1] != size):
            raise ValueError(f"The observation has the shape {shape}; expected ({size},) or (B, {size}).")
        actions = self.actions(np.atleast_2d(observation), deterministic)
        return actions.reshape(*shape[:-1], actions.shape[-1]), state


def check_agent(agent: Any) -> None:
    """Checks that something is an agent, before it is asked.

    Raises:
        TypeError: If it has no `predict`, or one that takes other arguments.
    """
    if isinstance(agent, type) or not callable(getattr(agent, "predict", None)):
        raise TypeError(
            f"agent={reprlib.repr(agent)} is no agent, which has SB3's {SIGNATURE}. Pass an object that has; "
            "train.policies.load_agent.load_agent(NAME, settings) makes one of a name or a path."
        )
    try:
        inspect.signature(agent.predict).bind(None, deterministic=True)
    except TypeError as e:
        raise TypeError(f"{type(agent).__name__}.predict cannot be asked ({e}); let it be SB3's {SIGNATURE}.") from e


def predicted(agent: Agent, observation: Any, state: Any, deterministic: bool) -> tuple[Any, Any]:
    """What an agent says, and the state that it wants back, None from agents that return actions alone.

    Raises:
        ValueError: If it returns a tuple of another length.
    """
    # Only agents that hand out a state are given one, so that agents whose `predict` knows none can be judged.
    remembered: dict[str, Any] = {} if state is None else {"state": state}
    found: Any = agent.predict(observation, **remembered, deterministic=deterministic)
    if isinstance(found, list) and len(found) == 2 and found[1] is None:
        found = (*found,)
    if not isinstance(found, tuple):
        found = found, None
    if len(found) != 2:
        raise ValueError(f"The agent gave a tuple of {len(found)}; expected (actions, state), or the actions alone.")
    # Those of a network may lie on a device, and require gradients.
    return as_array(found[0]) if isinstance(found[0], Tensor) else found[0], found[1]


def ask(
    agent: Agent, observation: NDArray[np.float32], memory: Any, action_size: int
) -> tuple[NDArray[np.floating], Any]:
    """Deterministic actions for a batch.

    Args:
        agent: The agent.
        observation: (B, O).
        memory: What the agent handed out at the last decision; None at the first.
        action_size: A.

    Returns:
        (B, A) actions, and what the agent wants back at the next decision.

    Raises:
        ValueError: If the agent gives something else than (B, A) floating-point numbers.
    """
    actions, memory = predicted(agent, observation, memory, deterministic=True)
    found = as_array(actions)
    if found.shape != (len(observation), action_size) or not np.issubdtype(found.dtype, np.floating):
        numbers = f"{found.dtype} of the shape {found.shape}"
        given = f"an object of type {type(actions).__name__}" if found.dtype == object else numbers
        remedy = INTEGERS if np.issubdtype(found.dtype, np.integer) else ""
        raise ValueError(
            f"The agent gave {given}; expected floating-point actions of the shape "
            f"({len(observation)}, {action_size}), one row for each observation.{remedy}"
        )
    return found, memory
