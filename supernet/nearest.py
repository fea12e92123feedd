"""The subnet of a search space that is nearest to a static network of any sizes, within a budget of MACs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .arrays import Floats
from .block_sizes import BlockSizes
from .config import SupernetConfig
from .path_program import PathProgram
from .plan import hidden_dims
from .subnet import SubnetConfig
from .token_graph import check_budget, check_sums, size_list, token_graph

LEVELS = 16
PRECISION = 1e-4


def nearest_subnet(
    config: SupernetConfig, sizes: Sequence[BlockSizes], mac_budget: float, levels: int = LEVELS
) -> SubnetConfig:
    """The subnet whose sizes differ least; exact, by an integer program.

    The distance is the sum over blocks of |log ratio| of widths, of hidden units, of channels of all heads and of the
    tokens that the MLP runs on.

    Args:
        config: The supernet.
        sizes: Of as many blocks as it has.
        mac_budget: Most multiply-accumulates for an image.
        levels: Token counts to choose from: 1/levels, 2/levels, ... of all patches.

    Raises:
        ValueError: If no subnet is within the budget, the blocks are not as many, or the supernet follows the authors'
            rules, by which the MACs of a group depend on the next one.
    """
    check_sums(config)
    if len(sizes) != config.space.depth:
        raise ValueError(f"{len(sizes)} blocks cannot be compared with the {config.space.depth} of this supernet.")
    graph = token_graph(config, levels)
    check_budget(config, graph, mac_budget)
    program = PathProgram(config, graph)
    for number, (arcs, (taken, sized)) in enumerate(zip(graph, program.picked, strict=True)):
        blocks = config.space.blocks(config.space.first_decided + number)
        own = [sizes[block] for block in blocks]
        program.add_gain(sized, -np.stack([_distances(config, block) for block in own]))
        left = np.log([[arc.after / block.left for block in own] for arc in arcs])
        program.add_gain(taken, -np.abs(left).sum(axis=1))
    found = program.within(mac_budget, PRECISION)
    assert found is not None, "the budget was checked"
    return found


def _distances(config: SupernetConfig, block: BlockSizes) -> Floats:
    """(sizes,) of a block to every size that one of the space can have, tokens left out."""
    dims, ratios = (np.array(values) for values in zip(*size_list(config), strict=True))
    inner = np.array([config.space.heads(width) for width in dims.tolist()]) * config.head_dim
    own = (block.embed_dim, block.hidden_dim, block.num_heads * (block.qk_dim + block.v_dim) / 2)
    distances: Floats = np.abs(np.log(np.stack([dims, hidden_dims(dims, ratios), inner]) / np.array(own)[:, None])).sum(
        0
    )
    return distances
