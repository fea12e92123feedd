"""The images that a step of training shows to a supernet: which ones, in which views, with which targets."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from timm.data.mixup import Mixup
from torch import Tensor

from prance_env.images.config import DatasetConfig
from prance_env.images.source import ImageSource
from supernet import SupernetConfig
from supernet.arrays import Ints
from supernet.heads import ImageClassifier

from .logit_store import LogitStore
from .recipe import Turn
from .views import Shuffle, View, ViewLoader, seeded, view_seeds


@dataclass(frozen=True)
class Batch:
    """What one turn of a step trains on.

    Attributes:
        images: (B, C, H, W) normalised floats.
        labels: (B,) int64, or (B, num_classes) where images are mixed.
        answers: (B, num_classes) what a store says of the teacher; None without one.
    """

    images: Tensor
    labels: Tensor
    answers: Tensor | None


class Drawing(Protocol):
    """Settings of how training images are drawn; see `View`."""

    @property
    def dataset(self) -> str | dict[str, Any]: ...
    @property
    def crop_scale(self) -> tuple[float, float]: ...
    @property
    def flip(self) -> float: ...
    @property
    def rand_augment(self) -> str: ...


def view_of(settings: Drawing, config: SupernetConfig, store: str | Path | None = None) -> View:
    """How training images are drawn for a network.

    Args:
        settings: What is random.
        config: Of the network; crops are resized as its images are, where the data set does not say otherwise.
        store: Folder with answers to views, whose crops are resized as these were: bicubic ones, by earlier versions.
    """
    interpolation = DatasetConfig.from_value(settings.dataset).interpolation or config.interpolation
    if store is not None:
        interpolation = LogitStore.described(Path(store)).view.get("interpolation", interpolation)
    drawn = settings.crop_scale, settings.flip, settings.rand_augment
    return View(config.img_size, config.in_chans, *drawn, interpolation)


class TrainingImages:
    """Batches of views of a source, each a function of (seed, step).

    Args:
        source: Labelled images.
        view: How they are drawn.
        batch_size: Images a step.
        seed: Fixes order and views.
        num_workers: Processes that draw.
        store: Answers of a teacher, whose views are then drawn again; None: views of the seed's own.
        mix: Mixes images; None: nobody does.

    Raises:
        ValueError: If there are fewer images than a batch holds, or the store was written for others.
    """

    def __init__(
        self,
        source: ImageSource,
        view: View,
        batch_size: int,
        seed: int,
        num_workers: int = 0,
        store: LogitStore | None = None,
        mix: Mixup | None = None,
    ) -> None:
        self.source, self.seed, self.store, self.mix = source, seed, store, mix
        self._ahead = num_workers > 0
        self._shuffle = Shuffle(len(source), batch_size, seed)
        self._loader = ViewLoader(source, view, num_workers)
        if store is not None:
            check_store(store, source, view)

    def batch(self, net: ImageClassifier, turn: Turn) -> Batch:
        """The images of a turn, on its device, normalised for a network.

        Raises:
            OSError: If an image is broken, and the source lets no other one stand in for it.
            ValueError: If pairs are to be mixed and there is an odd number of images.
        """
        images, epochs, seeds = self._drawn(turn)
        pixels = self._loader.batch(images, seeds)
        if (self.source.shown(images) != images).any():
            # That some are broken is known only now: once more, with the views of what stands in for them.
            images, epochs, seeds = self._drawn(turn)
            pixels = self._loader.batch(images, seeds)
        if self._ahead:
            following, _, following_seeds = self._drawn(replace(turn, step=turn.step + 1))
            self._loader.prefetch(following, following_seeds)
        x = net.normalised(pixels.to(turn.device))
        labels = self.source.labels[torch.from_numpy(images)].to(turn.device)
        if self.mix is not None:
            if len(x) % 2:
                raise ValueError(
                    f"mixup and cutmix mix pairs, but a part of a batch holds {len(x)} images; change batch_size or "
                    "accumulate."
                )
            with seeded(self.seed, 5, turn.step, turn.rows.start):
                x, labels = self.mix(x, labels)
        return Batch(x, labels, self._answers(images, epochs, turn.device))

    def _drawn(self, turn: Turn) -> tuple[Ints, Ints, Ints]:
        """Images of a turn, their epochs, and the seeds of their views; no image that is known to be broken."""
        images, epochs = (part[turn.rows] for part in self._shuffle.drawn(turn.step))
        images = self.source.shown(images)
        seeds = np.empty_like(images)
        for epoch in np.unique(epochs).tolist():
            own = epochs == epoch
            if self.store is None:
                seeds[own] = view_seeds(self.seed, epoch, len(self.source))[images[own]]
            else:
                seeds[own] = self.store.seeds(epoch, images[own])
        return images, epochs, seeds

    def _answers(self, images: Ints, epochs: Ints, device: torch.device) -> Tensor | None:
        if self.store is None:
            return None
        # A batch holds images of one epoch, or of two, which stand one after the other.
        parts = [self.store.targets(epoch, images[epochs == epoch]) for epoch in np.unique(epochs).tolist()]
        return torch.cat(parts).to(device)


def check_store(store: LogitStore, source: ImageSource, view: View) -> None:
    """Checks that a store was written for these images and views.

    Raises:
        ValueError: If not; the message names what differs.
    """
    own: dict[str, Any] = {"num_images": len(source), "images": source.identity()}
    if store.info.labels is not None:
        own["labels"] = digest_of_labels(source)
    wrong = [k for k, value in own.items() if getattr(store.info, k) != value]
    wrong += [k for k, value in stored_view(view).items() if store.info.view.get(k) != value]
    if wrong:
        raise ValueError(
            f"{store.folder} was written for other {', '.join(wrong)}; pass the dataset and the settings of views that "
            f"prance distill had (views: {dict(store.info.view)})."
        )


def digest_of_labels(source: ImageSource) -> str:
    """Differs whenever any label does: what the classes of a store are, as far as it can tell."""
    return hashlib.sha256(source.labels.cpu().to(torch.int64).contiguous().numpy().data).hexdigest()


def stored_view(view: View) -> Mapping[str, Any]:
    """The settings of views in JSON's types."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(view).items()}


def open_store(folder: str | Path, num_classes: int) -> LogitStore:
    """A complete store of the right number of classes.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is damaged or its teacher had other classes.
    """
    store = LogitStore.open(Path(folder))
    if store.info.num_classes != num_classes:
        raise ValueError(
            f"{folder} holds answers of {store.info.num_classes} classes, but the supernet has {num_classes}; write a "
            "store with a teacher of the same classes."
        )
    return store
