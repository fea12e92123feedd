"""`prance import clip`: an image tower and a list of class names as a supernet with a zero-shot classifier."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm

from prance_env.images.loading import load_dataset
from supernet import Supernet
from supernet.convert.clip import class_embeddings, fit_projections, from_clip, load_clip, named_templates
from supernet.convert.texts import TextEmbeddings, check_names, check_templates, read_lines
from supernet.files import write_text

from ..runs.folder import check_kind
from .importing import save_import
from .ordering import draw_batches

TEXTS, CLASSES = "texts.safetensors", "classes.txt"
FIT_BATCH = 64


@dataclass(frozen=True)
class ClipClasses:
    """What is to be classified.

    Attributes:
        classes: File with one name a line.
        templates: "plain", "simple", "openai", or a file with one sentence a line, a `{}` in the place of the name.
        texts: File of embeddings, `texts.safetensors` of an earlier import, instead of `classes`.
    """

    classes: Path | None = None
    templates: str = "plain"
    texts: Path | None = None

    def __post_init__(self) -> None:
        if (self.classes is None) == (self.texts is None):
            raise ValueError(
                "Pass either --classes FILE, names that the model's text tower embeds, or --texts FILE, embeddings of "
                "an earlier import."
            )

    def read(self) -> tuple[list[str], tuple[str, ...]]:
        """Names and templates, checked.

        Raises:
            FileNotFoundError: If a file is missing.
            ValueError: If a file is not in UTF-8, names are there twice, or a template has no place for them.
        """
        assert self.classes is not None, "names are read where there are no embeddings"
        names = read_lines(self.classes, "class name")
        check_names(names, str(self.classes))
        file = Path(self.templates)
        templates = tuple(read_lines(file, "template")) if file.is_file() else named_templates(self.templates)
        check_templates(templates)
        return names, templates


def import_clip(
    model: str,
    out: Path,
    classes: ClipClasses,
    pretrained: str | None = None,
    fit: str | dict[str, Any] | None = None,
    fit_images: int = 2048,
) -> Supernet:
    """Makes an image tower of CLIP elastic and writes it to `out`, with the class names and their embeddings.

    Args:
        model: Its name in open_clip, such as "ViT-B-16", or in timm, such as "vit_base_patch16_clip_224".
        out: Folder, created if missing.
        classes: What is to be classified.
        pretrained: Tag of its weights; None: random weights.
        fit: Images on which narrower widths get projections of their own; None: they have none.
        fit_images: How many of them.

    Raises:
        FileExistsError: If `out` holds a network, or a run.
        FileNotFoundError: If a file is missing.
        ModuleNotFoundError: If open_clip is needed and not installed.
        ValueError: If anything does not fit, or weights cannot be had.
    """
    check_kind(out)
    if timm.is_model(model.split(".")[0]):
        net, texts = _from_timm(model, classes, pretrained)
    else:
        given = None if classes.texts is not None else classes.read()
        clip = load_clip(model, pretrained)
        source = f"{model}/{pretrained}" if pretrained else f"{model} with random weights"
        texts = _loaded(classes) if given is None else class_embeddings(clip, model, *given, source)
        net = from_clip(clip, texts)
    if fit is not None:
        train = load_dataset(fit, "train", net.config)
        net = fit_projections(net, [images for images, _ in draw_batches(train, fit_images, FIT_BATCH)])
    out.mkdir(parents=True, exist_ok=True)
    texts.save(out / TEXTS)
    write_text(out / CLASSES, "\n".join(texts.names) + "\n")
    return save_import(net, out, f"The image tower of {model}")


def _from_timm(model: str, classes: ClipClasses, pretrained: str | None) -> tuple[Supernet, TextEmbeddings]:
    if classes.texts is None:
        raise ValueError(
            f"{model} is an image tower of timm, which has no text towers: pass --texts FILE, embeddings that an "
            "import by open_clip's name left in its folder, or take open_clip's name of the model, such as ViT-B-16."
        )
    if pretrained is not None and Path(pretrained).exists():
        raise ValueError(
            f"pretrained={pretrained!r} is a file, which goes with open_clip's names only; for {model} pass a tag of "
            "timm's, or import the file with `prance import timm --weights` and give it the texts in Python "
            "(supernet.convert.clip.with_texts)."
        )
    texts = _loaded(classes)
    name = model if pretrained is None else f"{model.split('.')[0]}.{pretrained}"
    try:
        return from_clip(name, texts, pretrained=pretrained is not None), texts
    except (RuntimeError, OSError) as e:
        raise ValueError(f"timm cannot make {name!r}: {' '.join(str(e).split())}") from e


def _loaded(classes: ClipClasses) -> TextEmbeddings:
    assert classes.texts is not None, "embeddings are loaded where a file of them is named"
    return TextEmbeddings.load(classes.texts)
