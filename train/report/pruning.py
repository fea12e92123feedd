"""What global pruning left of every block, as NViT's rank statistics show it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt

from supernet.block_sizes import BlockSizes

from .style import looks, percent, plain_axes, save_figure

SHOWN = {
    "embed_dim": "embedding",
    "num_heads": "heads",
    "qk_dim": "channels of Q, K",
    "v_dim": "channels of V",
    "hidden_dim": "hidden units",
    "left": "tokens",
}


def plot_pruning(whole: Sequence[BlockSizes], left: Mapping[str, Sequence[BlockSizes]], path: Path) -> None:
    """One panel for every kind of unit: the share of it that each block keeps, a line for each network.

    Args:
        whole: Sizes of all blocks before.
        left: Sizes after, by what the networks are called.
        path: PNG file to write.
    """
    figure, grid = plt.subplots(2, 3, figsize=(11, 5.5), sharex=True, sharey=True, layout="constrained")
    drawn = looks(left)
    for axes, (size, title) in zip(grid.flat, SHOWN.items(), strict=True):
        for name, sizes in left.items():
            kept = [getattr(after, size) / getattr(before, size) for before, after in zip(whole, sizes, strict=True)]
            look = drawn[name]
            axes.plot(range(1, len(kept) + 1), kept, color=look.colour, marker=look.marker, label=look.label)
        axes.set_title(title, fontsize=10)
        axes.set_ylim(0, 1.03)
        percent(axes)
        plain_axes(axes)
    for axes in grid[1]:
        axes.set_xlabel("block")
    for axes in grid[:, 0]:
        axes.set_ylabel("share kept")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, title="target", loc="outside lower center", ncols=len(labels), frameon=False)
    save_figure(figure, path)
