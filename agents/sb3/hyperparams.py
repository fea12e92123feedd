"""Hyper-parameters of Stable-Baselines3's algorithms as YAML files, in the format of rl-baselines3-zoo."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.utils import LinearSchedule

PRESETS = Path(__file__).parent / "presets"

# The package that holds each algorithm.
ALGORITHMS = {
    "ppo": "stable_baselines3",
    "a2c": "stable_baselines3",
    "sac": "stable_baselines3",
    "td3": "stable_baselines3",
    "tqc": "sb3_contrib",
    "trpo": "sb3_contrib",
}
SCHEDULES = ("learning_rate", "clip_range", "clip_range_vf")
# What a preset says about the run rather than about the algorithm.
OF_THE_RUN = ("policy", "n_envs", "n_timesteps", "env_kwargs")
OF_THE_NOISE = ("noise_type", "noise_std")


class Preset(NamedTuple):
    """One entry of a preset file, checked.

    Attributes:
        hyperparams: Arguments of the algorithm's class, as in the file.
        n_envs: Environments that they were chosen for.
        n_timesteps: Decisions that they were chosen for.
    """

    hyperparams: dict[str, Any]
    n_envs: int
    n_timesteps: int


def algorithm_class(algorithm: str) -> type[BaseAlgorithm]:
    """The class of an algorithm.

    Raises:
        ValueError: If the algorithm is unknown.
        ModuleNotFoundError: If it is one of sb3-contrib's, and that is not installed.
    """
    if algorithm not in ALGORITHMS:
        raise ValueError(f"algorithm={algorithm!r} is unknown; choose one of {sorted(ALGORITHMS)}.")
    try:
        module = importlib.import_module(ALGORITHMS[algorithm])
    except ModuleNotFoundError as e:
        if e.name != ALGORITHMS[algorithm]:
            raise
        raise ModuleNotFoundError(
            f"algorithm={algorithm!r} is one of sb3-contrib's, which is not installed: "
            "pip install 'prance-env[contrib]'.",
            name=e.name,
        ) from e
    return getattr(module, algorithm.upper())


def read_preset(algorithm: str, path: str | Path | None = None, env_id: str = "default") -> Preset:
    """Reads a preset.

    Args:
        algorithm: Key of `ALGORITHMS`.
        path: YAML file in rl-zoo's format, without code to evaluate; None is the one of this package.
        env_id: Entry of the file; "default" is taken if it has none for this environment.

    Raises:
        ValueError: If the file is damaged or a key is unknown.
        FileNotFoundError: If there is no such file.
        ModuleNotFoundError: As `algorithm_class`.
    """
    cls = algorithm_class(algorithm)
    path = PRESETS / f"{algorithm}.yml" if path is None else Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; pass a YAML file of hyper-parameters in rl-zoo's format.")
    try:
        entries = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        raise ValueError(f"{path} is no YAML file: {' '.join(str(e).split())}") from e
    entry = None
    if isinstance(entries, dict):
        entry = entries.get(env_id.removeprefix("prance_env:"), entries.get("default"))
    if not isinstance(entry, dict):
        raise ValueError(f"{path} must hold hyper-parameters under {env_id!r} or 'default'.")
    hyperparams = {k: v for k, v in entry.items() if k not in OF_THE_RUN}
    if entry.get("policy", "MlpPolicy") != "MlpPolicy":
        raise ValueError(f"{path}: policy={entry['policy']!r} must be 'MlpPolicy': observations are vectors.")
    n_envs, n_timesteps = (entry.get(key) for key in ("n_envs", "n_timesteps"))
    if not all(isinstance(n, int | float) and n >= 1 and n == int(n) for n in (n_envs, n_timesteps)):
        raise ValueError(f"{path}: n_envs={n_envs!r} and n_timesteps={n_timesteps!r} must be whole numbers >= 1.")
    try:
        check_hyperparams(cls, hyperparams)
    except ValueError as e:
        raise ValueError(f"{path}: {e}") from e
    return Preset(hyperparams, int(n_envs), int(n_timesteps))  # type: ignore[arg-type]


def preset_text(preset: Preset, env_kwargs: dict[str, Any]) -> str:
    """A preset as the text of a file that `read_preset` and rl-zoo take.

    Args:
        preset: The preset.
        env_kwargs: Arguments of the environment that rl-zoo makes.
    """
    of_the_run = {"n_envs": preset.n_envs, "n_timesteps": preset.n_timesteps, "policy": "MlpPolicy"}
    entry = {**of_the_run, "env_kwargs": env_kwargs, **preset.hyperparams}
    return yaml.safe_dump({"default": entry}, sort_keys=False)


def check_hyperparams(cls: type[BaseAlgorithm], hyperparams: dict[str, Any]) -> None:
    """Checks the names of hyper-parameters.

    Raises:
        ValueError: If the class of the algorithm, or that of its policy, takes no argument of this name.
    """
    known = {*_parameters(cls), *OF_THE_NOISE} - {"policy", "env"}
    if "action_noise" not in known:
        known -= {*OF_THE_NOISE}
    if unknown := sorted(set(hyperparams) - known):
        raise ValueError(f"{cls.__name__} takes no {unknown}; it takes {sorted(known)}.")
    policy_kwargs = hyperparams.get("policy_kwargs") or {}
    if not isinstance(policy_kwargs, dict):
        raise ValueError(f"policy_kwargs={policy_kwargs!r} must be a mapping; code is not evaluated.")
    policy = cls.policy_aliases["MlpPolicy"]
    known = set(_parameters(policy)) - {"observation_space", "action_space", "lr_schedule"}
    if unknown := sorted(set(policy_kwargs) - known):
        raise ValueError(f"{policy.__name__} takes no policy_kwargs {unknown}; it takes {sorted(known)}.")


def constructor_arguments(hyperparams: dict[str, Any], action_size: int) -> dict[str, Any]:
    """Makes the objects that YAML has only names for: schedules ("lin_0.001" falls to 0) and action noise.

    Raises:
        ValueError: If a schedule or the noise is unknown.
    """
    arguments = {k: v for k, v in hyperparams.items() if k not in OF_THE_NOISE}
    for key in SCHEDULES:
        if isinstance(value := arguments.get(key), str):
            arguments[key] = _linear(key, value)
    if isinstance(arguments.get("train_freq"), list):
        arguments["train_freq"] = tuple(arguments["train_freq"])
    noise = hyperparams.get("noise_type")
    if noise is not None and "action_noise" not in arguments:
        std = hyperparams.get("noise_std")
        if noise != "normal" or not isinstance(std, int | float) or std < 0:
            raise ValueError(f"noise_type={noise!r} with noise_std={std!r} must be 'normal' with a number >= 0.")
        arguments["action_noise"] = NormalActionNoise(np.zeros(action_size), np.full(action_size, float(std)))
    return arguments


def _linear(key: str, text: str) -> LinearSchedule:
    kind, _, start = text.partition("_")
    try:
        if kind == "lin":
            return LinearSchedule(float(start), 0.0, 1.0)
    except ValueError:
        pass
    raise ValueError(f"{key}={text!r} must be a number, or such as lin_0.001 for one that falls to 0 linearly.")


def _parameters(cls: type) -> list[str]:
    return [name for name in inspect.signature(cls).parameters if not name.startswith("_")]
