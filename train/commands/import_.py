"""`prance import timm`, `prance import clip` and `prance import prance`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from ..networks.import_clip import ClipClasses, import_clip
from ..networks.importance import Score
from ..networks.importing import TimmSource, import_prance, import_timm
from ..options import DatasetOption, given_flags
from ..own_modules import Imports


@dataclass(frozen=True)
class ImportTimm:
    """Make a plain ViT of timm elastic.

    For example:

        prance import timm deit_small_patch16_224 --pretrained --out runs/deit
        prance import timm deit_tiny_patch16_224 --weights tuned.pth --num-classes 37 --img-size 160 --out runs/pets
        prance import timm deit_small_patch16_224 --pretrained --order taylor --dataset pictures --out runs/deit
    """

    model: Positional[Annotated[str, arg(metavar="MODEL")]]
    """Name of a model of timm."""
    out: Path
    """Folder for the supernet; use it with --checkpoint."""
    pretrained: bool = False
    """Download timm's weights; otherwise, and without --weights, they are random."""
    weights: Path | None = None
    """File with weights of yours: safetensors, or what torch.save wrote (nothing but weights is read)."""
    num_classes: int | None = None
    """Classes; left out, those of --weights or of timm's model."""
    img_size: int | None = None
    """Side of the images in pixels; left out, that of --weights or of timm's model."""
    in_chans: int | None = None
    """Channels of the images; left out, those of --weights or of timm's model."""
    order: Score | None = None
    """Sort the units by importance, so that narrow subnets hold the best of them (prance order); needs --dataset."""
    dataset: DatasetOption | None = None
    """Images for --order: digits, a folder in ImageNet's layout, a timm name, or JSON (docs/images.md)."""
    imports: Imports = ()

    def run(self) -> None:
        """Runs the command."""
        if self.dataset is not None and self.order is None:
            raise ValueError("--dataset is for the scores of --order; pass both, or neither.")
        source = TimmSource(self.model, self.pretrained, self.weights, self.num_classes, self.img_size, self.in_chans)
        import_timm(source, self.out, self.order, self.dataset)


@dataclass(frozen=True)
class ImportClip:
    """Make an image tower of CLIP elastic, with a zero-shot classifier of classes that are given by name.

    For example:

        prance import clip ViT-B-16 --pretrained datacomp_xl_s13b_b90k --classes names.txt --out runs/clip
        prance import clip ViT-B-16-quickgelu --pretrained openai --classes names.txt --templates openai --out runs/clip
        prance import clip ViT-B-16 --pretrained laion2b_s34b_b88k --classes names.txt --fit pictures --out runs/clip
        prance import clip vit_base_patch16_clip_224 --texts runs/clip/texts.safetensors --out runs/timm
    """

    model: Positional[Annotated[str, arg(metavar="MODEL")]]
    """Name of a model of open_clip (pip install -e '.[clip]'), or of timm."""
    out: Path
    """Folder for the supernet, the class names and their embeddings; use it with --checkpoint."""
    classes: Path | None = None
    """Text file with one class name a line, in the order of the labels; the model's text tower embeds them."""
    templates: str = "plain"
    """Sentences for the names: plain (a photo of a {}.), simple (7), openai (80), or a text file with one a line."""
    texts: Path | None = None
    """Embeddings of an earlier import (its texts.safetensors) instead of --classes; no text tower is needed."""
    pretrained: str | None = None
    """Tag of the weights, which are downloaded, or with open_clip's names a file of them; otherwise they are random.
    Tags: prance list."""
    fit: DatasetOption | None = None
    """Images on which every narrower width gets a projection of its own, by least squares: digits, a folder in
    ImageNet's layout, a timm name, or JSON (docs/images.md)."""
    fit_images: int = 2048
    """How many of them."""
    imports: Imports = ()

    def run(self) -> None:
        """Runs the command."""
        if self.fit is None and given_flags(self, ["fit_images"]):
            raise ValueError("--fit-images says how many images of --fit are looked at; pass both, or neither.")
        if self.texts is not None and given_flags(self, ["templates"]):
            raise ValueError("--templates are for --classes; embeddings (--texts) have been made of sentences already.")
        classes = ClipClasses(self.classes, self.templates, self.texts)
        import_clip(self.model, self.out, classes, self.pretrained, self.fit, self.fit_images)


@dataclass(frozen=True)
class ImportPrance:
    """Read a meta-network of PRANCE's authors.

    For example:

        prance import prance supernet-tiny.pth --out runs/prance-tiny
        prance import prance supernet-tiny.pth --out runs/prance-merge --token-mode merge
    """

    checkpoint: Positional[Annotated[Path, arg(metavar="CHECKPOINT")]]
    """Their file, or its weights as safetensors."""
    out: Path
    """Folder for the supernet; use it with --checkpoint."""
    token_mode: Literal["prune", "merge", "prune_merge"] = "prune"
    """How patches leave."""

    def run(self) -> None:
        """Runs the command."""
        import_prance(self.checkpoint, self.out, self.token_mode)
