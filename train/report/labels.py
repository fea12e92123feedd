"""Names beside the points that they belong to, where there is room, instead of a legend."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

DIRECTIONS = [(1, 0), (1, -1), (1, 1), (0, 1), (0, -1), (-1, 0), (-1, 1), (-1, -1)]
DISTANCES = (9, 15, 24, 36, 50, 70, 95)
"""Of a label from its point, in points of the figure; from the third on a thin line leads there."""
HALF_MARKER, FONT_SIZE, MOST_LETTERS, SAMPLES = 5.0, 9, 14, 24
PER_OBSTACLE, MOST_OBSTACLES, ASTRAY = 12.0, 2, 100.0
"""What a bit of a line under a name costs, how many there may be, and to stand nearer to something else."""


class Entry(NamedTuple):
    """What is to be named.

    Attributes:
        points: (N, 2) in the axes' data: where a name may stand.
        lines: (M, 2) each: what else is drawn of it, its intervals among them.
        colour: Of the label.
    """

    points: NDArray[np.float64]
    lines: Sequence[NDArray[np.float64]]
    colour: str


class _Place(NamedTuple):
    text: str
    score: float
    obstacles: int
    point: NDArray[np.float64]
    shift: NDArray[np.float64]
    box: NDArray[np.float64]
    leader: NDArray[np.float64]


class _Room(NamedTuple):
    frame: NDArray[np.float64]
    markers: NDArray[np.float64]
    own: NDArray[np.float64]
    others: NDArray[np.float64]
    taken: list[_Place]


def label_beside(axes: Axes, entries: Mapping[str, Entry]) -> list[str]:
    """Writes names beside their points, so that no name covers another one, a point, or more than a bit of a line, and
    no line to a name goes through another one.

    To be called when the axes have their limits and size.

    Args:
        axes: Where the points are drawn.
        entries: Points by name.

    Returns:
        The names for which there is no room: they are not written.
    """
    canvas: Any = axes.figure.canvas
    canvas.draw()
    pixels = {name: axes.transData.transform(entry.points) for name, entry in entries.items()}
    frame = axes.get_window_extent(canvas.get_renderer()).get_points()
    markers = np.concatenate([*pixels.values()])
    lines = {name: _samples(axes, entry.lines, pixels[name]) for name, entry in entries.items()}
    taken: list[_Place] = []
    missing = []
    for name in sorted(entries, key=lambda name: len(entries[name].points)):
        others = np.concatenate([pixels[name][:0], *(line for other, line in lines.items() if other != name)])
        room = _Room(frame, markers, lines[name], others, taken)
        places = []
        for text in dict.fromkeys((name, _in_lines(name))):
            size = _size(axes, text)
            candidates = _candidates(entries[name], pixels[name])
            places += [p for c in candidates if (p := _place(*c, text, size, room)) is not None]
        best = min(places, key=lambda place: place.score, default=None)
        if best is None or best.obstacles > MOST_OBSTACLES:
            missing.append(name)
            continue
        taken.append(best)
        _write(axes, entries[name].colour, best)
    return missing


def _candidates(
    entry: Entry, pixels: NDArray[np.float64]
) -> Iterator[tuple[NDArray[np.float64], NDArray[np.float64], tuple[int, int], int]]:
    for data, pixel in zip(entry.points, pixels, strict=True):
        for distance in DISTANCES:
            for direction in DIRECTIONS:
                yield data, pixel, direction, distance


def _place(
    data: NDArray[np.float64],
    pixel: NDArray[np.float64],
    direction: tuple[int, int],
    distance: int,
    text: str,
    size: NDArray[np.float64],
    room: _Room,
) -> _Place | None:
    """How good it is to write a name of `size` pixels at a distance from a point; None if it is impossible."""
    way = np.array(direction) / np.hypot(*direction) * distance
    low = pixel + way + size * (np.array(direction) - 1) / 2
    box, (left, right) = np.stack([low, low + size]), room.frame
    if (box[0] < left).any() or (box[1] > right).any() or (pixel < left).any() or (pixel > right).any():
        return None
    far = distance >= DISTANCES[2]
    leader = pixel + np.linspace(0, 1, SAMPLES)[:, None] * (box.mean(0) - pixel) if far else pixel[None][:0]
    if any(_overlap(box, leader, other) for other in room.taken):
        return None
    if (_apart(room.markers, box) < HALF_MARKER).any():
        return None
    own, others = _apart(room.own, box), _apart(room.others, box)
    crossed = int((own < 1).sum() + (others < 1).sum())
    astray = ASTRAY if others.min(initial=np.inf) < own.min() else 0
    return _Place(text, distance + PER_OBSTACLE * crossed + astray, crossed, data, way, box, leader)


def _overlap(box: NDArray[np.float64], leader: NDArray[np.float64], other: _Place) -> bool:
    """Whether a name or the line to it is where another one or its line is."""
    if (box[0] < other.box[1]).all() and (other.box[0] < box[1]).all():
        return True
    return bool((_apart(leader, other.box) == 0).any() or (_apart(other.leader, box) == 0).any())


def _write(axes: Axes, colour: str, place: _Place) -> None:
    dx, dy = (np.sign(np.round(v, 3)) for v in place.shift)
    scale = 72 / axes.figure.dpi
    line = {"arrowstyle": "-", "color": colour, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 3}
    axes.annotate(
        place.text,
        tuple(place.point),
        (place.shift[0] * scale, place.shift[1] * scale),
        textcoords="offset points",
        ha={1: "left", 0: "center", -1: "right"}[int(dx)],
        va={1: "bottom", 0: "center", -1: "top"}[int(dy)],
        fontsize=FONT_SIZE,
        linespacing=1.05,
        color=colour,
        arrowprops=line if len(place.leader) else None,
    )


def _in_lines(name: str) -> str:
    """A long name in two lines or so."""
    return "\n".join(textwrap.wrap(name, max(MOST_LETTERS, len(name) // 2 + 1)))


def _size(axes: Axes, name: str) -> NDArray[np.float64]:
    """Width and height of a name in pixels."""
    canvas: Any = axes.figure.canvas
    text = axes.text(0, 0, name, fontsize=FONT_SIZE, linespacing=1.05)
    low, high = text.get_window_extent(canvas.get_renderer()).get_points()
    text.remove()
    return high - low


def _samples(axes: Axes, lines: Sequence[NDArray[np.float64]], points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Pixels along lines, and those of the points."""
    share, found = np.linspace(0, 1, SAMPLES)[:, None], [points]
    for line in lines:
        found += [a + share * (b - a) for a, b in pairwise(axes.transData.transform(line))]
    return np.concatenate(found)


def _apart(points: NDArray[np.float64], box: NDArray[np.float64]) -> NDArray[np.float64]:
    """How far points are from a box; 0 inside."""
    return np.hypot(*np.maximum(np.maximum(box[0] - points, points - box[1]), 0).T)
