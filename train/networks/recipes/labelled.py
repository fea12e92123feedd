"""Training on labelled images of any source and on what a frozen teacher says of them, of whatever network."""

from __future__ import annotations

import copy
from abc import abstractmethod
from dataclasses import dataclass, replace
from functools import cached_property

import torch
import torch.nn.functional as F
from timm.data.mixup import Mixup
from torch import Tensor, nn
from typing_extensions import Self

from prance_env.images.config import DatasetConfig
from prance_env.images.loading import OnError, load_dataset
from prance_env.images.source import ImageSource, check_fits
from supernet import SupernetConfig
from supernet.zero_shot import ZeroShotHead

from ...options import DatasetOption
from ..classes import Meaning
from ..ordering import draw_batches
from ..recipe import N, Recipe
from ..teachers import open_teacher
from ..training_images import TrainingImages, open_store, view_of
from ..views import NONE, View, checked_augment

STORE = "store:"
VAL_BATCH = 250


@dataclass(frozen=True)
class LabelledRecipe(Recipe[N]):
    """How a network is trained on images of any source."""

    dataset: DatasetOption = "digits"
    """Images: digits, a folder in ImageNet's layout, a timm name, or JSON (docs/images.md)."""
    epochs: float = 0.0
    """Training in epochs instead of --steps."""
    teacher: str | None = None
    """Frozen teacher: original (the network before training), timm:NAME, a supernet's folder, store:FOLDER, or none."""
    temperature: float = 1.0
    """Of the teacher's and the full network's answers; 1 with a store."""
    label_smoothing: float = 0.0
    """Smoothing of labels."""

    crop_scale: tuple[float, float] = (1.0, 1.0)
    """Share of an image's area that random crops take; 1 1: as in evaluation."""
    flip: float = 0.0
    """Chance of a horizontal flip."""
    rand_augment: str = ""
    """RandAugment in timm's words, such as rand-m9-mstd0.5-inc1, or none."""
    mixup: float = 0.0
    """Alpha of mixup; 0: none."""
    cutmix: float = 0.0
    """Alpha of cutmix; 0: none."""
    val_images: int = 2000
    """Validation images, drawn once."""
    num_workers: int = 0
    """Processes that draw training images; results do not depend on it."""
    on_error: OnError = "raise"
    """What to do about an image that cannot be decoded: raise, or skip it for the next good one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "crop_scale", tuple(self.crop_scale))
        object.__setattr__(self, "rand_augment", checked_augment(self.rand_augment))
        if self.teacher == NONE:
            object.__setattr__(self, "teacher", None)
        if self._store_folder is not None and (self.mixup or self.cutmix):
            raise ValueError("A store holds answers to single images: mixup and cutmix must be 0 with it.")
        if self.temperature <= 0:
            raise ValueError(f"temperature={self.temperature} must be above 0.")
        if self._store_folder is not None and self.temperature != 1:
            raise ValueError(
                f"temperature={self.temperature} must be 1 with a store, whose answers are at this one; leave "
                "--temperature, or pass the teacher itself."
            )
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing={self.label_smoothing} must lie in [0, 1).")
        if self.mixup < 0 or self.cutmix < 0:
            raise ValueError(f"mixup={self.mixup} and cutmix={self.cutmix} must be at least 0; 0: none.")
        if (self.mixup or self.cutmix) and (part := self.batch_size // self.accumulate) % 2:
            raise ValueError(
                f"mixup and cutmix mix pairs, but batch_size={self.batch_size} in accumulate={self.accumulate} part(s) "
                f"has {part} images in each; change one of them, so that there is an even number."
            )
        if self.epochs < 0:
            raise ValueError(f"epochs={self.epochs} must be at least 0; 0 takes --steps.")
        if self.val_images < 1:
            raise ValueError(f"val_images={self.val_images} must be at least 1.")

    # ---- what is trained ----------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def start(self) -> N:
        """The network to begin with; nobody trains this one."""

    @abstractmethod
    def original(self) -> nn.Module:
        """The network before training, as a teacher.

        Raises:
            ValueError: If it has nothing to say.
        """

    @property
    def config(self) -> SupernetConfig:
        """That of the network."""
        return self.start.config

    def make_net(self) -> N:
        """The network to begin with; it forgets the names of its classes where it is to learn others.

        The texts of CLIP's classes stay where its text tower put them.
        """
        net = copy.deepcopy(self.start).requires_grad_(True)
        if net.config.class_names and not self._meaning.is_own:
            net.config = replace(net.config, class_names=())
        if isinstance(net.head, ZeroShotHead):
            net.head.text.requires_grad_(False)
        return net

    def after_step(self, net: N, heads: nn.Module, step: int) -> None:
        """Limits CLIP's scale."""
        if isinstance(net.head, ZeroShotHead):
            net.head.limit_scale()

    @property
    def may_change(self) -> tuple[str, ...]:
        """No result depends on the processes that draw images, nor on what would become of a broken one."""
        return ("num_workers", "on_error")

    def prepared(self) -> Self:
        """The same with `epochs` turned into steps."""
        if not self.epochs:
            return self
        return replace(
            self, steps=max(1, round(self.epochs * len(self._loaded("train")) / self.batch_size)), epochs=0.0
        )

    def open_images(self) -> None:
        """Opens the validation images, without decoding them.

        Raises:
            ValueError: If there are none, or they do not fit the network.
        """
        _ = self._val_source

    # ---- images -------------------------------------------------------------------------------------------------

    @property
    def view(self) -> View:
        """How training images are drawn."""
        return view_of(self, self.config, self._store_folder)

    @cached_property
    def _images(self) -> TrainingImages:
        classes, mix, store = self.config.num_classes, None, self._store_folder
        if self.mixup or self.cutmix:
            mix = Mixup(self.mixup, self.cutmix, label_smoothing=self.label_smoothing, num_classes=classes)
        opened = None if store is None else open_store(store, classes)
        view, source = self.view, self._loaded("train")
        return TrainingImages(source, view, self.batch_size, self.seed, self.num_workers, opened, mix)

    def _loaded(self, split: str) -> ImageSource:
        source = load_dataset(self.dataset, split, self.config, self.num_workers, self.on_error)
        check_fits(source, self.config)
        return source

    @property
    def _meaning(self) -> Meaning:
        """Of the labels."""
        class_map = DatasetConfig.from_value(self.dataset).class_map
        return Meaning.of(self._images.source, class_map, self.config.class_names)

    @property
    def _store_folder(self) -> str | None:
        stored = self.teacher is not None and self.teacher.startswith(STORE)
        return self.teacher.removeprefix(STORE) if stored and self.teacher else None

    # ---- losses -------------------------------------------------------------------------------------------------

    def _softened(self, logits: Tensor) -> Tensor:
        return (logits.float() / self.temperature).softmax(-1)

    def _loss(
        self, logits: Tensor, labels: Tensor, label_weight: float, answers: list[tuple[float, Tensor | None]]
    ) -> Tensor:
        logits = logits.float()
        loss = logits.sum() * 0
        if label_weight:
            smoothing = 0.0 if labels.ndim == 2 else self.label_smoothing
            loss = loss + label_weight * F.cross_entropy(logits, labels, label_smoothing=smoothing)
        for weight, target in answers:
            if weight and target is not None:
                soft = F.cross_entropy(logits / self.temperature, target) * self.temperature**2
                loss = loss + weight * soft
        return loss

    @cached_property
    def _frozen(self) -> nn.Module | None:
        if self.teacher is None or self._store_folder is not None:
            return None
        return open_teacher(self.teacher, self.start, self.original, self._meaning)

    def _answer(self, x: Tensor) -> Tensor | None:
        if self._frozen is None:
            return None
        with torch.no_grad():
            return self._softened(self._frozen.to(x.device)(x))

    # ---- validation ---------------------------------------------------------------------------------------------

    @cached_property
    def _val_source(self) -> ImageSource:
        return self._loaded("val")

    @cached_property
    def _val(self) -> list[tuple[Tensor, Tensor]]:
        return draw_batches(self._val_source, self.val_images, VAL_BATCH)
