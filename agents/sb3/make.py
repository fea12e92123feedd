"""Stable-Baselines3 algorithms with presets that learn here."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, cast

import gymnasium as gym
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv
from torch import nn

from prance_env.settings import EnvSettings
from prance_env.supernets import usable_device

from .hyperparams import algorithm_class, check_hyperparams, constructor_arguments, merged, read_preset

# Mean action of an untrained policy, from 0 (everything at its minimum) to 1. The agent then starts from an accurate
# network and learns what it can leave out, rather than from a broken one.
INITIAL_ACTION = 0.8
# Of the weights of the layer that gives the mean action, so that all images begin with nearly the same one; PPO has it.
INITIAL_GAIN = 0.01


def make_sb3(
    algorithm: str,
    env: VecEnv,
    seed: int | None = None,
    device: str = "cpu",
    preset: str | Path | None = None,
    **overrides: Any,
) -> BaseAlgorithm:
    """An SB3 algorithm for an environment of this package.

    With another number of environments than the preset's, mini-batches of on-policy algorithms and gradient steps of
    off-policy ones change in proportion; rollouts are rounded up to whole episodes.

    Args:
        algorithm: "ppo", "a2c", "sac", "td3", or sb3-contrib's "tqc", "trpo".
        env: From `make_sb3_env`, or another `VecEnv` of this package's environments (SB3's `make_vec_env`), with their
            own actions.
        seed: Fixes policy and environment; None: drawn.
        device: Torch device of the policy.
        preset: YAML file of hyper-parameters, see `read_preset`, with an entry for the environment's id or a default;
            None is the one of this package.
        overrides: Arguments of the SB3 class, or what a preset may hold instead, that replace those of the preset; of
            `policy_kwargs` only the entries that are named.

    Raises:
        ValueError: If the algorithm, a hyper-parameter or the device is unknown, the actions are no Box, or the
            environment is not one of this package.
        TypeError: If `env` is no `VecEnv`.
        FileNotFoundError: If there is no such preset.
        ModuleNotFoundError: If sb3-contrib is needed and missing.
    """
    cls = algorithm_class(algorithm)
    _check_env(env)
    usable_device(device if device != "auto" else "cpu")
    check_hyperparams(cls, overrides)
    hyperparams, n_envs = read_preset(algorithm, preset, _env_id(env))[:2]
    box = cast(gym.spaces.Box, env.action_space)
    chosen = merged(fitted(hyperparams, env, n_envs / env.num_envs), overrides)
    arguments = constructor_arguments(chosen, int(box.shape[0]))
    policy = "MultiInputPolicy" if isinstance(env.observation_space, gym.spaces.Dict) else "MlpPolicy"
    model = cls(policy, env, seed=seed, device=device, **arguments)
    _set_initial_action(model, box)
    return model


def _check_env(env: Any) -> None:
    if not isinstance(env, VecEnv):
        raise TypeError(
            f"env is a {type(env).__name__}; pass a VecEnv of Stable-Baselines3, such as "
            "make_sb3_env('Prance-Digits-v0', n_envs=256)."
        )
    if not all(isinstance(s, EnvSettings) for s in _settings(env)):
        raise ValueError(
            f"env holds {env.get_attr('spec')[0] or env} and no environment of prance_env, which the presets are for; "
            "make the model without a preset: PPO('MlpPolicy', env)."
        )
    if not isinstance(env.action_space, gym.spaces.Box):
        raise ValueError(
            f"The actions of env are {env.action_space}, but the presets are for the environment's own, a Box. Leave "
            "the wrapper out, or make the model without a preset, as examples/sb3_dqn.py does: PPO('MlpPolicy', env)."
        )


def _settings(env: VecEnv) -> list[Any]:
    try:
        return env.get_attr("settings")
    except AttributeError:
        return [None]


def _env_id(env: VecEnv) -> str:
    """The id that an environment was made by; "default" if it was made without."""
    spec = env.get_attr("spec")[0]
    return "default" if spec is None else spec.id


def fitted(hyperparams: dict[str, Any], env: VecEnv, ratio: float) -> dict[str, Any]:
    """Hyper-parameters for another number of environments than they were chosen for.

    Args:
        hyperparams: Of a preset.
        env: The environments.
        ratio: How many times as many environments they were chosen for.
    """
    fitted = dict(hyperparams)
    if "gradient_steps" in fitted:
        if fitted["gradient_steps"] > 0:
            fitted["gradient_steps"] = max(1, round(fitted["gradient_steps"] / ratio))
        return fitted
    if "batch_size" in fitted:
        fitted["batch_size"] = max(2, round(fitted["batch_size"] / ratio))
    if "n_steps" in fitted:
        num_decisions = env.get_attr("settings")[0].config().space.num_decisions
        fitted["n_steps"] = math.ceil(fitted["n_steps"] / num_decisions) * num_decisions
    return fitted


@torch.no_grad()
def _set_initial_action(model: BaseAlgorithm, box: gym.spaces.Box) -> None:
    """Lets the untrained policy choose `INITIAL_ACTION`, whatever it sees."""
    policy: Any = model.policy
    if not isinstance(model, OffPolicyAlgorithm):
        low, high = (-1.0, 1.0) if policy.squash_output else (box.low, box.high)
        start = torch.as_tensor(low + INITIAL_ACTION * (high - low))
        policy.action_net.bias.copy_(start.atanh() if policy.squash_output else start)
        return
    # These squash with a tanh, whatever the box is.
    layer = next(m for m in reversed([*policy.actor.mu.modules()]) if isinstance(m, nn.Linear))
    layer.weight.mul_(INITIAL_GAIN)
    layer.bias.fill_(math.atanh(2 * INITIAL_ACTION - 1))
    if isinstance(log_std := getattr(policy.actor, "log_std", None), nn.Linear):
        # SB3 itself heeds `log_std_init` with state-dependent exploration only.
        log_std.weight.mul_(INITIAL_GAIN)
        log_std.bias.fill_(policy.actor.log_std_init)
    if (target := getattr(policy, "actor_target", None)) is not None:
        target.load_state_dict(policy.actor.state_dict())
