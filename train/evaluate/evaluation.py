"""Running an agent over every image of a split, and what came of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from agents.protocol import Agent
from prance_env.checks import check_settings
from prance_env.engine import InferenceEngine
from prance_env.settings import EnvSettings
from prance_env.spaces import encode_actions
from supernet import SubnetConfig
from supernet.macs import subnet_params

from ..play import AT_THE_END, Played, batches, play, play_actions, returns_of, summed


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
        macs: (N,) MACs of the chosen inference.
        taken: (N, T, A) actions as the agent gave them, of Box(-1, 1) whatever the environment's.
        params: (N,) parameters of the subnet that was chosen.
        params_fraction: (N,) these / parameters of the full network.
        returns: (N,) sums of the rewards that its episode earned; None if they were not asked for.
    """

    index: NDArray[np.int64]
    label: NDArray[np.int64]
    difficulty: NDArray[np.int64]
    prediction: NDArray[np.int64]
    macs_fraction: NDArray[np.float64]
    patches: NDArray[np.float64]
    actions: NDArray[np.float64]
    macs: NDArray[np.int64]
    taken: NDArray[np.floating]
    params: NDArray[np.int64]
    params_fraction: NDArray[np.float64]
    returns: NDArray[np.float64] | None = None

    @property
    def correct(self) -> NDArray[np.bool_]:
        """(N,) whether the prediction is the label."""
        return self.prediction == self.label

    def summary(self, rows: NDArray[np.bool_] | None = None) -> dict[str, float]:
        """Means over all images, or over some of them; `return` among them if it is known."""
        rows = np.ones(len(self.index), dtype=bool) if rows is None else rows
        return {
            "accuracy": float(self.correct[rows].mean()),
            "macs_fraction": float(self.macs_fraction[rows].mean()),
            "params_fraction": float(self.params_fraction[rows].mean()),
            "patches_fraction": float(self.patches[rows, -1].mean()),
            "n_images": int(rows.sum()),
            **({} if self.returns is None else {"return": float(self.returns[rows].mean())}),
        }

    def by_difficulty(self) -> dict[str, dict[str, float]]:
        """`summary` for every stratum."""
        return {str(d): self.summary(self.difficulty == d) for d in np.unique(self.difficulty)}

    def mean_action(self) -> NDArray[np.float64]:
        """(1, T, A) average over images: the agent as a static subnet."""
        return self.actions.mean(axis=0, keepdims=True)


def evaluate(
    agent: Agent,
    settings: EnvSettings,
    batch_size: int = 512,
    shuffle_observations: bool = False,
    seed: int = 0,
    returns: bool = False,
) -> Evaluation:
    """Runs an agent over all images of a split, each once.

    Args:
        agent: Whatever has SB3's `predict`; it is asked for deterministic actions, and what it returns as its state
            is handed back to it at the next decision.
        settings: Supernet, data set, split and observation.
        batch_size: Images at a time.
        shuffle_observations: Whether every image is classified by what the agent sees of another image. Everything
            but the connection between image and choice stays as it is: each image is the other of exactly one, and
            its observations are those of its own episode, so that the same choices are made, for other images. The
            MACs add up to exactly the same, and what accuracy is lost is what looking was worth. Where keep rates are
            thresholds (`TokenMode.threshold`), the same choices leave other patches of other images, and MACs differ.
        seed: Fixes the pairs.
        returns: Whether to score the episodes by the environment's reward as well. One that pays for every decision
            (mode "result_to_go") has the network finished after each, which takes longer.

    Raises:
        ValueError: If the environment is cost-conditioned and no price is fixed, or observations are to be shuffled
            among fewer than two images.
        TypeError: If the agent has no such `predict`, or the settings are something else.
    """
    check_settings(settings)
    engine = settings.engine()
    donors = others(len(engine.dataset), seed) if shuffle_observations else None
    reward = summed(settings.reward_config) if returns else AT_THE_END

    def record(index: NDArray[np.int64]) -> Played:
        return play(agent, settings, engine, index, None if donors is None else donors[index], reward)

    return _evaluation(settings, engine, record, batch_size, returns)


def evaluate_actions(actions: NDArray[np.float64], settings: EnvSettings, batch_size: int = 512) -> Evaluation:
    """Runs given choices over all images of a split: what needs to know more than an observation holds.

    Args:
        actions: (N, T, A) in [0, 1], for every image of the split.
        settings: Supernet, data set and split.
        batch_size: Images at a time.

    Raises:
        ValueError: If there are not as many choices as images.
        TypeError: If the settings are something else.
    """
    check_settings(settings)
    engine = settings.engine()
    if len(actions) != len(engine.dataset):
        raise ValueError(f"There are {len(actions)} rows of actions for {len(engine.dataset)} images; pass one each.")
    taken = encode_actions(actions, settings.normalize_actions)

    def record(index: NDArray[np.int64]) -> Played:
        return play_actions(taken[index], settings, engine, index)

    return _evaluation(settings, engine, record, batch_size)


def others(total: int, seed: int) -> NDArray[np.int64]:
    """(total,) for every image another one, each exactly once; drawn from all, since neighbours may be of one class.

    Raises:
        ValueError: If there are fewer than two images.
    """
    if total < 2:
        raise ValueError(f"Observations cannot be shuffled among {total} image(s); take a split with two or more.")
    order = np.random.default_rng(seed).permutation(total)
    donors = np.empty(total, dtype=np.int64)
    donors[order] = np.roll(order, 1)
    return donors


def _evaluation(
    settings: EnvSettings,
    engine: InferenceEngine,
    record: Callable[[NDArray[np.int64]], Played],
    batch_size: int,
    returns: bool = False,
) -> Evaluation:
    normalized = settings.normalize_actions
    total, config = len(engine.dataset), engine.config
    full_params = subnet_params(config, SubnetConfig.full(config.space)).item()
    parts: list[dict[str, NDArray[Any]]] = []
    for index in batches(total, batch_size):
        path, taken = record(index)
        end = path[-1]
        patches = [(e.state.num_tokens - config.num_prefix_tokens) / config.num_patches for e in path[1:]]
        chosen = SubnetConfig(*(torch.from_numpy(v) for v in (end.embed_dim, end.mlp_ratio, end.keep_rate)))
        params = subnet_params(config, chosen)
        parts.append(
            {
                "index": end.index,
                "label": end.label,
                "difficulty": engine.dataset.difficulty.numpy()[end.index],
                "prediction": end.prediction,
                "macs_fraction": end.macs / engine.full_macs,
                "patches": np.stack(patches, axis=1),
                "actions": chosen.to_actions(config.space).numpy(),
                "macs": end.macs,
                "taken": taken if normalized else 2 * taken.astype(np.float64) - 1,
                "params": params,
                "params_fraction": params / full_params,
                **({"returns": returns_of(path)} if returns else {}),
            }
        )
    return Evaluation(**{key: np.concatenate([p[key] for p in parts]) for key in parts[0]})
