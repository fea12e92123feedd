"""Agents of every kind as what can be saved without pickles: a `NetworkPolicy`, or a baseline's JSON."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.distributions import (
    CategoricalDistribution,
    DiagGaussianDistribution,
    MultiCategoricalDistribution,
)
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy, MultiInputActorCriticPolicy
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor, MlpExtractor
from stable_baselines3.common.vec_env import VecNormalize
from torch import nn

from prance_env.spaces import IntegerActions, take_apart

from ..authors_selector import PranceSelector
from ..baselines import BaselineAgent
from ..fitting import BehindWrappers, Interface
from ..prance_ppo.algorithm import PrancePPO
from ..protocol import Agent
from ..sb3.saved import Normalized
from .networks import NetworkPolicy, NetworkSpec, Sight, network_policy

Plain = NetworkPolicy | BaselineAgent
INTEGERS = (CategoricalDistribution, MultiCategoricalDistribution)
PACKAGES = ("stable_baselines3", "sb3_contrib")


def plain_agent(agent: Agent, interface: Interface) -> Plain:
    """An agent that can be saved as safetensors and JSON, with the same deterministic actions.

    Args:
        agent: As `agents.fitting.fitted` gave it.
        interface: What it sees, and may say.

    Returns:
        The agent itself if it is plain already. Weights are copied.

    Raises:
        ValueError: If it is of a kind that is not known here, has memory, or has other layers than linear ones; it
            says what can be done.
    """
    if isinstance(agent, Plain):
        return agent
    spaces = interface.observation_space, interface.action_space
    see, integers = [], None
    if isinstance(agent, BehindWrappers):
        see, integers, agent = [*agent.see], _integers(agent.say), agent.agent
    if isinstance(agent, Normalized):
        see, agent = [*see, agent.normalizer.normalize_obs], agent.model
    if isinstance(agent, PrancePPO | PranceSelector) and not see:
        policy = agent.policy
        return network_policy([*policy.actor], "centre", spaces, Sight(None, policy.shift, policy.scale))
    if not isinstance(agent, BaseAlgorithm | BasePolicy):
        raise ValueError(
            f"An agent of the class {type(agent).__name__} runs, but how to save it without pickling is not known "
            "here. Known are the baselines, PrancePPO, the authors' selector, and Stable-Baselines3's models with "
            "feed-forward policies; distil it into one of these, or keep your own file beside the network."
        )
    layers, output, extractor = _layers_of_sb3(agent)
    sight = _sight(see, extractor, agent.observation_space, spaces[0].shape[0])
    return network_policy(layers, output, spaces, sight, integers)


def _layers_of_sb3(model: BaseAlgorithm | BasePolicy) -> tuple[Sequence[nn.Module], str, nn.Module]:
    """Layers of the network that decides, what becomes of its output, and what is between it and the observation."""
    policy: Any = model if isinstance(model, BasePolicy) else model.policy
    actor: Any = getattr(policy, "actor", None)
    q_net: Any = getattr(policy, "q_net", None)
    if type(policy) in (ActorCriticPolicy, MultiInputActorCriticPolicy):
        distribution, mlp = policy.action_dist, policy.mlp_extractor
        if type(mlp) is MlpExtractor and isinstance(distribution, (DiagGaussianDistribution, *INTEGERS)):
            output = "clip" if isinstance(distribution, DiagGaussianDistribution) else "integers"
            return [*mlp.policy_net, policy.action_net], output, policy.pi_features_extractor
    elif not _is_of_sb3(policy) or not _is_of_sb3(q_net if actor is None else actor):
        pass  # a class of the user's own may do anything with its layers
    elif isinstance(getattr(actor, "latent_pi", None), nn.Sequential):
        return [*actor.latent_pi, actor.mu], "unscale", actor.features_extractor
    elif isinstance(getattr(actor, "mu", None), nn.Sequential) and isinstance(actor.mu[-1], nn.Tanh):
        return [*actor.mu][:-1], "unscale", actor.features_extractor
    elif isinstance(getattr(q_net, "q_net", None), nn.Sequential):
        return [*q_net.q_net], "integers", q_net.features_extractor
    raise ValueError(
        f"{type(model).__name__}'s policy {type(policy).__name__} runs, but cannot be saved without pickling: known "
        "are Stable-Baselines3's own MlpPolicy and MultiInputPolicy with Gaussian, squashed or integer actions."
    )


def _is_of_sb3(module: Any) -> bool:
    """Whether a policy or a network in it is of a class of SB3 or sb3-contrib itself, rather than derived from one."""
    return type(module).__module__.partition(".")[0] in PACKAGES


def _integers(say: Sequence[Callable[[Any], Any]]) -> IntegerActions | None:
    """What integers stand for, of an agent's actions behind wrappers."""
    if not say:
        return None
    integers = say[0].keywords.get("integers") if isinstance(say[0], partial) and len(say) == 1 else None
    if not isinstance(integers, IntegerActions):
        raise ValueError(f"The wrapper of the agent's actions, {say[-1]}, cannot be saved without pickling.")
    return integers


def _sight(see: Sequence[Callable[[Any], Any]], extractor: nn.Module, space: gym.Space[Any], size: int) -> Sight:
    """What happens to observations of that size before the first layer.

    Raises:
        ValueError: If it cannot be saved.
    """
    parts: dict[str, Any] = {}
    normalizer: VecNormalize | None = None
    for function in see:
        owner = getattr(function, "__self__", None)
        if isinstance(function, partial) and function.func is take_apart:
            parts = take_apart(np.arange(size), function.keywords["layout"])
        elif isinstance(owner, VecNormalize) and normalizer is None:
            normalizer = owner if owner.norm_obs else None
        else:
            raise ValueError(f"What changes the agent's observations, {function}, cannot be saved without pickling.")
    if type(extractor) not in (FlattenExtractor, CombinedExtractor):
        raise ValueError(f"The features extractor {type(extractor).__name__} cannot be saved without pickling.")
    if not parts:
        return Sight() if normalizer is None else Sight(None, *_statistics(normalizer, None, size))
    assert isinstance(space, gym.spaces.Dict)
    # Which is how CombinedExtractor puts them together.
    order = [*space.spaces]
    columns = np.concatenate([parts[name] for name in order]).tolist()
    if normalizer is None:
        return Sight(columns)
    each = [_statistics(normalizer, name, len(parts[name])) for name in order]
    return Sight(columns, *(np.concatenate(values) for values in zip(*each, strict=True)))


def _statistics(normalizer: VecNormalize, name: str | None, size: int) -> tuple[Any, Any, Any]:
    """Shift, scale and bound that a normaliser applies to one part of the observation, or to all of it."""
    rms: Any = normalizer.obs_rms
    if name is not None and name not in (normalizer.norm_obs_keys or ()):
        return np.zeros(size), np.ones(size), np.full(size, np.inf)
    rms = rms if name is None else rms[name]
    return rms.mean, 1 / np.sqrt(rms.var + normalizer.epsilon), np.full(size, normalizer.clip_obs)


def describe(agent: Plain) -> dict[str, Any]:
    """What is saved of a plain agent beside its weights, JSON-able."""
    if isinstance(agent, NetworkPolicy):
        return {"kind": "network", **agent.spec.to_dict()}
    return {"kind": "baseline", **agent.to_dict()}


def from_description(data: dict[str, Any], interface: Interface) -> Plain:
    """The agent that `describe` described; a network's weights are to be loaded.

    Raises:
        ValueError: If it is something else.
    """
    if data.get("kind") == "network":
        return NetworkPolicy(NetworkSpec.from_dict(data), interface.observation_space, interface.action_space)
    if data.get("kind") == "baseline":
        agent = BaselineAgent.from_dict(data)
        return agent.for_environment(interface.config, interface.observation, interface.normalize_actions)
    raise ValueError(f"An agent of the kind {data.get('kind')!r} is not known; save the model again.")
