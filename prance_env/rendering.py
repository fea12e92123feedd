"""Pictures of an inference: which patches are left, how wide the blocks are, what it costs."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from .engine import Episodes, InferenceEngine

IMAGE_SIDE = 192
PANEL_WIDTH = 224
DIM = 0.25
INK, PALE, WIDTH_COLOUR, RATIO_COLOUR = (235, 235, 235), (70, 74, 84), (94, 160, 245), (245, 176, 94)
BACKGROUND = (24, 26, 31)


def dim_dropped(image: NDArray[np.uint8], kept: NDArray[np.bool_], side: int = IMAGE_SIDE) -> NDArray[np.uint8]:
    """The image with dropped patches dimmed and tinted.

    Args:
        image: (C, S, S) uint8 with 1 or 3 channels.
        kept: (patches,) bool, row by row.
        side: Side of the picture in pixels.

    Returns:
        (side, side, 3) uint8.
    """
    grid = math.isqrt(len(kept))
    rgb = np.broadcast_to(image, (3, *image.shape[1:])) if image.shape[0] == 1 else image[:3]
    large = np.asarray(
        Image.fromarray(np.ascontiguousarray(rgb.transpose(1, 2, 0))).resize((side, side), Image.Resampling.NEAREST)
    )
    patches = Image.fromarray((255 * kept.reshape(grid, grid)).astype(np.uint8))
    mask = np.asarray(patches.resize((side, side), Image.Resampling.NEAREST)) > 0
    dark = large * DIM + np.array([40, 0, 0])
    return np.where(mask[..., None], large, dark).astype(np.uint8)


def render_episode(engine: InferenceEngine, episodes: Episodes) -> NDArray[np.uint8]:
    """Frame (192, 416, 3) uint8 of a batch of one episode: the patches left, and bars of what was chosen."""
    space = engine.config.space
    kept = episodes.state.kept()[0].cpu().numpy()
    frame = Image.new("RGB", (IMAGE_SIDE + PANEL_WIDTH, IMAGE_SIDE), BACKGROUND)
    image = engine.dataset.fetch(episodes.index)[0].numpy()
    frame.paste(Image.fromarray(dim_dropped(image, kept)), (0, 0))
    draw = ImageDraw.Draw(frame)
    left, width = IMAGE_SIDE + 12, PANEL_WIDTH - 24

    decided = sum(space.groups[: episodes.state.group])
    slot = width / space.depth
    for row, (name, values, largest, colour) in enumerate(
        (
            ("embed_dim", episodes.embed_dim[0], space.embed_dims[-1], WIDTH_COLOUR),
            ("mlp_ratio", episodes.mlp_ratio[0], space.mlp_ratios[-1], RATIO_COLOUR),
        )
    ):
        base = 62 + 58 * row
        draw.text((left, base - 56), name, fill=INK)
        for block, value in enumerate(values):
            x = left + block * slot
            top = base - 40 * value / largest
            draw.rectangle((x, top, x + slot - 3, base), fill=colour if block < decided else PALE)

    for row, (name, fraction) in enumerate(
        (
            ("patches", _patches(engine, episodes) / engine.config.num_patches),
            ("MACs", float(episodes.macs[0]) / engine.full_macs),
        )
    ):
        y = 132 + 18 * row
        draw.text((left, y - 2), f"{name} {fraction:4.0%}", fill=INK)
        draw.rectangle((left + 78, y, left + width, y + 9), fill=PALE)
        draw.rectangle((left + 78, y, left + 78 + (width - 78) * fraction, y + 9), fill=WIDTH_COLOUR)
    draw.text((left, 170), _verdict(episodes), fill=(120, 220, 120) if episodes.success[0] else (240, 120, 110))
    return np.asarray(frame)


def render_ansi(engine: InferenceEngine, episodes: Episodes) -> str:
    """One line of text about a batch of one episode."""
    patches = _patches(engine, episodes)
    return (
        f"image {episodes.index[0]}  decision {episodes.decision}/{engine.config.space.num_decisions}  "
        f"patches {patches}/{engine.config.num_patches}  MACs {episodes.macs[0] / engine.full_macs:.0%}  "
        + _verdict(episodes)
    )


def _patches(engine: InferenceEngine, episodes: Episodes) -> int:
    """Tokens left beside the class token, which is fewer than the patches that they stand for where patches merge."""
    return int(episodes.state.num_tokens[0]) - engine.config.num_prefix_tokens


def _verdict(episodes: Episodes) -> str:
    if episodes.prediction[0] < 0:
        return f"label {episodes.label[0]}"
    return f"says {episodes.prediction[0]} ({episodes.prob[0]:.0%} for label {episodes.label[0]})"
