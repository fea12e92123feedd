"""Models of timm by name, with weights from a file."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor

from ..files import check_tensors, read_weights, weights_by_name

AVERAGED = ("state_dict_ema", "model_ema")
"""Where training scripts of timm and DeiT keep the moving average of weights, which they evaluate."""


def create_model(
    name: str,
    pretrained: bool = False,
    weights: str | Path | None = None,
    num_classes: int | None = None,
    img_size: int | None = None,
    in_chans: int | None = None,
) -> Any:
    """A model of timm.

    Args:
        name: Its name.
        pretrained: Whether to download its weights.
        weights: A file with its weights; not beside `pretrained`.
        num_classes: Its classes; None: as in `weights`, else timm's number.
        img_size: Its image size; None: as in `weights`, else timm's.
        in_chans: Channels of its images; None: as in `weights`, else timm's.

    Raises:
        ValueError: If the file does not hold its weights, or those of other classes or channels than are given.
        FileNotFoundError: If there is no such file.
        RuntimeError: If timm does not know the name, or the weights cannot be downloaded.
    """
    if weights is None:
        sizes = _given(num_classes=num_classes, img_size=img_size, in_chans=in_chans)
        return timm.create_model(name, pretrained=pretrained, **sizes)
    if pretrained:
        raise ValueError(
            f"pretrained=True downloads weights, and weights={str(weights)!r} are given; pass one of both."
        )
    state = weights_by_name(read_weights(Path(weights)), AVERAGED)
    with torch.device("meta"):
        sketch = timm.create_model(name)
    own = len(state["head.weight"]) if "head.weight" in state else 0
    if num_classes is not None and num_classes != own:
        raise ValueError(
            f"num_classes={num_classes}, but {weights} has a classifier of {own} classes (0: none). Leave num_classes "
            "out, and put another classifier in afterwards with net.reset_classifier(num_classes)."
        )
    size = _img_size(state, sketch) if img_size is None else img_size
    channels = _in_chans(state) if in_chans is None else in_chans
    model: Any = timm.create_model(name, num_classes=own, **_given(img_size=size, in_chans=channels))
    try:
        resized = _resized(state, model, name)
    except Exception as e:  # whatever timm answers to weights of another model
        raise ValueError(f"{weights} does not fit this {name}: timm cannot read it ({e}).") from e
    check_tensors(resized, {k: tuple(v.shape) for k, v in model.state_dict().items()}, str(weights), owner=name)
    model.load_state_dict(resized)
    return model


def _given(**settings: int | None) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if value is not None}


def _img_size(state: Mapping[str, Tensor], sketch: Any) -> int | None:
    """The image size whose patches have the positions of some weights; None if that is not known."""
    positions, embed = state.get("pos_embed"), getattr(sketch, "patch_embed", None)
    if positions is None or embed is None or positions.ndim != 3:
        return None
    # Some models have no positions for the tokens before the patches.
    for first in (sketch.num_prefix_tokens, 1, 0):
        side = math.isqrt(max(positions.shape[1] - first, 0))
        if side and side**2 == positions.shape[1] - first:
            return int(side * (embed.img_size[0] // embed.grid_size[0]))
    return None


def _in_chans(state: Mapping[str, Tensor]) -> int | None:
    """The channels of the images that some weights are for; None if that is not known."""
    patches = state.get("patch_embed.proj.weight")
    return None if patches is None or patches.ndim != 4 else patches.shape[1]


def _resized(state: dict[str, Tensor], model: Any, name: str) -> dict[str, Tensor]:
    """The weights as timm loads them: of other formats under its names, positions for the model's image size."""
    module = sys.modules[timm.models.model_entrypoint(name).__module__]
    adapt = getattr(module, "checkpoint_filter_fn", None)
    return dict(adapt(state, model)) if adapt is not None else state
