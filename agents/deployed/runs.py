"""What a run folder of `prance train agent` says: the environment of its agent, and the agent."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from itertools import chain
from pathlib import Path
from typing import Any

from prance_env.images.config import CLASSES, DatasetConfig
from prance_env.images.labels import labels_of
from prance_env.images.loading import list_datasets
from prance_env.settings import EnvSettings
from supernet.files import WEIGHTS, write_text
from supernet.reading import read_text, read_yaml
from supernet.staging import finish_commit

from ..prance_ppo.algorithm import PrancePPO
from ..protocol import Agent
from ..sb3.policy_file import POLICY, load_policy
from ..sb3.saved import load_model
from .files import RUN
from .pictures import class_names, known_names

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
    return _settings(Path(folder), _noted(folder), split, changes)


def _settings(run: Path, noted: dict[str, Any], split: str, changes: dict[str, Any]) -> EnvSettings:
    names = {f.name for f in fields(EnvSettings)} - {*_OTHERS}
    arguments = {k: v for k, v in noted.items() if k in names and v is not None}
    changed = changes | {"dataset": moved_dataset(run, noted.get("dataset"), changes.get("dataset"))}
    arguments |= {k: v for k, v in changed.items() if v is not None}
    price = noted.get("macs_weight")
    conditioning = tuple(price[:2]) if isinstance(price, list) else None
    return EnvSettings.from_id(noted["env"], **arguments, split=split, cost_conditioning=conditioning)


def moved_dataset(run: Path, noted: Any, place: Any) -> Any:
    """A data set that a run has noted, whose images may lie elsewhere now.

    Args:
        run: Folder of `prance train agent`.
        noted: What it says of its data set; None: nothing.
        place: Where the images lie now, as a text: how they are brought to size stays as it was, and so does what their
            labels are. Else all of a `DatasetConfig`, which replaces the noted one; None: they lie where they lay.
    """
    noted = _with_own_names(run, noted)
    if place is None or noted is None or not isinstance(place, str | Path):
        return noted if place is None else place
    then, known = DatasetConfig.from_value(noted).of_folder(), list_datasets()
    now = replace(then, name=str(place), root=None)
    # How another kind of source is read has no meaning here, but labels are not to change unasked.
    kept = {"name", "class_map", *now.takes(known)}
    now = DatasetConfig(**{k: v for k, v in asdict(now).items() if k in kept})
    if now.absolute(known) == then.absolute(known):
        return noted
    if now.class_map is None and now.prefix is None and now.name not in known and _labels_differ(run, now.name):
        now = replace(now, class_map=str((run / CLASSES).absolute()))
    return place if now == DatasetConfig.from_value(place) else asdict(now)


def _with_own_names(run: Path, noted: Any) -> Any:
    """A noted data set whose labels are by names that another run had noted by those that this one has, the same."""
    class_map = noted.get("class_map") if isinstance(noted, dict) else None
    if not isinstance(class_map, str) or Path(class_map).name != CLASSES or not (run / CLASSES).is_file():
        return noted
    # The other run may be gone by now, or another one may be there.
    others = is_noted(class_map) or not Path(class_map).expanduser().exists()
    return {**noted, "class_map": str((run / CLASSES).absolute())} if others else noted


def _labels_differ(run: Path, folder: str) -> bool:
    """Whether classes by alphabet in any split of a folder are others than the training has noted."""
    from prance_env.images.folders import SPLIT_FOLDERS, labelled_classes

    names, root = noted_names(run), Path(folder).expanduser()
    if not names or len(set(names)) < len(names) or not root.is_dir():
        return False
    found = [classes for split in SPLIT_FOLDERS if (classes := labelled_classes(root, split))]
    if {*names}.isdisjoint(chain(*found)) and names == _names_of_supernet(run):
        return False  # earlier versions noted these whatever the labels were
    return any(classes != names for classes in found)


def _names_of_supernet(run: Path) -> list[str]:
    """What the supernet of a training calls its classes; nothing if it is not there any more."""
    noted = _noted(run)
    try:
        settings = EnvSettings.from_id(noted["env"], checkpoint=noted.get("checkpoint"), dataset="digits")
        return [*settings.config().class_names]
    except OSError:
        return []


def noted_names(run: Path) -> list[str]:
    """Names of the classes that a training has noted, by label; none if it has not."""
    path = run / CLASSES
    if not path.is_file():
        return []
    return read_text(path, "save it as UTF-8, one class a line").removesuffix("\n").split("\n")


def is_noted(class_map: str | None) -> bool:
    """Whether a class map is what a run has noted, which is what its images call their classes, and nobody's own."""
    path = Path(class_map or "").expanduser()
    return path.name == CLASSES and (path.parent / RUN).is_file()


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
        settings = _settings(Path(folder), noted, "val", {"checkpoint": checkpoint, "dataset": place})
        known = settings.dataset_config if unseen is None else unseen
        return cls(settings, known, Path(folder))

    def class_names(self) -> tuple[str, ...] | None:
        """Names of the classes, by label: the supernet's own, those that the training noted, or the data set's now."""
        config = self.settings.config()
        classes = config.num_classes
        if config.class_names:
            return config.class_names
        if self.run is not None and len(noted := noted_names(self.run)) == classes:
            return tuple(noted)
        return class_names(self.dataset, classes, self.settings.split)

    def note_class_names(self, run: Path) -> None:
        """Writes what the labels mean into a run folder that has no names yet, if each is a line of text.

        These are the supernet's names only where it says the labels: else these follow the data set.
        """
        if (run / CLASSES).exists():
            return
        config, called, names = self.settings.config(), self._called(), list[str]()
        if all(config.class_names[k : k + 1] == (name,) for k, name in called.items()):
            names = [*config.class_names]
        elif sorted(called) == [*range(config.num_classes)]:
            names = [called[k] for k in sorted(called)]
        if names and all(name.isprintable() for name in names):
            write_text(run / CLASSES, "\n".join(names) + "\n")

    def _called(self) -> Mapping[int, str]:
        """What the classes of the images are called, by label, as far as they say."""
        names, own = known_names(self.dataset, self.settings.split), self.settings.config().class_names
        if not names and own and self.dataset.class_map is None:
            # Only those who have opened them know; the training is going to.
            return getattr(self.settings.engine().dataset, "class_names", {})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # whoever opens the images is told
            labels = labels_of(names, self.dataset, self.dataset.name, own) if names else {}
        return {label: name for name, label in labels.items()}


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
