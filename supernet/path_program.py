"""The integer program of a subnet within a budget of MACs: a path through a token graph, with a size for every block.

What makes one subnet better than another is added by who asks: `supernet.design`, `supernet.nearest`.
"""

from __future__ import annotations

import numpy as np

from .arrays import Ints
from .config import SupernetConfig
from .integer_program import IntegerProgram, Terms
from .subnet import SubnetConfig
from .token_graph import Arc, Graph, Path, fixed_macs, full_macs, macs_of, subnets_of


class PathProgram(IntegerProgram):
    """One column for every arc, and for every block on it one for every size; sums of each are 1 on the way.

    Args:
        config: The supernet.
        graph: Its token graph.

    Attributes:
        picked: Of every decided group the columns (arcs,) of its arcs and (arcs, blocks, sizes) of sizes.
    """

    def __init__(self, config: SupernetConfig, graph: Graph) -> None:
        super().__init__()
        self.config, self.graph = config, graph
        self.picked: list[tuple[Ints, Ints]] = []
        for number, arcs in enumerate(graph):
            self._add_group(arcs, config.space.groups[config.space.first_decided + number])

    def _add_group(self, arcs: list[Arc], blocks: int) -> None:
        sizes = arcs[0].more.shape[1]
        taken = self.columns(len(arcs), integral=True)
        sized = self.columns(len(arcs) * blocks * sizes, integral=True).reshape(len(arcs), blocks, sizes)
        for arc, of_blocks in zip(taken, sized, strict=True):
            for of_block in of_blocks:
                self.row(0, 0, (of_block, 1), (arc[None], -1))
        if not self.picked:
            self.row(1, 1, (taken, 1))
        else:
            before = self.graph[len(self.picked) - 1]
            for node in {arc.before for arc in arcs}:
                leave = taken[[arc.before == node for arc in arcs]]
                arrive = self.picked[-1][0][[arc.after == node for arc in before]]
                self.row(0, 0, (leave, 1), (arrive, -1))
        self.picked.append((taken, sized))

    def within(self, budget: float, precision: float) -> SubnetConfig | None:
        """The best subnet of at most `budget` MACs; None if there is none.

        Args:
            budget: MACs of an image.
            precision: What is within this share of the best gain counts as equal.
        """
        macs: list[Terms] = []
        for arcs, (taken, sized) in zip(self.graph, self.picked, strict=True):
            macs += [(taken, np.array([arc.base for arc in arcs])), (sized, np.stack([arc.more for arc in arcs]))]
        unit, limit = full_macs(self.config), budget
        while True:
            # In units of the full network, since solvers allow an error of 1e-6; what exceeds by it is asked again.
            self.row(-np.inf, (limit - fixed_macs(self.config)) / unit, *((at, values / unit) for at, values in macs))
            found = self.solve(precision)
            if found is None:
                return None
            path: Path = []
            for arcs, (taken, sized) in zip(self.graph, self.picked, strict=True):
                arc = int(found[taken].argmax())
                path.append((arcs[arc].rates, found[sized[arc]].argmax(axis=1)))
            subnet = subnets_of(self.config, path)
            excess = int(macs_of(self.config, subnet)[0]) - budget
            if excess <= 0:
                return subnet
            limit -= excess
