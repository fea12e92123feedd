"""Pictures of an inference: which patches are left and which have merged, what was chosen, what it costs and says."""

from __future__ import annotations

import colorsys
import math
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from .engine import InferenceEngine
from .episodes import Episodes
from .images.source import ImageSource

IMAGE_SIDE = 256
PANEL_WIDTH = 256
DIM = 0.25
# Below this magnification an image is interpolated; above it, its pixels are shown as they are.
PIXELATED = 2
GOLDEN = (math.sqrt(5) - 1) / 2

INK, FAINT, BACKGROUND = (235, 235, 235), (150, 155, 165), (24, 26, 31)
TRACK, TO_GO = (48, 51, 59), (82, 88, 101)
WIDTH_COLOUR, RATIO_COLOUR, KEEP_COLOUR, COST_COLOUR = (94, 160, 245), (245, 176, 94), (178, 132, 240), (110, 200, 190)
RIGHT, WRONG = (120, 220, 120), (240, 120, 110)
FONT_SIZE, METER = 11, 104

Colour = tuple[int, int, int]


def draw_patches(
    image: NDArray[np.uint8], patch_token: NDArray[np.int64], side: int = IMAGE_SIDE, gap: int = 0
) -> NDArray[np.uint8]:
    """The image with dropped patches dimmed and reddened, and patches that have merged outlined in one colour.

    Merged patches need not be neighbours. Their colour depends on the first of them only, so that a group has the same
    one in every frame of an episode as long as its first patch is the same.

    Args:
        image: (C, S, S) uint8; more than 3 channels: the first 3 are shown, 2: the first.
        patch_token: (patches,) the token that holds each patch, row by row; -1 for a dropped one. See
            `supernet.InferenceState`.
        side: Side of the picture in pixels.
        gap: Pixels between patches that are not in the same token, half of them taken from each; dropped ones are one.

    Returns:
        (side, side, 3) uint8.

    Raises:
        ValueError: If the patches do not fill a square.
    """
    grid = math.isqrt(len(patch_token))
    if grid * grid != len(patch_token):
        raise ValueError(f"patch_token has {len(patch_token)} entries; expected a square number, one per patch.")
    cell = (2 * np.arange(side) + 1) * grid // (2 * side)
    tokens = patch_token.reshape(grid, grid)[np.ix_(cell, cell)]
    large = _enlarged(image, side)
    picture = np.where((tokens >= 0)[..., None], large, large * DIM + np.array([40, 0, 0])).astype(np.uint8)

    # A patch whose neighbour is in the same token has no line between them.
    border = _borders(tokens, max(1, round(side / grid / 10)))
    if gap:
        picture[_borders(tokens, gap // 2)] = BACKGROUND
    held, first, count = np.unique(patch_token, return_index=True, return_counts=True)
    for token, patch in zip(held[count > 1].tolist(), first[count > 1].tolist(), strict=True):
        if token >= 0:
            picture[border & (tokens == token)] = _group_colour(patch)
    return picture


def render_episode(engine: InferenceEngine, episodes: Episodes) -> NDArray[np.uint8]:
    """Frame (256, 512, 3) uint8 of a batch of one episode.

    On the left the image, see `draw_patches`. On the right the width and the MLP ratio of every block and the keep
    rates of every decision (what is not decided yet has an empty frame), the patches left, the MACs (spent; paler: with
    the rest at full size) and what the network says if it is finished at full size from here.
    """
    space, state, decision = engine.config.space, episodes.state, episodes.decision
    frame = Image.new("RGB", (IMAGE_SIDE + PANEL_WIDTH, IMAGE_SIDE), BACKGROUND)
    image = engine.dataset.fetch(episodes.index)[0].numpy()
    tokens = state.patch_token[0].cpu().numpy()
    frame.paste(Image.fromarray(draw_patches(image, tokens, gap=_gap(len(tokens)))), (0, 0))
    panel = _Panel(ImageDraw.Draw(frame), IMAGE_SIDE + 12, PANEL_WIDTH - 24)

    counted = f"decision {decision}/{space.num_decisions}"
    panel.text(6, panel.shortened(image_name(engine.dataset, int(episodes.index[0])), counted), FAINT)
    panel.text(6, counted, FAINT, right=True)
    run = space.blocks(state.group - 1).stop if state.group else 0
    widths, ratios = episodes.embed_dim[0] / space.embed_dims[-1], episodes.mlp_ratio[0] / space.mlp_ratios[-1]
    panel.columns(24, f"embed_dim / {space.embed_dims[-1]}", [[w] for w in widths], run, WIDTH_COLOUR)
    panel.columns(72, f"mlp_ratio / {space.mlp_ratios[-1]:g}", [[r] for r in ratios], run, RATIO_COLOUR)
    rates = episodes.keep_rate[0].reshape(space.num_decisions, -1)
    panel.columns(120, "keep_rate", rates.tolist(), decision, KEEP_COLOUR)

    left = _patches_left(engine, episodes)
    spent, total = state.macs[0] / engine.full_macs, episodes.macs[0] / engine.full_macs
    panel.meter(172, f"patches {left}", left / engine.config.num_patches, KEEP_COLOUR)
    panel.meter(192, f"MACs {spent:.0%}", spent, COST_COLOUR, total)
    prediction, confidence = _verdict(engine, episodes)
    colour = RIGHT if prediction == episodes.label[0] else WRONG
    panel.meter(212, f"says {class_name(engine.dataset, prediction)}", confidence, colour, note=f"({confidence:.0%})")
    reward = f"reward {episodes.reward[0]:+.3f}"
    panel.text(232, panel.shortened(f"label {class_name(engine.dataset, int(episodes.label[0]))}", reward), INK)
    panel.text(232, reward, FAINT, right=True)
    return np.array(frame)  # asarray gives what cannot be written into


def render_ansi(engine: InferenceEngine, episodes: Episodes) -> str:
    """One line of text about a batch of one episode."""
    prediction, confidence = _verdict(engine, episodes)
    spent, total = episodes.state.macs[0] / engine.full_macs, episodes.macs[0] / engine.full_macs
    source = engine.dataset
    return (
        f"{image_name(source, int(episodes.index[0]))}  "
        f"decision {episodes.decision}/{engine.config.space.num_decisions}  "
        f"patches {_patches_left(engine, episodes)}/{engine.config.num_patches}  MACs {spent:.0%} of {total:.0%}  "
        f"says {class_name(source, prediction)} ({confidence:.0%})  label {class_name(source, int(episodes.label[0]))}"
    )


def image_name(source: ImageSource, index: int) -> str:
    """The file of an image, with the folder that it is in, where the source knows files; else its number."""
    name = getattr(source, "image_name", lambda index: "")(index)
    return str(Path(*Path(name).parts[-2:])) if name else f"image {index}"


def class_name(source: ImageSource, label: int) -> str:
    """The name of a class, where the source knows names; else its number."""
    return getattr(source, "class_names", {}).get(label, str(label))


class _Panel:
    """Bars and words in a column of a frame.

    Args:
        draw: What draws on the frame.
        left: Of the column, in pixels.
        width: Width of the column in pixels.
    """

    def __init__(self, draw: ImageDraw.ImageDraw, left: int, width: int) -> None:
        self._draw, self._left, self._width = draw, left, width
        self._font = ImageFont.load_default(FONT_SIZE)

    def text(self, top: int, text: str, colour: Colour, right: bool = False) -> None:
        """Words at the left or right end."""
        x = self._left + (self._width - self._draw.textlength(text, self._font) if right else 0)
        self._draw.text((x, top), text, fill=colour, font=self._font)

    def shortened(self, text: str, beside: str, room: int | None = None) -> str:
        """Words that leave room for others on their line; what is too much of them is left out in the middle."""
        left = (self._width if room is None else room) - self._draw.textlength(f"  {beside}", self._font)
        if self._draw.textlength(text, self._font) <= left:
            return text
        kept = next((k for k in range(len(text) - 1, 1, -1) if self._draw.textlength(text[:k], self._font) < left), 2)
        return f"{text[: kept // 2]}…{text[len(text) - kept // 2 + 1 :]}"

    def columns(self, top: int, name: str, values: list[list[float]], decided: int, colour: Colour) -> None:
        """Upright bars of (slots, bars per slot) values in [0, 1]; from slot `decided` on there are empty frames."""
        self.text(top, name, INK)
        base, height, slot = top + 42, 26, self._width / len(values)
        for i, bars in enumerate(values):
            part = (slot - 3) / len(bars)
            for j, value in enumerate(bars):
                x = self._left + i * slot + j * part
                right = x + max(part - 2 * (j < len(bars) - 1), 1)
                if i < decided:
                    self._draw.rectangle((x, base - height, right, base), fill=TRACK)
                    self._draw.rectangle((x, base - height * float(value), right, base), fill=colour)
                else:
                    self._draw.rectangle((x, base - height, right, base), outline=TRACK)

    def meter(self, top: int, text: str, fraction: float, colour: Colour, to_go: float = 0.0, note: str = "") -> None:
        """A lying bar with its words to the left; `to_go` is a second, paler bar behind it."""
        self.text(top, f"{self.shortened(text, note, METER - 4)} {note}", INK)
        left, right = self._left + METER, self._left + self._width
        for value, fill in ((1.0, TRACK), (to_go, TO_GO), (fraction, colour)):
            if value > 0:
                end = left + (right - left) * min(float(value), 1.0)
                self._draw.rectangle((left, top + 2, end, top + 11), fill=fill)


def _enlarged(image: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """(C, S, S) as (side, side, 3)."""
    rgb = image[:3] if image.shape[0] >= 3 else np.broadcast_to(image[:1], (3, *image.shape[1:]))
    way = Image.Resampling.NEAREST if side >= PIXELATED * image.shape[-1] else Image.Resampling.BICUBIC
    return np.asarray(Image.fromarray(np.ascontiguousarray(rgb.transpose(1, 2, 0))).resize((side, side), way))


def _borders(tokens: NDArray[np.int64], rim: int) -> NDArray[np.bool_]:
    """Which pixels are less than `rim` from another token, or from the edge."""
    side, border = len(tokens), np.zeros(tokens.shape, dtype=bool)
    padded = np.pad(tokens, rim, constant_values=-2)
    for down, right in ((-rim, 0), (rim, 0), (0, -rim), (0, rim)):
        border |= padded[rim + down : rim + down + side, rim + right : rim + right + side] != tokens
    return border


def _group_colour(patch: int) -> NDArray[np.uint8]:
    """Hues a golden section apart differ well, however many there are."""
    return np.round(255 * np.array(colorsys.hsv_to_rgb(patch * GOLDEN % 1, 0.75, 1.0))).astype(np.uint8)


def _patches_left(engine: InferenceEngine, episodes: Episodes) -> int:
    """Tokens that go on, without the class token: what the next group pays for."""
    return int(episodes.state.num_tokens[0]) - (engine.config.num_tokens - engine.config.num_patches)


def _gap(num_patches: int) -> int:
    """Pixels between patches: none that could be seen of small ones."""
    return 4 if IMAGE_SIDE / math.isqrt(num_patches) >= 32 else 2


@torch.inference_mode()
def _verdict(engine: InferenceEngine, episodes: Episodes) -> tuple[int, float]:
    """Class predicted if the network is finished at full size from here, and its probability.

    Episodes know the probability of the label only, and with terminal rewards nothing before the end, so the one image
    is finished here.
    """
    probs = engine.net.finish(episodes.state).float().softmax(-1)[0]
    prediction = int(episodes.prediction[0])
    prediction = int(probs.argmax()) if prediction < 0 else prediction
    return prediction, float(probs[prediction])
