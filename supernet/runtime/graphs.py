"""Functions of tensors as CUDA graphs: recorded once, replayed for one launch instead of hundreds."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock
from typing import Any

import torch
from torch import Tensor

Tensors = dict[str, Tensor]
Function = Callable[[Tensors], Tensors]

WARM_UP = 2
"""Calls on a side stream before a graph is recorded, as PyTorch's notes on CUDA graphs ask for."""


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
            name: Of the function and of everything that it depends on beside its inputs.
            function: Takes and gives tensors by name.
            inputs: On a GPU.
        """
        key = (name, tuple((k, v.shape, v.dtype, v.device) for k, v in inputs.items()))
        with self._lock:
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
