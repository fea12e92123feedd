"""Models in the zip files of Stable-Baselines3, whose algorithm the file does not name."""

from __future__ import annotations

import json
import pickle
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecNormalize

from supernet.archives import DAMAGED, check_archive

from .hyperparams import algorithm_class

NORMALIZER = "vecnormalize.pkl"
# A hyper-parameter that only this algorithm has, and the package of its policies; the first that fits.
SIGNS = (
    ("trpo", "cg_max_steps", "stable_baselines3.common.policies"),
    ("ppo", "clip_range", "stable_baselines3.common.policies"),
    ("a2c", "gae_lambda", "stable_baselines3.common.policies"),
    ("tqc", "top_quantiles_to_drop_per_net", "sb3_contrib.tqc.policies"),
    ("sac", "target_entropy", "stable_baselines3.sac.policies"),
    ("td3", "target_policy_noise", "stable_baselines3.td3.policies"),
)


@dataclass(frozen=True)
class Normalized:
    """A model that looks through the normaliser that it was trained behind.

    Attributes:
        model: The model.
        normalizer: With the statistics of its training, which stay as they are.
        file: Where these were read.
    """

    model: BaseAlgorithm
    normalizer: VecNormalize
    file: Path

    @property
    def observation_space(self) -> gym.Space[Any]:
        """The model's."""
        return self.model.observation_space

    @property
    def action_space(self) -> gym.Space[Any]:
        """The model's."""
        return self.model.action_space

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[Any, Any]:
        """As the model's, for observations that are not normalised."""
        return self.model.predict(self.normalizer.normalize_obs(observation), state, episode_start, deterministic)


def pickles(path: Path) -> list[Path]:
    """What of a model's zip file and its normaliser is there: both are unpickled by `load_model`."""
    return [file for file in (path, _normalizer(path)) if file.is_file()]


def _normalizer(path: Path) -> Path:
    """Where the normaliser of a model's zip file is, if there is one: beside it, or where rl-baselines3-zoo puts it."""
    beside, of_the_zoo = path.parent / NORMALIZER, path.with_suffix("") / NORMALIZER
    return of_the_zoo if of_the_zoo.is_file() and not beside.is_file() else beside


def load_model(path: Path) -> BaseAlgorithm | Normalized:
    """The model in a zip file, looking through its `vecnormalize.pkl` if there is one; both are pickles.

    The normaliser of `LOG/NAME.zip` is `LOG/vecnormalize.pkl` or, as rl-baselines3-zoo has it,
    `LOG/NAME/vecnormalize.pkl`.

    Raises:
        ValueError: If it is no such file, of an algorithm that is not known here, or of integer actions, whose meaning
            it does not hold.
        ModuleNotFoundError: If it is of sb3-contrib, which is not installed.
    """
    algorithm = _algorithm(path)
    check_archive(path)
    model = algorithm_class(algorithm).load(path, device="cpu")
    beside = _normalizer(path)
    if not beside.is_file():
        return model
    try:
        normalizer = pickle.loads(beside.read_bytes())
    except Exception as e:  # unpickling may raise anything
        raise ValueError(f"{beside} is not what VecNormalize.save wrote ({type(e).__name__}: {e}).") from e
    if not isinstance(normalizer, VecNormalize):
        raise ValueError(f"{beside} holds a {type(normalizer).__name__}; expected what VecNormalize.save wrote.")
    return Normalized(model, normalizer, beside)


def _algorithm(path: Path) -> str:
    """Key of `ALGORITHMS`, by what the file says of hyper-parameters and policy; nothing is unpickled."""
    try:
        with zipfile.ZipFile(path) as archive:
            data = json.loads(archive.read("data"))
        module = data["policy_class"]["__module__"]
        kind = str(data["action_space"][":type:"])
    except (*DAMAGED, KeyError, TypeError, ValueError) as e:
        raise ValueError(f"{path} is not a model of Stable-Baselines3 ({e!r}); save it with model.save.") from e
    if "Discrete" in kind and "Multi" not in kind:
        raise ValueError(
            f"{path} is a model whose actions are single integers, and what they stand for is not in the file. Python: "
            "DQN.load(FILE, env=make_sb3_env(..., wrappers=[VectorDiscreteActions])), then train.evaluate.evaluate."
        )
    for name, sign, package in SIGNS:
        if sign in data and module == package:
            return name
    raise ValueError(
        f"{path} is a model of an algorithm that is not known here (its policy is in {module}); known are "
        f"{[name for name, _, _ in SIGNS]}. Load it in Python, and pass the model to train.evaluate.evaluate."
    )
