"""Classes as texts: their names, the sentences around them, and where a text tower puts these."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..files import read_safetensors, write_atomically, write_tensors
from ..reading import read_text

PLAIN_TEMPLATES = ("a photo of a {}.",)
# Embeddings are unit vectors but for rounding, of half precision at worst.
TOLERANCE = 1e-2
Encoder = Callable[[list[str]], Tensor]
"""Texts to their embeddings (texts, dim), of any length."""


@dataclass(frozen=True, eq=False)
class TextEmbeddings:
    """Classes as points, for a `supernet.zero_shot.ZeroShotHead`.

    Attributes:
        names: Class names, in the order of the labels.
        vectors: (classes, dim) float32, of length 1.
        scale: What cosines are multiplied by to become logits: exp of CLIP's `logit_scale`.
        templates: Sentences that the names were put into.
        source: What embedded them, such as "ViT-B-16/openai".

    Raises:
        ValueError: If there are not as many vectors as names, they are not of length 1, or the scale is not positive.
    """

    names: tuple[str, ...]
    vectors: Tensor
    scale: float
    templates: tuple[str, ...] = ()
    source: str = ""

    def __post_init__(self) -> None:
        if self.vectors.ndim != 2 or len(self.vectors) != len(self.names) or not self.names:
            raise ValueError(
                f"The text embeddings have the shape {tuple(self.vectors.shape)} for {len(self.names)} class names; "
                "there must be one row for each of at least one class."
            )
        lengths = self.vectors.norm(dim=1)
        if not bool(((lengths - 1).abs() <= TOLERANCE).all()):
            raise ValueError(
                f"The text embeddings must have length 1, but have {lengths.min().item():.3g} to "
                f"{lengths.max().item():.3g}; normalise the rows."
            )
        if not (self.scale > 0 and math.isfinite(self.scale)):
            raise ValueError(f"scale={self.scale} must be a finite number > 0; CLIP's is about 100.")

    def save(self, path: str | Path) -> None:
        """Writes a safetensors file, atomically; its header holds the names, templates and source."""
        header = {
            "names": json.dumps(self.names),
            "templates": json.dumps(self.templates),
            "source": self.source,
        }
        tensors = {"text": self.vectors.float().cpu().contiguous(), "scale": torch.tensor(self.scale)}
        write_atomically(Path(path), lambda name: write_tensors(tensors, name, header))

    @classmethod
    def load(cls, path: str | Path) -> TextEmbeddings:
        """Reads what `save` wrote; no text tower is needed.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is damaged, or holds something else.
        """
        tensors, header = read_safetensors(Path(path), "text embeddings")
        if set(tensors) != {"text", "scale"} or "names" not in header:
            raise ValueError(
                f"{path} holds {sorted(tensors)[:8]}, but text embeddings are 'text' and 'scale' with the class names "
                "in the header; `prance import clip --classes` leaves them in its folder."
            )
        names, templates = (tuple(json.loads(header.get(key, "[]"))) for key in ("names", "templates"))
        return cls(names, tensors["text"].float(), float(tensors["scale"]), templates, header.get("source", ""))


def read_lines(path: str | Path, what: str) -> list[str]:
    """The lines of a text file, without the empty ones at its end.

    Args:
        path: The file, in UTF-8.
        what: What stands in a line, for messages.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is in another encoding, holds nothing, or an empty line between others.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}; it must hold one {what} a line.")
    remedy = f"save it as UTF-8, if it is in Latin-1 for example with `iconv -f latin1 -t utf-8 {path}`"
    text = read_text(path, remedy)
    lines = [" ".join(line.split()) for line in text.rstrip().splitlines()]
    if not lines or not any(lines):
        raise ValueError(f"{path} is empty; it must hold one {what} a line.")
    if "" in lines:
        raise ValueError(
            f"{path}: line {lines.index('') + 1} is empty. Lines are numbered like labels: put a {what} there, or "
            "remove the line."
        )
    return lines


def check_names(names: Sequence[str], source: str = "The class list") -> None:
    """Checks that no two classes have one name: their embeddings would be the same, and one would never be predicted.

    Args:
        names: Class names; tokenizers read them in lower case.
        source: Where they come from, for messages.

    Raises:
        ValueError: If there is none, or a name stands there twice.
    """
    if not names:
        raise ValueError(f"{source} is empty; give one name for every class.")
    first: dict[str, int] = {}
    twice = []
    for i, name in enumerate(names):
        if (seen := first.setdefault(name.casefold(), i)) != i:
            twice.append(f"{name!r} (classes {seen} and {i})")
    if twice:
        more = f" and {len(twice) - 4} more" if len(twice) > 4 else ""
        raise ValueError(
            f"{source} has duplicates: {', '.join(twice[:4])}{more}. Tell them apart in words, such as 'crane (bird)' "
            "and 'crane (machine)'."
        )


def check_templates(templates: Sequence[str]) -> None:
    """Checks that every template has one place for a name.

    Raises:
        ValueError: If there is none, or one has not exactly one `{}`.
    """
    if not templates:
        raise ValueError("There are no templates; take 'a photo of a {}.', or '{}' for the bare names.")
    for template in templates:
        if template.count("{}") != 1 or template.replace("{}", "").count("{") or template.replace("{}", "").count("}"):
            raise ValueError(f"The template {template!r} must have exactly one {{}}, where the class name goes.")


@torch.no_grad()
def embed_classes(
    encode: Encoder,
    names: Sequence[str],
    scale: float,
    templates: Sequence[str] = PLAIN_TEMPLATES,
    source: str = "",
    batch_size: int = 256,
) -> TextEmbeddings:
    """Embeds classes: the mean direction of a name in all templates, w_c = normalise(mean_t normalise(e_ct)).

    Args:
        encode: The text tower behind its tokenizer.
        names: Class names.
        scale: exp of the model's `logit_scale`.
        templates: Sentences with one `{}` each.
        source: What the text tower is.
        batch_size: Texts at a time.

    Raises:
        ValueError: If names or templates are not as `check_names` and `check_templates` ask.
    """
    check_names(names)
    check_templates(templates)
    texts = [template.replace("{}", name) for name in names for template in templates]
    parts = [encode(texts[i : i + batch_size]).float().cpu() for i in range(0, len(texts), batch_size)]
    directions = F.normalize(torch.cat(parts), dim=1).view(len(names), len(templates), -1)
    return TextEmbeddings(tuple(names), F.normalize(directions.mean(1), dim=1), scale, tuple(templates), source)
