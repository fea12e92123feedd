"""Models of Stable-Baselines3 that were trained behind wrappers of every known kind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import RescaleAction
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from agents import PrancePPO
from prance_env import PranceVectorEnv, make_sb3_env
from prance_env.wrappers import (
    DictObservation,
    DiscreteActions,
    MultiDiscreteActions,
    VectorDictObservation,
    VectorDiscreteActions,
    VectorMultiDiscreteActions,
)

IMAGES = 12
Made = tuple[BaseAlgorithm, VecEnv]
Settings = dict[str, Any]


def noisy_presets(env: Any) -> Any:
    """Five presets of one's own."""
    space = env.unwrapped.settings.config().space
    presets = np.random.default_rng(1).random((5, space.action_size)).tolist()
    return (VectorDiscreteActions if hasattr(env, "num_envs") else DiscreteActions)(env, presets)


def learned(model: BaseAlgorithm, steps: int = 3 * IMAGES) -> BaseAlgorithm:
    """A few steps, so that normalisers have statistics, and weights that make more of what they see."""
    model.learn(steps)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.policy.parameters():
        parameter.data.add_(torch.randn(parameter.shape, generator=generator), alpha=0.3)
    return model


def native(*wrappers: Any, **more: Any) -> Callable[[Settings], VecEnv]:
    return lambda tiny: make_sb3_env("Prance-Digits-v0", IMAGES, seed=0, wrappers=wrappers, **tiny, **more)


def one_by_one(wrapper: Any, **more: Any) -> Callable[[Settings], VecEnv]:
    def make(tiny: Settings) -> VecEnv:
        return make_vec_env("Prance-Digits-v0", IMAGES, 0, env_kwargs={**tiny, **more}, wrapper_class=wrapper)

    return make


def ppo(env: VecEnv, policy: str = "MlpPolicy") -> BaseAlgorithm:
    return learned(PPO(policy, env, n_steps=3, batch_size=IMAGES, seed=0, device="cpu"))


def dqn(env: VecEnv) -> BaseAlgorithm:
    return learned(DQN("MlpPolicy", env, learning_starts=0, seed=0, device="cpu"))


def prance_ppo(
    wrapper: Callable[[Any], Any] = lambda env: env, range_: tuple[float, float] | None = None
) -> Callable[[Settings], PrancePPO]:
    """This package's own, in a batch behind a wrapper."""

    def make(tiny: Settings) -> PrancePPO:
        envs = PranceVectorEnv(IMAGES, AutoresetMode.SAME_STEP, **tiny, cost_conditioning=range_)
        return PrancePPO(wrapper(envs))

    return make


def sync_rescaled(tiny: Settings) -> PrancePPO:
    """PrancePPO over single environments, each behind a wrapper."""
    make = lambda: RescaleAction(gym.make("Prance-Digits-v0", **tiny), -1, 1)  # noqa: E731
    return PrancePPO(SyncVectorEnv([make] * 2, autoreset_mode=AutoresetMode.SAME_STEP))


def sync_priced(tiny: Settings) -> PrancePPO:
    """PrancePPO over single environments, which show prices of a range."""
    make = lambda: gym.make("Prance-Digits-v0", **tiny, cost_conditioning=(0.1, 1))  # noqa: E731
    return PrancePPO(SyncVectorEnv([make] * 2, autoreset_mode=AutoresetMode.SAME_STEP))


def saved_and_loaded(agent: PrancePPO) -> PrancePPO:
    """As it comes out of its folder, by way of a second one."""
    with TemporaryDirectory() as folder:
        for name in ("once", "twice"):
            agent.save(Path(folder) / name)
            agent = PrancePPO.load(Path(folder) / name)
    return agent


def case(
    make_env: Callable[[Settings], VecEnv], make: Callable[[VecEnv], BaseAlgorithm] = ppo
) -> Callable[[Settings], Made]:
    def made(tiny: Settings) -> Made:
        env = make_env(tiny)
        return make(env), env

    return made


def multi_input(env: VecEnv) -> BaseAlgorithm:
    return ppo(env, "MultiInputPolicy")


CASES: dict[str, Callable[[Settings], Made]] = {
    "bare": case(native()),
    "multi-discrete": case(native(lambda e: VectorMultiDiscreteActions(e, keep_levels=3))),
    "presets": case(native(noisy_presets), dqn),
    "normalised": case(lambda tiny: VecNormalize(native()(tiny))),
    "rewards-normalised": case(lambda tiny: VecNormalize(native()(tiny), norm_obs=False)),
    "dict": case(native(VectorDictObservation), multi_input),
    "all": case(
        lambda tiny: VecNormalize(
            native(VectorDictObservation, noisy_presets)(tiny), norm_obs_keys=["class_token", "log_norm"]
        ),
        multi_input,
    ),
    "one-by-one-presets": case(one_by_one(noisy_presets), dqn),
    "one-by-one-multi-discrete": case(lambda tiny: VecNormalize(one_by_one(MultiDiscreteActions)(tiny))),
    "one-by-one-dict": case(one_by_one(DictObservation), multi_input),
}


def played_at_home(model: BaseAlgorithm, env: VecEnv) -> tuple[list[int], list[int]]:
    """Predictions and MACs of all images in the environment that the agent was trained in."""
    if isinstance(env, VecNormalize):
        env.training = False
    env.seed(0)
    env.set_options([{"index": i} for i in range(IMAGES)])
    observations = env.reset()
    while True:
        observations, _, done, infos = env.step(model.predict(observations, deterministic=True)[0])  # type: ignore[arg-type]
        if done.all():
            return [i["prediction"] for i in infos], [i["macs"] for i in infos]
