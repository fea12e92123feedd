"""Figures of images, and of what an agent does to them."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from agents.protocol import Agent
from prance_env.engine import InferenceEngine
from prance_env.episodes import Episodes
from prance_env.images.source import ImageSource
from prance_env.rendering import class_name, draw_patches, image_name
from prance_env.settings import EnvSettings
from supernet.arrays import Ints, evenly

from ..play import play
from .style import BLUE, GREEN, GREY, VERMILLION, save_figure

SIDE, GAP = 512, 8
WIDTH, BELOW, HEAD = 2.35, 0.46, 0.62
"""Inches of a column, what is below an image relative to it, and inches above all of them."""


def plot_scenes(engine: InferenceEngine, index: NDArray[np.int64], path: Path) -> None:
    """The images `index` with their classes and strata.

    Args:
        engine: Whose data set.
        index: Images to show, eight a row.
        path: PNG file to write.
    """
    dataset = engine.dataset
    rows = -(-len(index) // 8)
    figure, grid = plt.subplots(rows, 8, figsize=(12, 1.75 * rows), squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for axes, i, image in zip(grid.flat, index.tolist(), dataset.fetch(index), strict=False):
        axes.imshow(image.permute(1, 2, 0).numpy(), cmap="gray")
        told = class_name(dataset, int(dataset.labels[i]))
        axes.set_title(f"{told}  ({dataset.difficulty_name} {dataset.difficulty[i]})", fontsize=8)
    save_figure(figure, path)


def of_every_kind(source: ImageSource, most: int = 12) -> Ints:
    """The first image of each stratum, the easiest first; where there is but one stratum, of each class."""
    kinds = source.difficulty.numpy()
    if len(np.unique(kinds)) == 1:
        kinds = source.labels.numpy()
    first = np.unique(kinds, return_index=True)[1]
    return first[evenly(len(first), most)]


def plot_episodes(
    agent: Agent, engine: InferenceEngine, settings: EnvSettings, index: Ints, path: Path, question: str = ""
) -> None:
    """One row per image: the image, and after each decision the patches that are left and the widths of all blocks.

    Args:
        agent: Who decides.
        engine: Supernet and images.
        settings: Observation and action convention of the agent.
        index: Images to show.
        path: PNG file to write.
        question: What the classes answer.
    """
    steps, _ = play(agent, settings, engine, index)
    images = engine.dataset.fetch(steps[0].index).numpy()
    columns, rows = len(steps), len(index)
    width, height = WIDTH * columns, WIDTH * (1 + BELOW) * rows + HEAD
    figure = plt.figure(figsize=(width, height))
    ratios = [1.0, BELOW] * rows
    grid = figure.add_gridspec(2 * rows, columns, height_ratios=ratios, hspace=0.03, wspace=0.09, top=1 - HEAD / height)
    figure.text(0.51, 1 - 0.02 / height, question or "What an agent keeps", fontsize=15, ha="center", va="top")
    for column, episodes in enumerate(steps):
        for row in range(rows):
            one = episodes.host[np.array([row])]
            _show_patches(figure.add_subplot(grid[2 * row, column]), images[row], one, row == 0)
            below = figure.add_subplot(grid[2 * row + 1, column])
            below.set_axis_off()
            below.set_ylim(0, 2.7)
            if column:
                _show_choices(below, one, engine, named=column == 1)
            else:
                _show_answer(below, one, engine.dataset)
    save_figure(figure, path)


def _show_patches(axes: Axes, image: NDArray[np.uint8], one: Episodes, first: bool) -> None:
    """The image, with what has been dropped dimmed."""
    axes.imshow(draw_patches(image, one.state.patch_token[0].cpu().numpy(), SIDE, GAP if one.decision else 0))
    axes.set_axis_off()
    if first:
        axes.set_title(f"after decision {one.decision}" if one.decision else "the image", fontsize=11, pad=5)


def _show_choices(axes: Axes, one: Episodes, engine: InferenceEngine, named: bool) -> None:
    """Patches left, and a bar for each block, as high as it is wide; an empty frame where that is not decided yet."""
    space, state = engine.config.space, one.state
    axes.set_xlim(-0.5, space.depth - 0.5)
    run = space.blocks(state.group - 1).stop if state.group else 0
    for block, width in enumerate(one.embed_dim[0] / space.embed_dims[-1]):
        decided = block < run
        axes.bar(block, 1.0, 0.8, facecolor="none", edgecolor=GREY, linewidth=0.8, linestyle="-" if decided else ":")
        axes.bar(block, width if decided else 0, 0.8, facecolor=BLUE)
    tokens = one.state.patch_token[0].cpu().numpy()
    over = one.decision == space.num_decisions
    spent = f"patches, {one.macs[0] / engine.full_macs:.0%} of the MACs" if over else f"of {len(tokens)} patches"
    axes.text(-0.4, 2.6, f"{(tokens >= 0).sum()} {spent}", fontsize=9, va="top")
    if over:
        colour, said = (GREEN, "right") if one.success[0] else (VERMILLION, "wrong")
        text = f"says {class_name(engine.dataset, int(one.prediction[0]))}, {said}"
        axes.text(-0.4, 1.15, text, fontsize=11, fontweight="bold", color=colour, va="bottom")
    elif named:
        axes.text(-0.4, 1.15, "widths of the blocks:", fontsize=9, color=BLUE, va="bottom")


def _show_answer(axes: Axes, one: Episodes, source: ImageSource) -> None:
    """The class, and what else is known of the image."""
    axes.set_xlim(0, 1)
    axes.text(0, 2.6, f"answer: {class_name(source, int(one.label[0]))}", fontsize=11, fontweight="bold", va="top")
    if len(np.unique(source.difficulty.numpy())) > 1:
        told = f"{source.difficulty_name}: {int(source.difficulty[one.index[0]])}"
    else:
        told = image_name(source, int(one.index[0]))
    axes.text(0, 1.75, told, fontsize=9, color=GREY, va="top")
