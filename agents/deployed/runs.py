"""What a run folder of `prance train agent` says: the environment of its agent, and the agent."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from prance_env.settings import EnvSettings
from supernet.files import WEIGHTS
from supernet.staging import finish_commit

from ..prance_ppo.algorithm import PrancePPO
from ..protocol import Agent
from ..sb3.saved import load_model

CONFIG = "config.yml"
# What is of the machine or of the training alone.
_OTHERS = (
    "device",
    "cache_mb",
    "cache_dir",
    "num_workers",
    "render_mode",
    "reward",
    "cost_conditioning",
    "split",
)


def settings_of_run(folder: str | Path, split: str = "test", **changes: Any) -> EnvSettings:
    """The environment that an agent was trained in, on another split and on the CPU.

    Args:
        folder: Of `prance train agent`.
        split: Images.
        **changes: Arguments of the environment that are to be others, such as `checkpoint` or `dataset`; None: as they
            were.

    Raises:
        FileNotFoundError: If the folder is no run folder.
        ValueError: If its settings are of no environment.
    """
    path = Path(folder) / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is not a run folder: it holds no {CONFIG}.")
    noted = yaml.safe_load(path.read_text())
    if not isinstance(noted, dict) or "env" not in noted:
        raise ValueError(f"{path} is not of a run of `prance train agent`: it names no environment.")
    names = {f.name for f in fields(EnvSettings)} - {*_OTHERS}
    arguments = {k: v for k, v in noted.items() if k in names and v is not None}
    arguments |= {k: v for k, v in changes.items() if v is not None}
    price = noted.get("macs_weight")
    conditioning = tuple(price[:2]) if isinstance(price, list) else None
    return EnvSettings.from_id(noted["env"], **arguments, split=split, cost_conditioning=conditioning)


def agent_of_run(folder: str | Path) -> Agent:
    """The trained agent in a run folder; Stable-Baselines3's files hold pickled objects, so load only what you trust.

    Raises:
        FileNotFoundError: If it holds none, or one of another package's algorithm.
    """
    folder = Path(folder)
    finish_commit(folder)
    if (folder / "model" / WEIGHTS).is_file():
        return PrancePPO.load(folder / "model")
    if (folder / "model.zip").is_file():
        return load_model(folder / "model.zip")
    raise FileNotFoundError(
        f"{folder} holds neither model.zip nor a folder model/ of PrancePPO: its training is not done, or its "
        "algorithm is of another package. Load the agent there, and call AdaptiveViT.from_settings(settings, agent)."
    )
