"""Frozen networks whose answers a supernet learns."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from supernet import list_supernets
from supernet.heads import ImageClassifier
from supernet.subnet import HOST

from .classes import Meaning
from .importance import full_network
from .sources import TIMM, timm_model
from .subnet_choice import is_untrained, open_supernet

ORIGINAL = "original"
Teacher = Callable[[Tensor], Tensor]


def open_teacher(
    name: str, student: ImageClassifier, original: Callable[[], nn.Module], meaning: Meaning | None = None
) -> nn.Module:
    """A frozen teacher that takes the student's images and gives logits of the student's classes.

    Args:
        name: "original", the network before training; "timm:NAME" (its weights are downloaded); a supernet's folder;
            or a registered name.
        student: The network that learns.
        original: Gives the network before training as a module.
        meaning: What the student's labels stand for; a supernet that knows its classes by name gives them in this
            order, whatever its own is. None: as they are.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If the teacher is unknown, has no weights of its own, or other channels or classes.
    """
    model: nn.Module
    names: tuple[str, ...] = ()
    if name == ORIGINAL:
        model = original()
    elif name.startswith(TIMM):
        model = ResizedTeacher(timm_model(name.removeprefix(TIMM), pretrained=True), student)
    elif is_untrained(name):
        raise ValueError(f"The teacher {name} has random weights, so that it can teach nobody; pass a folder.")
    elif Path(name).is_dir() or name in list_supernets():
        net = open_supernet(name)
        if net.config.in_chans != student.config.in_chans and (net.config.in_chans, student.config.in_chans) != (3, 1):
            raise ValueError(
                f"The teacher {name} takes images of {net.config.in_chans} channels, the supernet of "
                f"{student.config.in_chans}; take another teacher."
            )
        model, names = full_network(net), net.config.class_names
        if any(getattr(net.config, k) != getattr(student.config, k) for k in ("in_chans", "img_size", "mean", "std")):
            model = ResizedTeacher(model, student)
    else:
        raise ValueError(f"teacher={name!r} is unknown; pass '{ORIGINAL}', '{TIMM}NAME', or the folder of a supernet.")
    c = student.config
    with torch.inference_mode():
        classes = model(torch.zeros(1, c.in_chans, c.img_size, c.img_size, device=HOST)).shape[1]
    if classes != c.num_classes:
        raise ValueError(
            f"The teacher {name} gives {classes} logits, the supernet {c.num_classes}; take one of the same classes."
        )
    if meaning is not None:
        model = meaning.matched(model, names, f"The teacher {name}")
    return model.eval().requires_grad_(False)


class ResizedTeacher(nn.Module):
    """A model for images that were normalised and sized for somebody else.

    Args:
        model: One of this package, or of timm, whose `pretrained_cfg` says how it wants its images.
        student: Whose images they are.
    """

    def __init__(self, model: nn.Module, student: ImageClassifier) -> None:
        super().__init__()
        self.model = model
        cfg: dict[str, Any] = dict(getattr(model, "pretrained_cfg", None) or {})
        if isinstance(model, ImageClassifier):
            c = model.config
            cfg = {"input_size": (c.in_chans, c.img_size, c.img_size), "mean": c.mean, "std": c.std}
        self.size = int(cfg.get("input_size", (0, student.config.img_size))[-1])
        mean, std = (torch.tensor(cfg.get(k, (0.5,) * 3), device=HOST).view(1, -1, 1, 1) for k in ("mean", "std"))
        self.scale: Tensor
        self.shift: Tensor
        # To pixels in 0..1 and to what the model wants, in one line.
        self.register_buffer("scale", student.std.cpu() / std)
        self.register_buffer("shift", (student.mean.cpu() - mean) / std)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of (B, C, H, W) floats that are normalised for the student."""
        images = images * self.scale + self.shift
        if images.shape[-1] != self.size:
            images = F.interpolate(images, size=(self.size, self.size), mode="bicubic", antialias=True)
        out: Tensor = self.model(images)
        return out
