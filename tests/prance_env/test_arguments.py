"""Values of all kinds for every argument of an environment: they work, or a sentence names argument and value."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from helpers import ENV_ID

from prance_env import EnvSettings, PranceVectorEnv, RewardConfig, make_sb3_env
from prance_env.images.config import DatasetConfig
from prance_env.wrappers import MultiDiscreteActions
from train.policies.settings import AgentTraining

VALUES = (
    *("x", None, ["cls"], {"a": 1}, True, math.nan, math.inf, -1, 10**400, Path("nowhere"), b"x", 1.5, object),
    *(np.float32(0.5), np.int64(3), np.bool_(True), np.array(0.5), np.array([1, 2]), np.array("x")),
    *(torch.tensor(1), torch.device("cpu")),
)
TAKERS: dict[str, Callable[[Any], object]] = {
    **{f.name: lambda v, name=f.name: EnvSettings(**{name: v}) for f in fields(EnvSettings)},
    **{f"reward.{f.name}": lambda v, name=f.name: EnvSettings(reward={name: v}) for f in fields(RewardConfig)},
    **{
        f"dataset.{f.name}": lambda v, name=f.name: EnvSettings(dataset={"name": "digits", name: v})
        for f in fields(DatasetConfig)
    },
    **{n: lambda v, name=n: PranceVectorEnv(**{name: v}) for n in ("num_envs", "autoreset_mode", "output")},
    "n_envs": lambda v: make_sb3_env(n_envs=v),
    **{n: lambda v, name=n: make_sb3_env(n_envs=1, **{name: v}) for n in ("seed", "wrappers")},
    "keep_levels": lambda v: MultiDiscreteActions(gym.make(ENV_ID), keep_levels=v),
}


@pytest.mark.parametrize("argument", TAKERS)
def test_a_value_works_or_is_refused_by_name(argument: str) -> None:
    name, silent = argument.rpartition(".")[2], []
    for value in VALUES:
        try:
            TAKERS[argument](value)
        except (ValueError, TypeError, FileNotFoundError) as e:
            named = "dataset" if argument == "dataset.name" else name
            if f"{named}=" not in str(e) and f"no use for ['{name}']" not in str(e):
                silent.append((value, e))
        except Exception as e:
            silent.append((value, e))
    assert silent == []


def test_paths_and_numbers_of_other_libraries_are_pythons_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = EnvSettings(
        reward={"macs_weight": np.float32(0.5), "token_weight": np.int64(3)},
        cost_conditioning=(np.float32(0.5), np.int64(1)),
        cache_dir=tmp_path,  # type: ignore[arg-type]
        cache_mb=np.array(2.5),  # type: ignore[arg-type]
        normalize_actions=np.bool_(False),  # type: ignore[arg-type]
        device=torch.device("cpu"),  # type: ignore[arg-type]
    )
    given = (settings.reward, settings.cost_conditioning, settings.cache_dir, settings.cache_mb)
    assert given == ({"macs_weight": 0.5, "token_weight": 3}, (0.5, 1), str(tmp_path), 2.5)
    assert (settings.normalize_actions, settings.device) == (False, "cpu")
    assert EnvSettings(cost_conditioning=np.array([0.1, 0.5])).cost_conditioning == [0.1, 0.5]  # type: ignore[arg-type]
    (tmp_path / "digits" / "one").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert EnvSettings(dataset=Path("digits")).dataset == str(tmp_path / "digits")  # type: ignore[arg-type]
    assert EnvSettings(dataset={"name": Path("digits")}).dataset == {"name": str(tmp_path / "digits")}
    training = AgentTraining(environment={"cache_dir": tmp_path}, macs_weight=np.float32(0.5))  # type: ignore[arg-type]
    assert (training.environment, training.macs_weight) == ({"cache_dir": str(tmp_path)}, 0.5)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"normalize_actions": "no"}, "normalize_actions='no' must be True or False"),
        ({"normalize_actions": None}, "normalize_actions=None must be True or False"),
        ({"cache_mb": "1GB"}, "cache_mb='1GB' must be a valid number"),
        ({"num_workers": 10**6}, "num_workers=1000000 must lie in 0..1024"),
        ({"reward": {"macs_weight": True}}, "reward macs_weight=True must be a valid number"),
        ({"cost_conditioning": (True, 2)}, "cost_conditioning=(True, 2) must be (low, high)"),
        ({"dataset": {"name": "digits", "crop_pct": "0.9"}}, "crop_pct='0.9' must be a valid number"),
    ],
)
def test_a_wrong_type_is_said(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        gym.make(ENV_ID, **arguments)


@pytest.mark.parametrize(
    "make",
    [lambda: make_sb3_env(num_envs=8), lambda: gym.make_vec(ENV_ID, n_envs=8), lambda: gym.make(ENV_ID, num_envs=8)],  # type: ignore[call-arg]
)
def test_the_number_of_environments_by_the_other_name_is_understood(make: Callable[[], object]) -> None:
    with pytest.raises(TypeError, match=r"num_envs of gym\.make_vec and n_envs of make_sb3_env"):
        make()


def test_an_id_is_a_text() -> None:
    for take in (make_sb3_env, EnvSettings.from_id):
        with pytest.raises(ValueError, match="env_id=None must be a text"):
            take(None)  # type: ignore[arg-type]
