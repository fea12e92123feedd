"""`prance distill`: a teacher says once what it thinks of augmented views; trainings read it as often as they like."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from prance_env.images.config import DatasetConfig
from prance_env.images.loading import load_dataset
from prance_env.images.source import ImageSource, check_fits
from prance_env.supernets import usable_device
from supernet import Supernet
from supernet.arrays import Ints

from ..options import DatasetOption
from ..runs.folder import check_free, check_kind, nothing_to_resume
from ..runs.interrupt import deferred_interrupt
from ..runs.lock import only_writer
from .classes import Meaning, is_reordered
from .importance import full_network
from .logit_store import DESCRIPTION, REMEDY, LogitStore, StoreInfo
from .sources import TIMM, NetworkSource
from .teachers import ORIGINAL, open_teacher
from .training_images import check_store, digest_of_labels, stored_view, view_of
from .views import ViewLoader, view_seeds

TOLERATED = 0.02
"""Total variation above which a record says something else than the teacher; docs/distill.md has the measurement."""
FEW = 0.01
"""Share of such records above which a check fails."""


@dataclass(frozen=True)
class DistillSettings:
    """What a teacher is asked, and what of its answers is kept."""

    teacher: str
    """Who is asked: timm:NAME (its weights are downloaded), or a supernet's folder."""
    dataset: DatasetOption
    """Images: digits, a folder in ImageNet's layout, a timm name, or JSON (docs/images.md)."""
    student: str
    """The network that is going to learn, whose image size and classes count: a folder, a name, or timm:NAME."""
    epochs: int = 1
    """Views of every image; trainings of more epochs begin again with the first."""
    top_k: int = 10
    """Classes of which the probabilities are kept, the most probable ones; at most all of them."""
    crop_scale: tuple[float, float] = (0.08, 1.0)
    """Share of an image's area that random crops take; 1 1: as in evaluation."""
    flip: float = 0.5
    """Chance of a horizontal flip."""
    rand_augment: str = "rand-m9-mstd0.5-inc1"
    """RandAugment in timm's words, or none."""
    batch_size: int = 128
    """Images at a time."""
    seed: int = 0
    """Fixes the views."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size} must be at least 1.")


class Distillation:
    """A teacher, the images, and how they are drawn.

    Args:
        settings: What is asked.
        device: Torch device of the teacher.
        num_workers: Processes that draw views.
        store: Folder of a store that is there, whose random crops these are; None: crops as the images are resized.

    Raises:
        FileNotFoundError: If a folder is missing.
        ValueError: If networks and images do not fit each other.
    """

    def __init__(
        self, settings: DistillSettings, device: str = "cpu", num_workers: int = 0, store: Path | None = None
    ) -> None:
        self.settings, self.device = settings, usable_device(device)
        # Only its shape counts, unless it is its own teacher.
        source = NetworkSource(settings.student, "random" if settings.student.startswith(TIMM) else None)
        if settings.teacher == ORIGINAL and source.has_random_classifier():
            raise ValueError(
                f"teacher={ORIGINAL!r} is the student {settings.student}, whose weights are random here, so that it "
                "can teach nobody; pass timm:NAME or a supernet's folder."
            )
        self.student: Supernet = source.open()
        c = self.student.config
        self.view = view_of(settings, c, store)
        self.source: ImageSource = load_dataset(settings.dataset, "train", c, num_workers)
        check_fits(self.source, c)
        class_map = DatasetConfig.from_value(settings.dataset).class_map
        meaning = Meaning.of(self.source, class_map, c.class_names)
        self.teacher: nn.Module = open_teacher(
            settings.teacher, self.student, lambda: full_network(self.student), meaning
        ).to(self.device)
        self.student.to(self.device)
        self.loader = ViewLoader(self.source, self.view, num_workers)

    def info(self) -> StoreInfo:
        """What the store is going to say about itself."""
        classes = self.student.config.num_classes
        return StoreInfo(
            num_images=len(self.source),
            num_classes=classes,
            top_k=min(self.settings.top_k, classes),
            epochs=self.settings.epochs,
            images=self.source.identity(),
            view=stored_view(self.view),
            teacher=self.settings.teacher,
            seed=self.settings.seed,
            labels=digest_of_labels(self.source),
        )

    @torch.inference_mode()
    def answers(self, images: Ints, seeds: Ints) -> Tensor:
        """(B, num_classes) the teacher's probabilities for views of some images.

        Raises:
            ValueError: If they are not finite.
        """
        pixels = self.loader.batch(images, seeds).to(self.device)
        probabilities: Tensor = self.teacher(self.student.normalised(pixels)).float().softmax(-1)
        if not bool(torch.isfinite(probabilities).all()):
            raise ValueError(f"The teacher {self.settings.teacher} gives numbers that are not finite; take another.")
        return probabilities.cpu()


def run_distill(
    settings: DistillSettings, out: Path, resume: bool = False, device: str = "cpu", num_workers: int = 0
) -> LogitStore:
    """Writes a store, or goes on with one.

    Args:
        settings: What is asked.
        out: Folder of the store.
        resume: Go on with one that was begun.
        device: Torch device of the teacher.
        num_workers: Processes that draw views.

    Raises:
        FileExistsError: If `out` holds a store and `resume` is False, or a run or a network, or another process writes
            to it.
        FileNotFoundError: If there is nothing to resume, or a folder is missing.
        ValueError: If networks and images do not fit each other, or the store was begun with other settings.
    """
    if not resume:
        check_free(out, [out / DESCRIPTION], "store of logits", "pass --resume to go on with it, or another --out")
        check_kind(out)
    elif not (out / DESCRIPTION).exists():
        check_kind(out)
        raise nothing_to_resume(out, DESCRIPTION)
    work = Distillation(settings, device, num_workers, out if resume else None)
    with only_writer(out), deferred_interrupt() as interrupted:
        store = LogitStore.create(out, work.info())
        total, images = store.info.num_images * store.info.epochs, store.info.num_images
        if 0 < store.done < total and store.info.labels is None and is_reordered(work.teacher):
            raise ValueError(
                f"{out} was begun by an earlier version, in the teacher's order of classes instead of the labels'; "
                f"{REMEDY}, with another --out."
            )
        bar = tqdm(initial=store.done, total=total, desc="distill", unit="image", mininterval=1)
        while (first := store.done) < total and not interrupted():
            epoch, start = divmod(first, images)
            index = np.arange(start, min(start + settings.batch_size, images))
            seeds = view_seeds(settings.seed, epoch, images)[index]
            store.write(first, seeds, work.answers(index, seeds))
            bar.update(len(index))
        bar.close()
        if store.done < total:
            print(f"Stopped after {store.done} of {total} records.")
        interrupted.heed()
    return store


@dataclass(frozen=True)
class StoreCheck:
    """How well a store agrees with its teacher.

    Attributes:
        records: How many were compared.
        difference: Mean total variation between what a record says and the teacher: half the sum of the differences of
            the probabilities of the stored classes and of all others together, in [0, 1].
        differing: Share of the records in which it is above `TOLERATED`.
        mismatched: Share of the stored classes that are other ones now.
    """

    records: int
    difference: float
    differing: float
    mismatched: float


def check_distill(
    settings: DistillSettings, out: Path, records: int, device: str = "cpu", num_workers: int = 0
) -> StoreCheck:
    """Asks the teacher again about some views of a store.

    Raises:
        FileNotFoundError: If there is no store.
        ValueError: If it is not complete or was written for other images or views, or the teacher says something else.
    """
    if records < 1:
        raise ValueError(f"--check {records} must be at least 1: so many records are compared.")
    store, work = LogitStore.open(out), Distillation(settings, device, num_workers, out)
    check_store(store, work.source, work.view)
    total = store.info.num_images * store.info.epochs
    drawn = np.sort(np.random.default_rng(settings.seed).choice(total, min(records, total), replace=False))
    differences, mismatches = [], []
    for epoch in np.unique(drawn // store.info.num_images).tolist():
        own = drawn[drawn // store.info.num_images == epoch] % store.info.num_images
        for index in np.split(own, range(settings.batch_size, len(own), settings.batch_size)):
            now, then = work.answers(index, store.seeds(epoch, index)), store.targets(epoch, index)
            (listed, classes), top_k = then.topk(store.info.top_k, dim=1), store.info.top_k
            gone = now.gather(1, classes) - listed
            # Of all classes that are not listed only the sum is known.
            differences.append((gone.abs().sum(1) + gone.sum(1).abs()) / 2)
            mismatches.append((now.topk(top_k, dim=1).indices != classes).float().mean(1))
    apart = torch.cat(differences)
    found = StoreCheck(
        len(drawn),
        float(apart.mean()),
        float((~(apart <= TOLERATED)).float().mean()),
        float(torch.cat(mismatches).mean()),
    )
    if found.differing > FEW:
        raise ValueError(
            f"{out}: the teacher's probabilities differ from those stored, by more than {TOLERATED} in "
            f"{found.differing:.1%} of {found.records} records (allowed: {FEW:.0%}), by {found.difference:.3f} on "
            "average; it is another teacher, its classes are in another order, or timm draws views differently now. "
            "Write the store anew."
        )
    return found
