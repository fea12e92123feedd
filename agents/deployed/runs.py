"""What a run folder of `prance train agent` says: the environment of its agent, and the agent."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from prance_env.settings import EnvSettings
from supernet.files import WEIGHTS
from supernet.reading import read_yaml
from supernet.staging import finish_commit

from ..prance_ppo.algorithm import PrancePPO
from ..protocol import Agent
from ..sb3.policy_file import POLICY, load_policy
from ..sb3.saved import load_model
from .files import RUN

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
    path = Path(folder) / RUN
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is not a run folder: it holds no {RUN}.")
    noted = read_yaml(path, dict[str, Any], "correct it, or train again")
    if "env" not in noted:
        raise ValueError(f"{path} is not of a run of `prance train agent`: it names no environment.")
    names = {f.name for f in fields(EnvSettings)} - {*_OTHERS}
    arguments = {k: v for k, v in noted.items() if k in names and v is not None}
    arguments |= {k: v for k, v in changes.items() if v is not None}
    price = noted.get("macs_weight")
    conditioning = tuple(price[:2]) if isinstance(price, list) else None
    return EnvSettings.from_id(noted["env"], **arguments, split=split, cost_conditioning=conditioning)


def agent_of_run(folder: str | Path, trust: bool = False) -> Agent:
    """The trained agent in a run folder.

    Args:
        folder: Of `prance train agent`.
        trust: Whether to unpickle Stable-Baselines3's `model.zip` where no `policy.safetensors` is beside it.

    Raises:
        FileNotFoundError: If it holds none, or one of another package's algorithm.
        ValueError: If it would have to be unpickled, and `trust` is False.
    """
    folder = Path(folder)
    finish_commit(folder)
    if (folder / "model" / WEIGHTS).is_file():
        return PrancePPO.load(folder / "model")
    if (folder / POLICY).is_file():
        return load_policy(folder / POLICY)
    if (folder / "model.zip").is_file():
        if not trust:
            raise ValueError(
                f"{folder / 'model.zip'} holds pickled objects, which can run any code when they are read, and no "
                f"{POLICY} is beside it. Pass trust=True (--trust) if you know where it comes from."
            )
        return load_model(folder / "model.zip")
    raise FileNotFoundError(
        f"{folder} holds neither model.zip nor a folder model/ of PrancePPO: its training is not done, or its "
        "algorithm is of another package. Load the agent there, and call AdaptiveViT.from_settings(settings, agent)."
    )


def check_here(settings: EnvSettings, folder: str | Path) -> None:
    """Refuses images that a run folder names and that are not on this machine: a file is not to have anything fetched.

    Raises:
        ValueError: If they would be downloaded, or read from an address.
    """
    if settings.dataset_config.fetches:
        raise ValueError(
            f"{Path(folder) / RUN} names dataset={settings.dataset!r}, which would be fetched from the network; if "
            "you want that, say so yourself: dataset=..., or images=0 for no calibration."
        )
