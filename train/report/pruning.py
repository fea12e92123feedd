"""What global pruning left of every block, as NViT's rank statistics show it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from supernet.block_sizes import BlockSizes

from .style import save_figure

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
    figure, grid = plt.subplots(2, 3, figsize=(11, 5.5), sharex=True, sharey=True)
    colours = plt.get_cmap("viridis")
    for axes, (size, title) in zip(grid.flat, SHOWN.items(), strict=True):
        for number, (name, sizes) in enumerate(left.items()):
            kept = [getattr(after, size) / getattr(before, size) for before, after in zip(whole, sizes, strict=True)]
            axes.plot(range(1, len(kept) + 1), kept, "o-", color=colours(number / max(len(left), 2)), label=name)
        axes.set_title(title, fontsize=10)
        axes.set_ylim(0, 1.05)
        axes.grid(alpha=0.3)
    for axes in grid[1]:
        axes.set_xlabel("block")
    for axes in grid[:, 0]:
        axes.set_ylabel("share kept")
    grid[0, 0].legend(title="target", fontsize=8)
    save_figure(figure, path)
