"""Hyper-parameters of Stable-Baselines3's algorithms as YAML files, in the format of rl-baselines3-zoo."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import yaml
from annotated_types import Ge, Gt, Le, MultipleOf
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.utils import LinearSchedule
from typing_extensions import Required, TypedDict

from supernet.reading import OPEN, check_value, checked, read_yaml

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


Positive = Annotated[int, Ge(1)]
Fraction = Annotated[float, Ge(0), Le(1)]
Whole = Annotated[float, Ge(1), MultipleOf(1)]
Schedule = Annotated[float, Ge(0)] | str


class Entry(TypedDict, total=False):
    """What an entry of a preset file may hold, beside what the algorithm's class takes."""

    n_envs: Required[Whole]
    n_timesteps: Required[Whole]
    policy: Literal["MlpPolicy"]
    env_kwargs: dict[str, Any]
    learning_rate: Schedule
    clip_range: Schedule
    n_steps: Positive
    n_epochs: Positive
    batch_size: Positive
    buffer_size: Positive
    learning_starts: Annotated[int, Ge(0)]
    gradient_steps: Annotated[int, Ge(-1)]
    train_freq: Positive | list[int | str]
    gamma: Fraction
    tau: Fraction
    gae_lambda: Fraction
    max_grad_norm: Annotated[float, Gt(0)]
    noise_type: str
    noise_std: Annotated[float, Ge(0)]
    policy_kwargs: dict[str, Any] | None


Entry.__pydantic_config__ = OPEN  # type: ignore[attr-defined]


class Preset(NamedTuple):
    """One entry of a preset file, checked.

    Attributes:
        hyperparams: Arguments of the algorithm's class, as in the file.
        n_envs: Environments that they were chosen for.
        n_timesteps: Decisions that they were chosen for.
        env_kwargs: Arguments of the environment that they were chosen for.
    """

    hyperparams: dict[str, Any]
    n_envs: int
    n_timesteps: int
    env_kwargs: dict[str, Any] = {}  # noqa: RUF012


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
            f"algorithm={algorithm!r} is one of sb3-contrib's, which is not installed: pip install -e '.[contrib]'.",
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
    remedy = "correct it; presets of this package show the format"
    entries = read_yaml(path, dict[str, Any], remedy)
    name = next((n for n in (env_id.removeprefix("prance_env:"), "default") if isinstance(entries.get(n), dict)), None)
    if name is None:
        raise ValueError(f"{path} must hold hyper-parameters under {env_id!r} or 'default'.")
    entry = checked(entries[name], Entry, f"{path}: {name}", remedy)
    hyperparams: dict[str, Any] = {k: v for k, v in entry.items() if k not in OF_THE_RUN}
    try:
        check_hyperparams(cls, hyperparams)
        check_types(cls, {k: v for k, v in hyperparams.items() if k not in (*SCHEDULES, "train_freq")})
        check_types(cls.policy_aliases["MlpPolicy"], hyperparams.get("policy_kwargs") or {})
    except ValueError as e:
        raise ValueError(f"{path}: {e}") from e
    return Preset(hyperparams, int(entry["n_envs"]), int(entry["n_timesteps"]), entry.get("env_kwargs", {}))


def preset_text(preset: Preset, env_kwargs: dict[str, Any]) -> str:
    """A preset as the text of a file that `read_preset` and rl-zoo take.

    Args:
        preset: The preset.
        env_kwargs: Arguments of the environment that rl-zoo makes.
    """
    of_the_run = {"n_envs": preset.n_envs, "n_timesteps": preset.n_timesteps, "policy": "MlpPolicy"}
    entry = {**of_the_run, "env_kwargs": env_kwargs, **preset.hyperparams}
    return yaml.safe_dump({"default": entry}, sort_keys=False)


def merged(hyperparams: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Hyper-parameters with some of them changed; of mappings (`policy_kwargs`) only the entries that are named."""
    changed = dict(hyperparams)
    for name, value in changes.items():
        changed[name] = {**(changed.get(name) or {}), **value} if isinstance(value, dict) else value
    return changed


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


def check_types(cls: type, arguments: Mapping[str, Any]) -> None:
    """Checks plain data against the annotations of a class's arguments, where these are no names of types.

    Raises:
        ValueError: If one is of another type; the message says which.
    """
    parameters = inspect.signature(cls).parameters
    for name, value in arguments.items():
        if name in parameters and not isinstance(kind := parameters[name].annotation, str):
            check_value(value, kind, f"{cls.__name__}: {name}")


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
