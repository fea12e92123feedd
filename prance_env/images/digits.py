"""The bundled task: which handwritten digit occurs twice?

A scene is a 4 x 4 grid of 12-pixel cells. n of them hold a digit, all different but for one that occurs twice; the
label is that digit (with n = 1, the only digit). Few digits need few patches, many need most of them, and a glance at
the scene tells how many there are: this makes it worthwhile to look before choosing how much to compute.

The digits are real handwriting, the 1,797 images of 8 x 8 pixels that scikit-learn ships (UCI Optical Recognition of
Handwritten Digits). Every source digit belongs to exactly one split.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch import Tensor

SPLITS = ("train", "val", "test")
SPLIT_SIZES = (1197, 250, 350)
GRID, CELL = 4, 12
SIDE = GRID * CELL

# How often a scene has n = 1, 2, ... 11 digits: few or many, seldom in between.
NUM_DIGITS_WEIGHTS = (0.18, 0.18, 0.18, 0.025, 0.025, 0.025, 0.025, 0.09, 0.09, 0.09, 0.09)
MAX_DIGITS = len(NUM_DIGITS_WEIGHTS)

TILES = {"train": 40_000, "val": 10_000, "test": 10_000}
# Ranges of a digit's rendering: pixels per source pixel, height / width, radians, pixels, brightness; noise of a scene.
SCALE, ASPECT, ANGLE, SHIFT, GAIN, NOISE_STD = (1.0, 1.4), (0.9, 1.1), (-0.2, 0.2), (-1.0, 1.0), (0.6, 1.1), 0.1


@dataclass(frozen=True)
class Scenes:
    """A batch of scenes.

    Attributes:
        images: (N, 1, 48, 48) uint8.
        labels: (N,) int64, the digit that occurs twice.
        num_digits: (N,) int64, the stratum.
        cells: (N, 16) int64, the digit in each cell, row by row, or -1.
    """

    images: Tensor
    labels: Tensor
    num_digits: Tensor
    cells: Tensor


def check_split(split: str) -> None:
    """Raises ValueError unless `split` is one of `SPLITS`."""
    if split not in SPLITS:
        raise ValueError(f"split={split!r} is unknown; choose one of {SPLITS}.")


@lru_cache(maxsize=1)
def source_splits() -> dict[str, NDArray[np.int64]]:
    """Indices of scikit-learn's digits in each split; disjoint, and the same for everybody."""
    order = np.random.default_rng(0).permutation(sum(SPLIT_SIZES))
    parts = np.split(order, np.cumsum(SPLIT_SIZES)[:-1])
    return dict(zip(SPLITS, parts, strict=True))


@lru_cache(maxsize=3)
def _tiles(split: str) -> tuple[NDArray[np.float32], list[NDArray[np.int64]]]:
    """Rendered digits (M, 12, 12) in 0..1 and, for every class, the tiles that show it."""
    data = load_digits()
    source = source_splits()[split]
    rng = np.random.default_rng([1, SPLITS.index(split)])
    m = TILES[split]
    pick = source[rng.permutation(m) % len(source)]
    scale, aspect = rng.uniform(*SCALE, m), rng.uniform(*ASPECT, m)
    angle, shift, gain = rng.uniform(*ANGLE, m), rng.uniform(*SHIFT, (2, m)), rng.uniform(*GAIN, m)
    # affine_grid maps output to input coordinates, both in [-1, 1]: an 8-pixel digit in a 12-pixel cell.
    sx, sy = CELL / 8 / (scale * aspect), CELL / 8 / (scale / aspect)
    cos, sin = np.cos(angle), np.sin(angle)
    theta = np.stack([cos * sx, -sin * sx, shift[0] / 4, sin * sy, cos * sy, shift[1] / 4], axis=1).reshape(m, 2, 3)
    digits = torch.from_numpy(data.images[pick].astype(np.float32) / 16)[:, None]
    grid = F.affine_grid(torch.from_numpy(theta.astype(np.float32)), [m, 1, CELL, CELL], align_corners=False)
    tiles = F.grid_sample(digits, grid, align_corners=False)[:, 0].numpy() * gain[:, None, None].astype(np.float32)
    classes = data.target[pick]
    return tiles.clip(0, 1), [np.flatnonzero(classes == c) for c in range(10)]


def make_scenes(
    num_scenes: int,
    split: str = "train",
    seed: int | np.integer[Any] | Sequence[int] = 0,
    num_digits: int | None = None,
    noise_seed: int | None = None,
) -> Scenes:
    """Draws scenes; the same arguments give the same scenes.

    Args:
        num_scenes: How many.
        split: "train", "val" or "test": which source digits are used.
        seed: Any non-negative integer, or several.
        num_digits: Fixes n for every scene; None draws it from `NUM_DIGITS_WEIGHTS`.
        noise_seed: Draws the noise anew, over the same digits in the same places; None: the noise of `seed`.

    Raises:
        ValueError: If an argument is out of range.
    """
    check_split(split)
    if num_scenes < 1:
        raise ValueError(f"num_scenes={num_scenes} must be at least 1.")
    if num_digits is not None and not 1 <= num_digits <= MAX_DIGITS:
        raise ValueError(f"num_digits={num_digits} must lie in 1..{MAX_DIGITS}.")
    seeds = [seed] if isinstance(seed, int | np.integer) else list(seed)
    if min(seeds) < 0:
        raise ValueError(f"seed={seed!r} must be non-negative.")
    tiles, by_class = _tiles(split)
    # numpy ignores trailing zeros of a seed; ending on the count keeps seed=3 and seed=[3, 0] apart.
    rng = np.random.default_rng([SPLITS.index(split), *seeds, len(seeds)])
    weights = np.array(NUM_DIGITS_WEIGHTS)
    n = rng.choice(MAX_DIGITS, num_scenes, p=weights / weights.sum()) + 1
    if num_digits is not None:
        n[:] = num_digits
    digits = rng.permuted(np.tile(np.arange(10), (num_scenes, 1)), axis=1)
    members = np.concatenate([digits[:, :1], digits], axis=1)  # the first digit twice, then the others once
    place = rng.permuted(np.tile(np.arange(GRID * GRID), (num_scenes, 1)), axis=1)[:, :MAX_DIGITS]
    present = np.arange(MAX_DIGITS) < n[:, None]

    scene, slot = np.nonzero(present)
    digit, cell = members[scene, slot], place[scene, slot]
    counts = np.array([len(t) for t in by_class])
    offsets = np.concatenate([[0], np.cumsum(counts)[:-1]])
    tile = np.concatenate(by_class)[offsets[digit] + (rng.random(len(digit)) * counts[digit]).astype(np.int64)]

    canvas = np.zeros((num_scenes, GRID, GRID, CELL, CELL), dtype=np.float32)
    canvas[scene, cell // GRID, cell % GRID] = tiles[tile]
    image = canvas.transpose(0, 1, 3, 2, 4).reshape(num_scenes, 1, SIDE, SIDE)
    if noise_seed is not None:
        rng = np.random.default_rng([2, SPLITS.index(split), *seeds, noise_seed, len(seeds)])
    image = image + NOISE_STD * rng.standard_normal(image.shape, dtype=np.float32)
    cells = np.full((num_scenes, GRID * GRID), -1)
    cells[scene, cell] = digit
    return Scenes(
        torch.from_numpy((image.clip(0, 1) * 255).round().astype(np.uint8)),
        torch.from_numpy(members[:, 0].copy()),
        torch.from_numpy(n),
        torch.from_numpy(cells),
    )
