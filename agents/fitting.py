"""Whether an agent is for an environment: its spaces are compared, and wrappers that it was trained behind applied.

An agent may bring its environment along, as Stable-Baselines3's models do, and with it wrappers that changed what it
saw and what its actions meant. What is known of them is done here, what is not is refused.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import SyncVectorEnv, VectorActionWrapper, VectorEnv, VectorObservationWrapper, VectorWrapper
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnvWrapper, VecNormalize

from prance_env import PranceVecEnv, list_observations
from prance_env.rewards.prices import CostConditioning
from prance_env.settings import EnvSettings
from prance_env.spaces import (
    IntegerActions,
    action_space,
    dict_space,
    multi_discrete,
    observation_layout,
    observation_space,
    take_apart,
)
from prance_env.wrappers import (
    DictObservation,
    DiscreteActions,
    MultiDiscreteActions,
    VectorDictObservation,
    VectorDiscreteActions,
    VectorMultiDiscreteActions,
)
from supernet import SupernetConfig

from .authors_selector import PranceSelector
from .baselines import BaselineAgent
from .prance_ppo.files import price_range
from .protocol import Agent, check_agent, predicted
from .sb3.saved import Normalized

Translate = Callable[[Any], Any]
INTEGERS = (DiscreteActions, MultiDiscreteActions, VectorDiscreteActions, VectorMultiDiscreteActions)
# These do what their names say to every observation or action, even if the spaces stay the same.
CHANGING = (gym.ObservationWrapper, gym.ActionWrapper, VectorObservationWrapper, VectorActionWrapper)
# What their wrappers do to observations and actions is known by class or by spaces.
LIBRARIES = ("gymnasium", "stable_baselines3", "sb3_contrib", "prance_env")
SLACK = 1e-3
REMEDY = (
    "pass the settings that it was trained with (observation, normalize_actions, cost_conditioning, token_mode, ...)"
)


@dataclass(frozen=True)
class Interface:
    """What an agent sees of an environment, and what it may say.

    Attributes:
        config: The supernet.
        observation: A name that `prance_env.list_observations` has.
        normalize_actions: Whether the action space is Box(-1, 1).
        conditioning: Range of the prices that are observed; None: none is.
    """

    config: SupernetConfig
    observation: str = "cls"
    normalize_actions: bool = True
    conditioning: CostConditioning | None = None

    @classmethod
    def of(cls, settings: EnvSettings, config: SupernetConfig | None = None) -> Interface:
        """That of the environments with these settings, over `config` if it is given."""
        config = settings.config() if config is None else config
        return cls(config, settings.observation, settings.normalize_actions, settings.conditioning)

    @property
    def layout(self) -> dict[str, slice]:
        """Name and slice of every part of the observation."""
        return observation_layout(self.config, self.observation, self.conditioning is not None)

    @property
    def observation_space(self) -> gym.spaces.Box:
        """Of one environment, without wrappers."""
        return observation_space(self.config, self.observation, self.conditioning is not None)

    @property
    def action_space(self) -> gym.spaces.Box:
        """Of one environment, without wrappers."""
        return action_space(self.config.space, self.normalize_actions)


@dataclass(frozen=True)
class BehindWrappers:
    """An agent for a bare environment, made of one that was trained behind wrappers.

    Attributes:
        agent: The agent.
        observation_space: Of the bare environment.
        action_space: Of the bare environment.
        see: From observations (B, O) to what the agent takes, in order.
        say: From what the agent gives to actions (B, A) of the Box, in order.
    """

    agent: Agent
    observation_space: gym.spaces.Box
    action_space: gym.spaces.Box
    see: tuple[Translate, ...]
    say: tuple[Translate, ...]

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[Any, Any]:
        """As the agent's, for bare observations and actions."""
        for function in self.see:
            observation = function(observation)
        actions, state = predicted(self.agent, observation, state, deterministic)
        for function in self.say:
            actions = function(actions)
        return actions, state


def fitted(agent: Agent, interface: Interface) -> Agent:
    """The agent as one for an environment.

    Args:
        agent: Whatever has SB3's `predict`. What says nothing about itself is taken as it is.
        interface: What the environment shows and takes.

    Returns:
        The agent itself; a baseline that is told the environment's observation and actions; or the agent behind the
        wrappers that it was trained with.

    Raises:
        TypeError: If it is no agent.
        ValueError: If it is for another supernet, observation or action space, or for wrappers that are not known here.
    """
    check_agent(agent)
    if isinstance(agent, BaselineAgent):
        return agent.for_environment(interface.config, interface.observation, interface.normalize_actions)
    chain = list(_chain(agent))
    see, say = _translations(chain)
    seen, taken = _bare_spaces(agent, chain, interface)
    if isinstance(seen, gym.spaces.Dict) and seen == dict_space(interface.layout, interface.observation_space):
        see, seen = [partial(take_apart, layout=interface.layout), *see], None
    if isinstance(taken, gym.spaces.MultiDiscrete):
        integers, known = multi_discrete(interface.config.space, interface.normalize_actions, int(taken.nvec.flat[-1]))
        if taken == known:
            say, taken = [*say, partial(_decoded, integers=integers, space=known)], None
    _check_spaces(agent, seen, taken, interface)
    if not chain:
        _check_last_seen(agent, interface)
    if not see and not say:
        return agent
    return BehindWrappers(agent, interface.observation_space, interface.action_space, tuple(see), tuple(say))


def _chain(agent: Agent) -> Iterator[Any]:
    """The environment that an agent brings, outermost wrapper first; nothing if it brings none."""
    get_env = getattr(agent, "get_env", None)
    env: Any = get_env() if callable(get_env) else None
    while env is not None:
        yield env
        if isinstance(env, VecEnvWrapper):
            env = env.venv
        elif isinstance(env, DummyVecEnv | SyncVectorEnv):
            env = env.envs[0]
        elif isinstance(env, PranceVecEnv):
            env = env.envs
        else:
            env = env.env if isinstance(env, gym.Wrapper | VectorWrapper) else None


def _translations(chain: list[Any]) -> tuple[list[Translate], list[Translate]]:
    """What wrappers do to observations and to actions, both in the order in which it is to be done.

    Raises:
        ValueError: If a wrapper changes them in a way that is not known here.

    Warns:
        UserWarning: If one of the user's own may do so without showing it.
    """
    see: list[Translate] = []
    say: list[Translate] = []
    for layer, inner in pairwise(chain):
        if isinstance(layer, VecNormalize):
            see = [layer.normalize_obs, *see] if layer.norm_obs else see
        elif isinstance(layer, DictObservation | VectorDictObservation):
            see = [partial(take_apart, layout=layer.layout), *see]
        elif isinstance(layer, INTEGERS):
            say = [*say, partial(_decoded, integers=layer.integers, space=_spaces(layer)[1])]
        elif isinstance(layer, CHANGING) or (
            isinstance(layer, gym.Wrapper | VectorWrapper | VecEnvWrapper) and _spaces(layer) != _spaces(inner)
        ):
            raise ValueError(
                f"The agent was trained behind {type(layer).__name__}, which changes what it sees or does; how is not "
                "known here. Pass an object whose predict(observation, ...) does the same and then asks the agent."
            )
        elif _may_change(layer):
            warnings.warn(
                f"The agent was trained behind {type(layer).__name__}; whether that changes observations or actions is "
                "not known here, and the agent is judged as if it did not. If it does, pass an object whose "
                "predict(observation, ...) does the same and then asks the agent.",
                stacklevel=4,
            )
    return see, say


def _may_change(layer: Any) -> bool:
    """Whether a wrapper of the user's own handles what passes through it, for whatever purpose."""
    if not isinstance(layer, gym.Wrapper | VectorWrapper | VecEnvWrapper):
        return False
    handling = (getattr(type(layer), name, None) for name in ("reset", "step", "step_async", "step_wait"))
    return any(f is not None and f.__module__.partition(".")[0] not in LIBRARIES for f in handling)


def _decoded(actions: Any, integers: IntegerActions, space: gym.Space[Any]) -> NDArray[np.float32]:
    return integers.decode(actions, np.shape(actions), space)


def _spaces(env: Any) -> tuple[Any, Any]:
    """Observation and action space of one lane."""
    if isinstance(env, VectorEnv):
        return env.single_observation_space, env.single_action_space
    return env.observation_space, env.action_space


def _bare_spaces(agent: Agent, chain: list[Any], interface: Interface) -> tuple[Any, Any]:
    """The spaces inside all known wrappers, None where an agent says nothing.

    Raises:
        ValueError: If the agent brings an environment with other settings, or notes another range of prices, which
            spaces need not show.
    """
    if not chain:
        noted, here = getattr(agent, "price_range", None), price_range(interface.conditioning)
        if isinstance(noted, tuple) and noted != here:
            raise ValueError(f"The agent was trained with cost_conditioning={noted} instead of {here}; {REMEDY}.")
        return getattr(agent, "observation_space", None), getattr(agent, "action_space", None)
    own = getattr(chain[-1], "settings", None)
    if isinstance(own, EnvSettings):
        theirs, ours = Interface.of(own), interface
        pairs = {
            "observation": (theirs.observation, ours.observation),
            "normalize_actions": (theirs.normalize_actions, ours.normalize_actions),
            "cost_conditioning": (price_range(theirs.conditioning), price_range(ours.conditioning)),
        }
        if differing := [f"{k}={a!r} instead of {b!r}" for k, (a, b) in pairs.items() if a != b]:
            raise ValueError(f"The agent brings an environment with {', '.join(differing)}; {REMEDY}.")
    return _spaces(chain[-1])


def _check_spaces(agent: Agent, seen: Any, taken: Any, interface: Interface) -> None:
    """Compares what is left of the agent's spaces with the environment's, None being nothing."""
    wanted = {"observation": interface.observation_space, "action": interface.action_space}
    fits = seen is None or seen == wanted["observation"]
    if isinstance(agent, PranceSelector):  # its authors' code set no bounds
        fits = seen.shape == wanted["observation"].shape
    if isinstance(taken, gym.spaces.Discrete | gym.spaces.MultiDiscrete):
        raise ValueError(
            f"The agent's actions are {taken}, and what these numbers stand for is in no file. Let it bring its "
            "environment, agent.set_env(make_sb3_env(..., wrappers=[...])), and evaluate it in Python."
        )
    if not fits or taken not in (None, wanted["action"]):
        raise ValueError(
            f"The agent was trained for observations {_brief(seen)} and actions {_brief(taken)}; these settings have "
            f"{_brief(wanted['observation'])} and {_brief(wanted['action'])}: {_remedy(seen, taken, interface)}."
        )


def _brief(space: Any) -> str:
    """A space on one line: a box by its extreme bounds."""
    if not isinstance(space, gym.spaces.Box):
        return "of any kind" if space is None else " ".join(str(space).split())
    return f"Box({space.low.min():g}, {space.high.max():g}, {space.shape})"


def _remedy(seen: Any, taken: Any, interface: Interface) -> str:
    """The settings whose spaces these are, if they can be told; otherwise what they may be."""
    conditioned = interface.conditioning is not None
    names = [n for n in list_observations() if observation_space(interface.config, n, conditioned) == seen]
    told = [] if seen is None or interface.observation in names else [f"observation={n!r}" for n in names[:1]]
    if taken == action_space(interface.config.space, not interface.normalize_actions):
        told.append(f"normalize_actions={not interface.normalize_actions}")
    return f"pass {' and '.join(told)}" if told else REMEDY


def _check_last_seen(agent: Agent, interface: Interface) -> None:
    """SB3's files hold what an agent saw last, but not the normaliser that it saw it through."""
    if isinstance(agent, Normalized):
        _check_normalizer(agent, interface)
        return
    last, box = getattr(agent, "_last_obs", None), interface.observation_space
    if not isinstance(last, np.ndarray) or last.shape[1:] != box.shape:
        return
    if ((last < box.low - SLACK) | (last > box.high + SLACK)).any():
        raise ValueError(
            "What the agent saw last is no observation of this environment: it was trained behind a normaliser, such "
            "as VecNormalize. Put what VecNormalize.save wrote beside its file, as vecnormalize.pkl; or, in Python, "
            "let it bring its environment: agent.set_env(VecNormalize.load(FILE, make_sb3_env(...)))."
        )


def _check_normalizer(agent: Normalized, interface: Interface) -> None:
    """What lies beside a file may be another agent's. A coming decision is one 1 among zeros, and nothing else is that
    once it is normalised."""
    place, last, keys = interface.layout.get("decision"), agent.model._last_obs, agent.normalizer.norm_obs_keys
    if isinstance(last, dict):
        coming = last.get("decision") if "decision" in (keys or last) else None
    else:
        coming = None if place is None or last is None else last[:, place]
    if coming is None or not agent.normalizer.norm_obs or not coming.size:
        return
    if ((coming == 0) | (coming == 1)).all() and (coming.sum(1) == 1).all():
        raise ValueError(
            "What the agent saw last was not normalised, so that the vecnormalize.pkl beside its file is another's; "
            "keep each of them in a folder of its own."
        )
