"""Writing ONNX graphs node by node, with branches that share the weights of the graph around them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class GraphWriter:
    """A graph that is being written; names are unique in it and in all its branches.

    Args:
        onnx: The package, which is an extra.
        outer: The graph that this one is a branch of; None: none.
    """

    def __init__(self, onnx: Any, outer: GraphWriter | None = None) -> None:
        self.onnx, self.nodes = onnx, list[Any]()
        self.root: GraphWriter = self if outer is None else outer.root
        self.initializers: dict[str, Array] = {}
        self.count = 0

    def add(self, op: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        """Adds a node; returns the name of its output, or the names if there are several."""
        names = [self.new(op) for _ in range(outputs)]
        self.nodes.append(self.onnx.helper.make_node(op, list(inputs), names, **attributes))
        return names[0] if outputs == 1 else names

    def new(self, stem: str) -> str:
        """A name that nothing has."""
        self.root.count += 1
        return f"{stem.lower()}_{self.root.count}"

    def constant(self, value: Any, dtype: Any = None) -> str:
        """A constant of the graph around all."""
        array = np.asarray(value, dtype=dtype)
        found = next((k for k, v in self.root.initializers.items() if k.startswith("const") and _same(v, array)), None)
        if found is None:
            found = self.new("const")
            self.root.initializers[found] = array
        return found

    def ints(self, *values: int) -> str:
        """A constant vector of whole numbers."""
        return self.constant(values, np.int64)

    def weight(self, name: str, array: Array, shape: Sequence[int]) -> str:
        """The first entries of a weight along every dimension; the weight itself stands in the file once.

        Args:
            name: Of the weight.
            array: The whole of it.
            shape: How much of it.
        """
        self.root.initializers.setdefault(name, np.ascontiguousarray(array))
        if tuple(shape) == array.shape:
            return name
        axes = [i for i, n in enumerate(shape) if n != array.shape[i]]
        ends = self.ints(*(shape[i] for i in axes))
        return str(self.add("Slice", name, self.ints(*(0 for _ in axes)), ends, self.ints(*axes)))

    def choose(self, index: str, branches: Sequence[Callable[[GraphWriter], Sequence[str]]], outputs: int) -> list[str]:
        """One of several branches, found by halving.

        Args:
            index: () int64, which.
            branches: Each writes its nodes and says what comes out.
            outputs: How many things come out of each.
        """
        return self._halved(index, branches, 0, outputs)

    def _halved(self, index: str, branches: Sequence[Any], first: int, outputs: int) -> list[str]:
        if len(branches) == 1:
            return [*branches[0](self)]
        middle = len(branches) // 2
        low = self.add("Less", index, self.constant(first + middle, np.int64))
        halves = {"then_branch": (branches[:middle], first), "else_branch": (branches[middle:], first + middle)}
        graphs = {}
        for name, (part, begin) in halves.items():
            inner = GraphWriter(self.onnx, self)
            found = inner._halved(index, part, begin, outputs)
            # What comes out of a branch must be made in it.
            graphs[name] = inner.graph(name, [], [inner.add("Identity", out) for out in found])
        out = self.add("If", low, outputs=outputs, **graphs)
        return [out] if outputs == 1 else out

    def graph(self, name: str, inputs: Sequence[Any], outputs: Sequence[Any]) -> Any:
        """The finished graph; outputs are names, or descriptions with types."""
        make = self.onnx.helper
        described = [make.make_empty_tensor_value_info(o) if isinstance(o, str) else o for o in outputs]
        weights = [self.onnx.numpy_helper.from_array(v, k) for k, v in self.initializers.items()]
        return make.make_graph(self.nodes, name, list(inputs), described, weights)


def _same(a: Array, b: Array) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.size <= 64 and bool((a == b).all())
