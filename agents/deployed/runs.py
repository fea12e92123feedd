"""What a run folder of `prance train agent` says: the environment of its agent, and the agent."""

from __future__ import annotations

import os
import warnings
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from prance_env.images.config import CLASSES, DatasetConfig
from prance_env.settings import EnvSettings
from supernet.files import WEIGHTS, write_text
from supernet.reading import read_text, read_yaml
from supernet.staging import finish_commit

from ..prance_ppo.algorithm import PrancePPO
from ..protocol import Agent
from ..sb3.policy_file import POLICY, load_policy
from ..sb3.saved import load_model
from .files import RUN
from .pictures import class_names

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
            were. A `dataset` that is a text says where the images lie now: how they are brought to size, and what
            their labels are, stays as it was. A dict replaces all of it.

    Raises:
        FileNotFoundError: If the folder is no run folder.
        ValueError: If its settings are of no environment.
    """
    return _settings(_noted(folder), split, changes)


def _settings(noted: dict[str, Any], split: str, changes: dict[str, Any]) -> EnvSettings:
    names = {f.name for f in fields(EnvSettings)} - {*_OTHERS}
    arguments = {k: v for k, v in noted.items() if k in names and v is not None}
    changed = changes | {"dataset": _moved(noted.get("dataset"), changes.get("dataset"))}
    arguments |= {k: v for k, v in changed.items() if v is not None}
    price = noted.get("macs_weight")
    conditioning = tuple(price[:2]) if isinstance(price, list) else None
    return EnvSettings.from_id(noted["env"], **arguments, split=split, cost_conditioning=conditioning)


def _moved(noted: Any, place: Any) -> Any:
    """A noted data set whose images lie elsewhere now; None: where they lay."""
    if place is None or not isinstance(noted, dict) or not isinstance(place, str | Path):
        return noted if place is None else place
    return asdict(replace(DatasetConfig.from_value(noted).of_folder(), name=str(place), root=None))


def _noted(folder: str | Path) -> dict[str, Any]:
    """What a run folder says of its environment, and more."""
    path = Path(folder) / RUN
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is not a run folder: it holds no {RUN}.")
    noted = read_yaml(path, dict[str, Any], "correct it, or train again")
    if "env" not in noted:
        raise ValueError(f"{path} is not of a run of `prance train agent`: it names no environment.")
    return noted


@dataclass(frozen=True)
class Deployed:
    """What is said of the network and the pictures of an agent.

    Attributes:
        settings: The environment; of a run on validation images, or on bundled ones where no images are asked for, as
            those of the run need not be there then.
        dataset: How pictures are prepared, and what they may show.
        run: Folder in which the training has noted the names of the classes; None: there is none.
    """

    settings: EnvSettings
    dataset: DatasetConfig
    run: Path | None = None

    @classmethod
    def of_run(cls, folder: str | Path, checkpoint: str | None, dataset: Any, images: bool) -> Deployed:
        """What a run folder says.

        Args:
            folder: Of `prance train agent`.
            checkpoint: Another supernet; None: that of the training.
            dataset: Where the images lie now; None: where they lay.
            images: Whether images are asked for.

        Raises:
            FileNotFoundError: If the folder is no run folder.
            ValueError: If its settings are of no environment, or the images are asked for and not there.
        """
        noted = _noted(folder)
        own = noted.get("dataset")
        unseen = None if images or dataset is not None or own is None else DatasetConfig.from_value(own)
        if unseen is not None and unseen.prefix is None and not os.path.isabs(unseen.name):
            unseen = None  # a name, which means something where it is registered only
        place = dataset if unseen is None else {"name": "digits"}
        settings = _settings(noted, "val", {"checkpoint": checkpoint, "dataset": place})
        known = settings.dataset_config if unseen is None else unseen
        return cls(settings, known, Path(folder))

    def class_names(self) -> tuple[str, ...] | None:
        """Names of the classes, by label: the supernet's own, those that the training noted, or the data set's now."""
        config = self.settings.config()
        classes = config.num_classes
        if config.class_names:
            return config.class_names
        if self.run is not None and (self.run / CLASSES).is_file():
            noted = read_text(self.run / CLASSES, "save it as UTF-8, one class a line").removesuffix("\n").split("\n")
            if len(noted) == classes:
                return tuple(noted)
        return class_names(self.dataset, classes, self.settings.split)

    def note_class_names(self, run: Path) -> None:
        """Writes the names that the data set has now into a run folder that has none, if each is a line of text."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # whoever deploys the agent is told how to name its classes
            names = None if (run / CLASSES).exists() else self.class_names()
        if names is not None and all(name.isprintable() for name in names):
            write_text(run / CLASSES, "\n".join(names) + "\n")


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
