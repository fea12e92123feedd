"""A small CLIP of open_clip's with random weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

VISION = {"image_size": 32, "patch_size": 8, "width": 48, "layers": 4, "head_width": 16, "mlp_ratio": 2.0}
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
NAMES = ("cat", "a red bus", "ice cream", "harp", "zebra")


def small_clip(quick_gelu: bool = False, dim: int = 24, **vision: Any) -> Any:
    """Both towers; every parameter of the image tower matters."""
    open_clip = pytest.importorskip("open_clip")
    torch.manual_seed(0)
    model: nn.Module = open_clip.CLIP(dim, VISION | vision, dict(TEXT), quick_gelu=quick_gelu).eval()
    for parameter in model.visual.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    return model.requires_grad_(False)


def images_of(model: Any, batch_size: int = 3) -> Tensor:
    """Normalised noise."""
    return torch.randn(batch_size, 3, *model.visual.image_size, generator=torch.Generator().manual_seed(1))
