"""Running an agent over every image of a split, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from prance_env.engine import Episodes, InferenceEngine
from prance_env.lanes import EnvSettings
from prance_env.reward import RewardConfig
from prance_env.spaces import decode_actions
from supernet import SubnetConfig


class Agent(Protocol):
    """Whatever has SB3's `predict`."""

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[Any, Any]:
        """Actions for a batch of observations."""


@dataclass(frozen=True)
class Evaluation:
    """One row per image.

    Attributes:
        index: (N,) image of the data set.
        label: (N,) its class.
        difficulty: (N,) its stratum.
        prediction: (N,) what the chosen inference says.
        macs_fraction: (N,) its MACs / MACs of the full network.
        patches: (N, T) fraction of the image's patches left after each decision.
        actions: (N, T, A) in [0, 1], what was chosen.
    """

    index: NDArray[np.int64]
    label: NDArray[np.int64]
    difficulty: NDArray[np.int64]
    prediction: NDArray[np.int64]
    macs_fraction: NDArray[np.float64]
    patches: NDArray[np.float64]
    actions: NDArray[np.float64]

    @property
    def correct(self) -> NDArray[np.bool_]:
        """(N,) whether the prediction is the label."""
        return self.prediction == self.label

    def summary(self, rows: NDArray[np.bool_] | None = None) -> dict[str, float]:
        """Means over all images, or over some of them."""
        rows = np.ones(len(self.index), dtype=bool) if rows is None else rows
        return {
            "accuracy": float(self.correct[rows].mean()),
            "macs_fraction": float(self.macs_fraction[rows].mean()),
            "patches_fraction": float(self.patches[rows, -1].mean()),
            "n_images": int(rows.sum()),
        }

    def by_difficulty(self) -> dict[str, dict[str, float]]:
        """`summary` for every stratum."""
        return {str(d): self.summary(self.difficulty == d) for d in np.unique(self.difficulty)}

    def mean_action(self) -> NDArray[np.float64]:
        """(1, T, A) average over images: the agent as a static subnet."""
        return self.actions.mean(axis=0, keepdims=True)


def play(agent: Agent, engine: InferenceEngine, settings: EnvSettings, index: NDArray[np.int64]) -> list[Episodes]:
    """One episode on each of the images `index`, deterministic: the episodes before and after every decision.

    Raises:
        ValueError: If the environment is cost-conditioned and no price is fixed.
    """
    conditioning = settings.cost_conditioning
    if conditioning is not None and conditioning.fixed is None:
        raise ValueError("A cost-conditioned agent is evaluated at one price: cost_conditioning=(low, high, fixed).")
    price = None if conditioning is None else np.full(len(index), conditioning.fixed)
    episodes = [replace(engine.start(index), macs_weight=price)]
    for _ in range(engine.config.space.num_decisions):
        observation = engine.observe(episodes[-1], settings.observation, conditioning).cpu().numpy()
        actions, _ = agent.predict(observation, deterministic=True)
        unit = decode_actions(actions, settings.normalize_actions)
        episodes.append(engine.step(episodes[-1], unit, RewardConfig(mode="terminal")))
    return episodes


def evaluate(agent: Agent, settings: EnvSettings, batch_size: int = 512) -> Evaluation:
    """Runs an agent over all images of a split, each once.

    Args:
        agent: Whatever has SB3's `predict`; it is asked for deterministic actions.
        settings: Supernet, data set, split and observation.
        batch_size: Images at a time.
    """
    engine = settings.engine()
    total = len(engine.dataset)
    parts: list[dict[str, NDArray[Any]]] = []
    for begin in range(0, total, batch_size):
        path = play(agent, engine, settings, np.arange(begin, min(begin + batch_size, total)))
        end = path[-1]
        patches = [(e.state.num_tokens - engine.config.num_prefix_tokens) / engine.config.num_patches for e in path[1:]]
        parts.append(
            {
                "index": end.index,
                "label": end.label,
                "difficulty": engine.dataset.difficulty.numpy()[end.index],
                "prediction": end.prediction,
                "macs_fraction": end.macs / engine.full_macs,
                "patches": np.stack(patches, axis=1),
                "actions": SubnetConfig(
                    torch.from_numpy(end.embed_dim), torch.from_numpy(end.mlp_ratio), torch.from_numpy(end.keep_rate)
                )
                .to_actions(engine.config.space)
                .numpy(),
            }
        )
    return Evaluation(**{key: np.concatenate([p[key] for p in parts]) for key in parts[0]})
