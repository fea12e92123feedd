"""Functions of tensors as CUDA graphs: recorded once, replayed for one launch instead of hundreds."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from itertools import chain
from threading import Lock
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn

from .devices import current

Tensors = dict[str, Tensor]
Function = Callable[[Tensors], Tensors]

WARM_UP = 2
"""Calls on a side stream before a graph is recorded, as PyTorch's notes on CUDA graphs ask for."""


class _Tree(NamedTuple):
    """The modules of a network, kept, since walking through them takes a good part of what a replayed step takes."""

    containers: list[dict[str, Any]]
    modules: list[Any]
    tensors: list[dict[str, Any]]

    @classmethod
    def of(cls, root: nn.Module) -> _Tree:
        """Of a network as it is now."""
        everything = [*root.modules()]
        containers = [module._modules for module in everything if module._modules]
        tensors = [d for module in everything for d in (module._parameters, module._buffers) if d]
        return cls(containers, [*_values(containers)], tensors)


_TREES: WeakKeyDictionary[nn.Module, _Tree] = WeakKeyDictionary()


def _values(dictionaries: list[dict[str, Any]]) -> Iterator[Any]:
    return chain.from_iterable(map(dict.values, dictionaries))


def standing(root: nn.Module) -> Hashable:
    """Which network it is and where its numbers lie, for the name of a function that reads them.

    A graph reads addresses, which are others after `module.cpu().cuda()`, and may then hold anything.
    """
    tree = _TREES.get(root)
    if tree is None or [*_values(tree.containers)] != tree.modules:
        tree = _TREES[root] = _Tree.of(root)
    return ref(root), tuple([t.data_ptr() for t in _values(tree.tensors) if t is not None])


class CudaGraph:
    """One function at inputs of fixed shapes, recorded.

    Args:
        function: Takes and gives tensors by name; launches the same for all values of its inputs, and waits for none.
        inputs: With the shapes and types to record it for.
        pool: Memory that it shares with other graphs, none of which runs at the same time.
    """

    def __init__(self, function: Function, inputs: Tensors, pool: Any) -> None:
        self.inputs = {name: value.clone() for name, value in inputs.items()}
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                function(self.inputs)
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, pool=pool):
            self.outputs = function(self.inputs)

    def replay(self) -> None:
        """Runs it on what `inputs` hold; `outputs` then hold what comes out."""
        self.graph.replay()


class Recorder:
    """Runs functions of tensors, as CUDA graphs from the third call with the same shapes on.

    The first call compiles kernels, the second records. What comes out is the caller's: nothing overwrites it.

    Args:
        most: Graphs that are kept; of more, those go that were not used for longest.
        record: What makes a graph.
    """

    def __init__(self, most: int = 16, record: Callable[[Function, Tensors, Any], Any] = CudaGraph) -> None:
        self.most, self.record = most, record
        self._graphs: OrderedDict[Hashable, Any] = OrderedDict()
        self._pool: Any = None
        self._lock = Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies begin anew: graphs are of one process, and read the tensors that they were recorded with."""
        return type(self), (self.most, self.record)

    def run(self, name: Hashable, function: Function, inputs: Tensors) -> Tensors:
        """What the function gives for the inputs.

        Args:
            name: Of the function and of everything that it depends on beside its inputs; of modules, `standing`.
            function: Takes and gives tensors by name.
            inputs: On one GPU, which need not be the current one.
        """
        key = (name, tuple((k, v.shape, v.dtype, v.device) for k, v in inputs.items()))
        with self._lock, current(next(iter(inputs.values())).device):
            if key not in self._graphs:
                self._keep(key, None)
                return function(inputs)
            graph = self._graphs[key]
            if graph is None:
                if self._pool is None and self.record is CudaGraph:
                    self._pool = torch.cuda.graph_pool_handle()
                graph = self.record(function, inputs, self._pool)
            self._keep(key, graph)
            for static, value in zip(graph.inputs.values(), inputs.values(), strict=True):
                static.copy_(value)
            graph.replay()
            return {k: v.clone() for k, v in graph.outputs.items()}

    def _keep(self, key: Hashable, graph: Any) -> None:
        self._graphs[key] = graph
        self._graphs.move_to_end(key)
        while len(self._graphs) > self.most:
            self._graphs.popitem(last=False)
