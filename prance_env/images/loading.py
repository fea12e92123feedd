"""From what the argument `dataset` says to an image source; data sets of users are registered here."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

from supernet import SupernetConfig
from supernet.extension import Registry
from supernet.files import state_of

from .config import DatasetConfig
from .digits import check_split, make_scenes
from .source import ImageDataset, ImageSource

# Scenes per split of the bundled data set; always the same ones.
DIGITS_SCENES = {"train": 16384, "val": 4096, "test": 4096}
OnError = Literal["raise", "skip"]
ON_ERROR = get_args(OnError)


def _load_digits(split: str) -> ImageDataset:
    check_split(split)
    scenes = make_scenes(DIGITS_SCENES[split], split, seed=0)
    return ImageDataset(scenes.images, scenes.labels, scenes.num_digits, "num_digits")


Loader = Callable[[str], ImageSource]
DATASETS: Registry[Loader] = Registry("data set", "register_dataset", "dataset")
DATASETS.add("digits", _load_digits)


def register_dataset(name: str, loader: Loader | None = None) -> Callable[[Loader], Loader]:
    """Makes `dataset=name` known to the environments of this process. A decorator or a function.

    Processes that are spawned, not forked, have to register it themselves: do so in a module that they import, or in a
    plug-in (`supernet.extension`).

    Args:
        name: Any text without a slash.
        loader: Called with the environment's split when the first environment is reset; gives an `ImageDataset` (see
            `ImageDataset.from_tensors`) or another `ImageSource`, and raises ValueError for an unknown split. None:
            what is returned is used as a decorator of the loader.

    Returns:
        A decorator that registers its function under the name.

    Raises:
        ValueError: If the name is taken by another loader or holds a slash.
    """
    if not name or "/" in name or os.sep in name:
        raise ValueError(f"name={name!r} must be a text without slashes, which paths and timm's names have.")

    def register(function: Loader) -> Loader:
        return DATASETS.add(name, function)

    if loader is not None:
        register(loader)
    return register


def list_datasets() -> list[str]:
    """Names that are bundled or registered."""
    return sorted(DATASETS.names())


def check_dataset(dataset: str | dict[str, Any] | DatasetConfig, split: str) -> None:
    """Checks what can be checked without opening a data set.

    Raises:
        ValueError: If the data set is unknown, or the split of the bundled one is.
        ModuleNotFoundError: If a package that it needs is missing.
    """
    config = DatasetConfig.from_value(dataset)
    config.of_folder().check(list_datasets())
    if config.name == "digits":
        check_split(split)


def dataset_state(config: DatasetConfig, split: str) -> Any:
    """Differs whenever the images or labels of a split may differ.

    Of a registered data set it is known only whether it was registered anew.

    Args:
        config: An `absolute` one.
        split: As `load_dataset` takes it.

    Raises:
        ValueError: If the split is missing.
        OSError: If a folder cannot be read.
    """
    if config.name in DATASETS:
        return DATASETS[config.name]
    paths, classes, of_folder = config.paths(), None, config.of_folder()
    if of_folder.prefix is None:
        from .folders import split_folder, training_classes

        paths, classes = [str(split_folder(Path(of_folder.name), split))], training_classes(Path(of_folder.name))
    files = [*paths, *([] if config.class_map is None else [config.class_map])]
    return classes, [state_of(path) for path in files]


def load_dataset(
    dataset: str | dict[str, Any] | DatasetConfig,
    split: str,
    config: SupernetConfig | None = None,
    num_workers: int = 0,
    on_error: str = "raise",
    cache_dir: str | Path | None = None,
) -> ImageSource:
    """Opens a data set.

    Args:
        dataset: A name, or a dict with the fields of `DatasetConfig`.
        split: "train", "val" or "test"; sources by timm name take the names that their reader knows as well.
        config: Says what size the images must have; None is enough for registered data sets.
        num_workers: Processes that decode.
        on_error: "raise", or "skip": a broken image is replaced by the next good one (in a stream: left out).
        cache_dir: Where streams are decoded to; None is `prance_env` in the user's cache folder.

    Raises:
        ValueError: If the data set or the split is unknown, or the data set is empty.
        ModuleNotFoundError: If a package that it needs is missing.
        OSError: If a folder cannot be read.
    """
    check_dataset(dataset, split)
    chosen = DatasetConfig.from_value(dataset).absolute(list_datasets()).of_folder()
    if chosen.name in DATASETS:
        source = DATASETS[chosen.name](split)
        if not isinstance(source, ImageSource):
            raise ValueError(
                f"The loader of dataset={chosen.name!r} gave a {type(source).__name__}; it must give an ImageDataset "
                "(see ImageDataset.from_tensors) or another ImageSource."
            )
        return source
    if config is None:
        raise ValueError(f"dataset={chosen.name!r} needs config=, the supernet whose size the images are to have.")

    # These pull in torchvision and timm, which the bundled data set does not need.
    from .transform import ImageTransform

    transform = ImageTransform.of(config, chosen.crop_pct, chosen.crop_mode, chosen.interpolation)
    if chosen.prefix is None:
        from .folders import load_folder

        return load_folder(chosen, split, transform, num_workers, on_error, config)

    from .pixel_map import default_cache_dir
    from .timm_names import load_timm

    folder = default_cache_dir() if cache_dir is None else Path(cache_dir)
    return load_timm(chosen, split, transform, num_workers, on_error, folder, config)
