"""`prance view`: one self-contained page of what is kept of images, and what it costs, at several prices."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from prance_env.engine import InferenceEngine
from prance_env.settings import EnvSettings

from ..evaluate.budget import at_price, front_prices
from ..play import batches, play, played_by_full
from .opening import Opened

TEMPLATE = Path(__file__).with_name("page.html")
IMAGES, BATCH = 200, 256
SIDE = 160
"""Pixels that a picture is shown in at most."""


def run_page(opened: Opened, images: int = IMAGES, split: str = "val") -> str:
    """The page of a run, as HTML.

    Args:
        opened: The model, opened from a run folder.
        images: How many are shown, evenly out of the split.
        split: Of which.

    Raises:
        ValueError: If the model was saved, so that its images are not known, or none are asked for.
    """
    if opened.settings is None:
        raise ValueError("A saved model does not know its images; pass the run folder instead.")
    if images < 1:
        raise ValueError(f"images={images} must be at least 1.")
    settings = replace(opened.settings, split=split)
    engine = settings.engine()
    total = len(engine.dataset)
    index = np.linspace(0, total - 1, min(images, total)).astype(np.int64)
    data = json.dumps(page_data(opened, settings, engine, index), separators=(",", ":"))
    # A class may be called </script>.
    return TEMPLATE.read_text().replace("/*DATA*/null", data.replace("<", "\\u003c"))


def page_data(
    opened: Opened, settings: EnvSettings, engine: InferenceEngine, index: NDArray[np.int64]
) -> dict[str, Any]:
    """What the page shows, JSON-able.

    Args:
        opened: The model.
        settings: The environment on the split.
        engine: Its engine.
        index: (N,) images of it; broken ones are replaced as the data set does it.
    """
    config, source, model = engine.config, engine.dataset, opened.model
    conditioned = settings.conditioning is not None
    prices: Sequence[float | None] = front_prices(settings) if conditioned else [None]
    fixed = [settings if price is None else at_price(settings, price) for price in prices]
    pictures = _pictures(source.fetch(index))
    index = source.shown(index)  # others in the place of broken ones, which are known by now
    difficulty = source.difficulty.numpy()[index]
    side = config.img_size // config.patch_size
    return {
        "title": opened.model.interface.observation,
        "split": settings.split,
        "names": [*model.names],
        "grid": side,
        "group": [len(config.space.blocks(g)) for g in range(len(config.space.groups))],
        "width": config.embed_dim,
        "ratio": config.space.mlp_ratios[-1],
        "fullMacs": engine.full_macs,
        "difficulty": source.difficulty_name if len({*difficulty.tolist()}) > 1 else None,
        "images": [
            {"src": picture, "label": int(label), "difficulty": int(d), "index": int(i)}
            for picture, label, d, i in zip(pictures, engine.labels[index], difficulty, index, strict=True)
        ],
        "full": _full(engine, index),
        "runs": [{"price": p, **_played(opened, s, engine, index)} for p, s in zip(prices, fixed, strict=True)],
    }


def _full(engine: InferenceEngine, index: NDArray[np.int64]) -> dict[str, Any]:
    """What the full network predicts."""
    found = played_by_full(engine, index)[2]
    return {"prediction": found.tolist(), "accuracy": float((found == engine.labels[index]).mean())}


def _played(opened: Opened, settings: EnvSettings, engine: InferenceEngine, index: NDArray[np.int64]) -> dict[str, Any]:
    """Of every image: prediction, MACs, sizes of its blocks, and which patches are there after every decision."""
    config, rows = engine.config, list[dict[str, Any]]()
    for part in batches(len(index), BATCH):
        path, _ = play(opened.model.agent, settings, engine, index[part])
        end = path[-1]
        there = np.stack([(e.state.patch_token >= 0).cpu().numpy() for e in path[1:]], axis=1)
        left = np.stack([e.state.num_tokens - config.num_prefix_tokens for e in path[1:]], axis=1)
        rows += [
            {
                "class": int(end.prediction[i]),
                "macs": round(float(end.macs[i] / engine.full_macs), 4),
                "widths": end.embed_dim[i].tolist(),
                "ratios": [round(float(r), 3) for r in end.mlp_ratio[i]],
                "left": left[i].tolist(),
                "kept": [base64.b64encode(np.packbits(mask).tobytes()).decode() for mask in there[i]],
            }
            for i in range(len(part))
        ]
    right = np.array([row["class"] for row in rows]) == engine.labels[index]
    return {"rows": rows, "accuracy": float(right.mean()), "macs": float(np.mean([row["macs"] for row in rows]))}


def _pictures(images: Tensor) -> list[str]:
    """Images (B, C, H, W) uint8 as addresses that hold them."""
    found = []
    for image in images.numpy():
        pixels = np.moveaxis(image, 0, 2)
        picture = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels[..., :3])
        if max(picture.size) > SIDE:
            picture.thumbnail((SIDE, SIDE))
        kind = "PNG" if max(picture.size) <= 64 else "JPEG"
        file = io.BytesIO()
        picture.save(file, kind, **({"quality": 82} if kind == "JPEG" else {}))
        found.append(f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}")
    return found
