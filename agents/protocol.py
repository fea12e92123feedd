"""What an agent is: whatever has Stable-Baselines3's `predict`."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class Agent(Protocol):
    """Whatever has SB3's `predict`."""

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[Any, Any]:
        """Actions for a batch of observations, and the state that is handed back at the next decision."""


def ask(agent: Agent, observation: NDArray[np.float32], memory: Any) -> tuple[NDArray[np.floating], Any]:
    """Deterministic actions for a batch.

    Args:
        agent: The agent.
        observation: (B, O).
        memory: What the agent handed out at the last decision; None at the first.

    Returns:
        (B, A) actions, and what the agent wants back at the next decision.
    """
    # Only agents that hand out a state are given one, so that agents whose `predict` knows none can be judged.
    remembered: dict[str, Any] = {} if memory is None else {"state": memory}
    return agent.predict(observation, **remembered, deterministic=True)
