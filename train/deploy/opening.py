"""An adaptive network by name: a run folder, or what `AdaptiveViT.save_pretrained` wrote."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agents import AdaptiveViT
from agents.deployed.calibrate import timed_on
from agents.deployed.files import described
from agents.deployed.runs import settings_of_run
from agents.sb3.saved import pickles
from prance_env.settings import EnvSettings
from supernet.staging import finish_commit

from ..runs.folder import CONFIG as RUN
from ..runs.trained import trained_settings
from ..runs.trust import check_own_or_local, is_own, say_so

IMAGES = 1024


@dataclass(frozen=True)
class Opened:
    """A model, and where it comes from.

    Attributes:
        model: The model.
        run: Gives the environment of its run on validation images, which need not be there before; None: it was saved.
    """

    model: AdaptiveViT
    run: Callable[[], EnvSettings] | None

    @cached_property
    def settings(self) -> EnvSettings | None:
        """The environment on validation images; None of a saved model.

        Raises:
            ValueError: If the images are not there.
        """
        return None if self.run is None else self.run()

    def images(self, count: int = IMAGES, offset: float = 0.0, split: str = "val") -> tuple[Tensor, Tensor]:
        """(N, C, H, W) images evenly out of all, uint8, and their labels.

        Args:
            count: At most so many.
            offset: In [0, 1): from where between two images; others give other images.
            split: Of which split.

        Raises:
            ValueError: If the model was saved, and its images are not known.
        """
        if self.settings is None:
            raise ValueError("A saved model does not know its validation images; pass the run folder instead.")
        source = replace(self.settings, split=split).engine().dataset
        total = len(source)
        index = np.unique(((np.arange(min(count, total)) + offset) * max(total / count, 1)).astype(np.int64) % total)
        return source.fetch(index), source.labels[torch.from_numpy(source.shown(index))]


def open_adaptive(
    name: str,
    checkpoint: str | None = None,
    dataset: str | dict[str, Any] | None = None,
    images: int = IMAGES,
    entries: int | None = None,
    timed: int | None = None,
    trust: bool = False,
    device: str = "cpu",
) -> Opened:
    """A model by name.

    Args:
        name: A run folder of `prance train agent`, a folder that `save_pretrained` wrote, or OWNER/NAME of the hub.
        checkpoint: Of a run: another supernet than that of the training.
        dataset: Of a run: where its images lie now, or all of `DatasetConfig` as a dict.
        images: Of a run: validation images to calibrate on.
        entries: So many of a menu for each decision, if it has none; None: no menu is made.
        trust: Of a run: whether to unpickle an agent of somebody else.
        timed: Of a run: also times so many images at a time on this machine; of a saved model: warns if its times are
            of others; None: no times.
        device: Where the model is, and is timed.

    Raises:
        FileNotFoundError: If there is nothing of that name.
        ValueError: If it is something else, or a menu is wanted and neither there nor to be made.
    """
    path = Path(name)
    finish_commit(path)
    if described(path) or not path.is_dir():
        if checkpoint or dataset:
            raise ValueError(
                f"{name} is a saved model, which has its supernet in it; leave checkpoint and dataset out."
            )
        opened = Opened(AdaptiveViT.from_pretrained(name).to(device), None)
    else:
        pickled = pickles(path / "model.zip")
        own = trust or (bool(pickled) and all(map(is_own, pickled)))
        model = AdaptiveViT.from_run(name, checkpoint, dataset, images=0, trust=own).to(device)
        opened = Opened(model, partial(_images_of, name, checkpoint, dataset))
        if images:
            model.calibrate(*opened.images(images), timed=timed)
    if entries is not None and opened.model.menu is None:
        if opened.run is None:
            raise ValueError(f"{name} was saved without a menu; pass its run folder, or call model.make_menu and save.")
        opened.model.make_menu(opened.images()[0], entries, timed=timed)
    if opened.run is None and timed is not None:
        _compare_times(name, opened.model, entries is not None, timed)
    return opened


def _images_of(run: str, checkpoint: str | None, dataset: Any) -> EnvSettings:
    """The environment of a run on validation images, which are going to be looked at.

    Raises:
        ValueError: If they are not there, or it is somebody else's run, whose images would have to be fetched.
    """
    if dataset is None:
        noted = trained_settings(run).get("dataset")
        check_own_or_local(noted, Path(run) / RUN, f"the run is somebody else's: {say_so(noted)}")
    return settings_of_run(run, "val", checkpoint=checkpoint, dataset=dataset)


def _compare_times(name: str, model: AdaptiveViT, from_menu: bool, at_a_time: int) -> None:
    """Warns if a model was timed on another machine, or with another number of pictures at a time."""
    calibration = model.menu.calibration if from_menu and model.menu is not None else model.calibration
    if calibration is None or not calibration.milliseconds:
        return  # which whoever looks a budget up says
    noted, now = (
        f"{where} ({n} at a time)"
        for where, n in ((calibration.machine, calibration.batch_size), (timed_on(model), at_a_time))
    )
    if noted != now:
        warnings.warn(
            f"{name} was timed on {noted} and runs on {now}, so its milliseconds may be others; calibrate it here, "
            "and save it again, or pass its run folder.",
            stacklevel=3,
        )
