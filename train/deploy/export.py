"""`prance export --adaptive`: a model by name, with a menu, as an ONNX file that was checked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from ..networks.export_adaptive import CHECKED, export_adaptive, report
from .opening import Opened

PRICES_CHECKED = 3
BETWEEN = 0.125
"""Offset of the images that are checked: half-way between two of the menu's, of which there are four times as many."""


def export_model(opened: Opened, out: Path, uint8: bool, seed: int, console: Console) -> None:
    """Writes an adaptive network and says what was written.

    Args:
        opened: The model, with a menu.
        out: A file that ends with .onnx, or a folder.
        uint8: Whether the graph takes uint8 images.
        seed: Fixes the random images that a saved model is checked on; a run has validation images.
        console: Where it is said.

    Raises:
        ValueError: If the model has no such graph, or the file answers differently.
    """
    model, c = opened.model, opened.model.net.config
    if opened.settings is None:
        shape = (CHECKED, c.in_chans, c.img_size, c.img_size)
        images = torch.randint(256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    else:
        images = opened.images(CHECKED, BETWEEN)[0]
    conditioning, budgets = model.interface.conditioning, list[float]()
    if conditioning is not None:
        budgets = np.geomspace(conditioning.low, conditioning.high, PRICES_CHECKED + 2)[1:-1].tolist()
    report(export_adaptive(model, images, out, budgets, uint8), out, console)
