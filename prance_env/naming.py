"""The names that callers use: of environments, and of their arguments."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec

HOW_MANY = ("num_envs", "n_envs")
OF_A_BATCH = ("autoreset_mode", "output")


def check_names(arguments: Iterable[str], known: Sequence[str]) -> None:
    """Checks that an environment has these arguments.

    Raises:
        TypeError: If it has not; the message names the first such, and what is probably meant.
    """
    for name in arguments:
        if name in known:
            continue
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        if name in HOW_MANY:  # SB3 and Gymnasium disagree
            hint = "; how many environments there are is num_envs of gym.make_vec and n_envs of make_sb3_env."
        elif name in OF_A_BATCH:
            hint = " here: it is one of gym.make_vec, and make_sb3_env sets it itself."
        raise TypeError(f"An environment takes no argument {name!r}{hint} It takes {', '.join(known)}.")


def spec_of(env_id: Any) -> EnvSpec:
    """What Gymnasium knows of an id, with or without "prance_env:" in front.

    Raises:
        ValueError: If it is no text.
        gymnasium.error.Error: If it is unknown.
    """
    if not isinstance(env_id, str):
        raise ValueError(f"env_id={env_id!r} must be a text such as 'Prance-Digits-v0'; `prance list` shows the ids.")
    return gym.spec(env_id.removeprefix("prance_env:"))


def check_bare(spec: EnvSpec) -> None:
    """Checks that an id stands for an environment as it is, which is all that a native batch can be.

    Raises:
        ValueError: If it has a time limit or wrappers, which only `gym.make` applies.
    """
    if spec.max_episode_steps is not None or spec.additional_wrappers:
        raise ValueError(
            f"{spec.id!r} has a time limit or wrappers, which the native batch does not apply; use SB3's make_vec_env, "
            "or register it without."
        )
