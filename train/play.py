"""The one episode loop: decisions of an agent, or given ones, on images of an environment's split."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from agents.fitting import Interface, fitted
from agents.protocol import Agent, ask
from prance_env.checks import check_settings
from prance_env.engine import InferenceEngine
from prance_env.episodes import Episodes
from prance_env.rewards.config import RewardConfig
from prance_env.settings import EnvSettings
from prance_env.spaces import decode_actions
from supernet.arrays import Floats, Ints, evenly
from supernet.reading import checked_count

# Who only wants to know how an inference ends need not finish the network after every decision.
AT_THE_END = RewardConfig(mode="terminal")
BATCH = 512
Played = tuple[list[Episodes], NDArray[np.floating]]


def of_all_classes(labels: Ints, count: int) -> Ints:
    """At most `count` images that stand for all, whose labels are (N,).

    They are the first ones; where classes are missing among those, as in folders, which list theirs class by class,
    they are evenly spaced ones.
    """
    first = np.arange(min(count, len(labels)))
    return first if len(np.unique(labels[first])) == len(np.unique(labels)) else evenly(len(labels), count)


def batches(total: int, batch_size: int) -> Iterator[Ints]:
    """The numbers 0 to total - 1 in order, at most `batch_size` at a time.

    Raises:
        ValueError: If `batch_size` is no whole number of at least 1.
    """
    for begin in range(0, total, checked_count(batch_size, "batch_size")):
        yield np.arange(begin, min(begin + batch_size, total))


def played_by_full(engine: InferenceEngine, index: Ints) -> tuple[Ints, Ints, Ints]:
    """What the full network says about images (N,).

    Returns:
        (N,) the images, others in the place of broken ones, (N,) their labels, and (N,) its predictions.
    """
    parts = [engine.start(index[rows]) for rows in batches(len(index), BATCH)]
    found = [(e.index, e.label, e.prediction) for e in parts]
    index, label, prediction = (np.concatenate(each) for each in zip(*found, strict=True))
    return index, label, prediction


def play(
    agent: Agent,
    settings: EnvSettings,
    engine: InferenceEngine,
    index: Ints,
    donors: Ints | None = None,
    reward: RewardConfig = AT_THE_END,
) -> Played:
    """One episode on each image, deterministic.

    Args:
        agent: Whatever has SB3's `predict`; what it returns as its state is handed back to it at the next decision.
        settings: Of the environment; if it is cost-conditioned, at a fixed price.
        engine: `settings.engine()`, asked for once, so that all images are played on the same files.
        index: (B,) images of the split.
        donors: (B,) images that the agent looks at instead, in episodes of their own; None: the same ones.
        reward: How decisions are scored.

    Returns:
        The episodes before and after every decision, and (B, num_decisions, A) the actions as the agent gave them.

    Raises:
        ValueError: If the environment is cost-conditioned and no price is fixed, or the agent is for other spaces or
            wrappers (`agents.fitting`).
    """
    conditioning = settings.conditioning
    if conditioning is not None and conditioning.fixed is None:
        raise ValueError("A cost-conditioned agent is evaluated at one price: cost_conditioning=(low, high, fixed).")
    agent = fitted(agent, Interface.of(settings, engine.config))
    price = None if conditioning is None else np.full(len(index), conditioning.fixed)
    episodes = [replace(engine.start(index), macs_weight=price)]
    seen = episodes[0] if donors is None else replace(engine.start(donors), macs_weight=price)
    taken: list[NDArray[np.floating]] = []
    memory = None
    for _ in range(engine.config.space.num_decisions):
        observation = engine.observe(seen, settings.observation, conditioning).cpu().numpy()
        actions, memory = ask(agent, observation, memory, engine.config.space.action_size)
        unit = decode_actions(actions, settings.normalize_actions)
        episodes.append(engine.step(episodes[-1], unit, reward))
        seen = episodes[-1] if donors is None else engine.step(seen, unit, reward)
        taken.append(actions)
    return episodes, np.stack(taken, axis=1)


def play_actions(
    taken: NDArray[np.floating],
    settings: EnvSettings,
    engine: InferenceEngine,
    index: Ints,
    reward: RewardConfig = AT_THE_END,
) -> Played:
    """`play` with given actions.

    Args:
        taken: (B, num_decisions, A) actions of the environment's Box.
        settings: What the environment is made with.
        engine: `settings.engine()`, asked for once.
        index: (B,) images of the split.
        reward: How decisions are scored.

    Returns:
        The episodes before and after every decision, and `taken`.

    Raises:
        ValueError: If an action is NaN.
    """
    episodes = [engine.start(index)]
    for decision in range(taken.shape[1]):
        unit = decode_actions(taken[:, decision], settings.normalize_actions)
        episodes.append(engine.step(episodes[-1], unit, reward))
    return episodes, taken


def summed(reward: RewardConfig) -> RewardConfig:
    """A reward of the same return that is computed as seldom as that allows: differences of a potential add up."""
    return replace(reward, mode="terminal") if reward.mode == "potential" else reward


def returns_of(path: list[Episodes]) -> Floats:
    """(B,) sums of the rewards of episodes that `play` returned."""
    total: Floats = np.sum([episodes.reward for episodes in path[1:]], axis=0)
    return total


def mean_return(
    agent: Agent, settings: EnvSettings, batch_size: int = 1024, images: Ints | None = None
) -> tuple[float, float, float]:
    """Plays images of the split once, without exploring, with the environment's own reward.

    Args:
        agent: Whatever has SB3's `predict`.
        settings: What the environment is made with, its reward included.
        batch_size: Images at a time.
        images: Which; None: all of them.

    Returns:
        Mean return of an episode, accuracy, and MACs / MACs of the full network.

    Raises:
        TypeError: If the settings are something else.
    """
    check_settings(settings)
    engine, reward = settings.engine(), settings.reward_config
    images = np.arange(len(engine.dataset)) if images is None else images
    total, sums = len(images), np.zeros(3)
    for rows in batches(total, batch_size):
        path, _ = play(agent, settings, engine, images[rows], reward=reward)
        sums[0] += returns_of(path).sum()
        sums[1:] += path[-1].success.sum(), (path[-1].macs / engine.full_macs).sum()
    value, accuracy, macs_fraction = (sums / total).tolist()
    return value, accuracy, macs_fraction
