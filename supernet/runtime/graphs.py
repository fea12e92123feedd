"""Functions of tensors as CUDA graphs: recorded once, replayed for one launch instead of hundreds."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from itertools import chain
from math import inf
from threading import Lock
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn

from ..plain import HOOKS, REPLACED
from .devices import current

Tensors = dict[str, Tensor]
Function = Callable[[Tensors], Tensors]

WARM_UP = 2
"""Calls on a side stream before a graph is recorded, as PyTorch's notes on CUDA graphs ask for."""

RECORDED = 3
"""The use of a function at which it is recorded, which takes as long as several of its runs."""

IDLE, KNOWN = 256, 256
"""Runs without it after which a graph is no longer in use, and functions without a graph whose uses are counted."""

_RECORDING = Lock()
"""Held while a graph is recorded: a process can record one at a time."""


class _Tree(NamedTuple):
    """The modules of a network, kept, since walking through them takes a good part of what a replayed step takes."""

    containers: list[dict[str, Any]]
    modules: list[Any]
    tensors: list[dict[str, Any]]
    hooks: list[dict[Any, Any]]
    attributes: list[dict[str, Any]]

    @classmethod
    def of(cls, root: nn.Module) -> _Tree:
        """Of a network as it is now."""
        everything = [*root.modules()]
        containers = [module._modules for module in everything if module._modules]
        tensors = [d for module in everything for d in (module._parameters, module._buffers) if d]
        attributes = [module.__dict__ for module in everything]
        hooks = [own[name] for own in attributes for name in HOOKS]
        return cls(containers, [*_values(containers)], tensors, hooks, attributes)


_TREES: WeakKeyDictionary[nn.Module, _Tree] = WeakKeyDictionary()


def _values(dictionaries: list[dict[str, Any]]) -> Iterator[Any]:
    return chain.from_iterable(map(dict.values, dictionaries))


def standing(root: nn.Module) -> Hashable:
    """Which network it is and where its numbers lie, for the name of a function that reads them.

    A graph reads addresses, which are others after `module.cpu().cuda()`, and may then hold anything. It calls no hook,
    and no `forward` that was put into a layer: with these, no two names are equal, so that nothing is recorded.
    """
    tree = _TREES.get(root)
    if tree is None or [*_values(tree.containers)] != tree.modules:
        tree = _TREES[root] = _Tree.of(root)
    watched = any(tree.hooks) or any(map(REPLACED, tree.attributes))
    tensors = tuple([(t.data_ptr(), t.stride()) for t in _values(tree.tensors) if t is not None])
    return ref(root), object() if watched else None, tensors


def standing_net(net: Any) -> Hashable:
    """`standing` of a supernet, and what it computes by: its configuration, and what the names in it stand for now."""
    return net.config, net.config.stands_for, standing(net)


class _Room:
    """What graphs share of which one runs at a time, on the current GPU.

    Attributes:
        pool: Their memory.
        stream: Where they are recorded. cuBLAS keeps a workspace for each stream, which graphs then use wherever they
            are replayed: of a stream of others, two graphs would at a time.
        done: The end of the last run.
        open: Whether more may be recorded: after a recording that failed, PyTorch's allocator says that it goes on.
    """

    def __init__(self) -> None:
        self.open = True
        self.pool, self.stream, self.done = torch.cuda.graph_pool_handle(), torch.cuda.Stream(), torch.cuda.Event()


class CudaGraph:
    """One function at inputs of fixed shapes, recorded on the current GPU.

    Args:
        function: Takes and gives tensors by name; launches the same for all values of its inputs, and waits for none.
        inputs: With the shapes and types to record it for.
        beside: A graph whose room is open, to share memory with: they never run at the same time. None: it has its own.
    """

    def __init__(self, function: Function, inputs: Tensors, beside: CudaGraph | None = None) -> None:
        # Memory is shared with a graph, not kept by its number: PyTorch forgets the number with the last graph.
        self.room: _Room = beside.room if beside is not None else _Room()
        self.graph = torch.cuda.CUDAGraph()
        before, stream = torch.cuda.current_stream(), self.room.stream
        with _RECORDING, self.turn():
            self.inputs = {name: value.clone() for name, value in inputs.items()}
            stream.wait_stream(before)
            try:
                # Entered here, since torch.cuda.graph leaves its stream the current one if the end of recording fails.
                with torch.cuda.stream(stream):
                    # On the same stream, so that cuBLAS's workspace does not lie in the graphs' memory.
                    for _ in range(WARM_UP):
                        function(self.inputs)
                    self.room.open = False
                    # By itself, what other threads ask of CUDA meanwhile would be an error.
                    with torch.cuda.graph(self.graph, self.room.pool, stream, capture_error_mode="thread_local"):
                        self.outputs = function(self.inputs)
                    self.room.open = True
            finally:
                before.wait_stream(stream)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Around a run, from inputs to what is made of outputs: it waits for the one before, on whatever stream."""
        torch.cuda.current_stream().wait_event(self.room.done)
        try:
            yield
        finally:
            self.room.done.record()

    def replay(self) -> None:
        """Runs it on what `inputs` hold; `outputs` then hold what comes out."""
        self.graph.replay()


class Recorder:
    """Runs functions of tensors, those that come by often as CUDA graphs.

    The first call compiles kernels, the third with the same shapes records. What comes out is the caller's: nothing
    overwrites it. What cannot be recorded runs as it is, with a warning.

    Args:
        most: Graphs that are kept. Another one takes the place of the one that was not used for longest, but of none
            that is in use: with batches of many sizes, recording would take more time than it saves.
        record: What makes a graph.
    """

    def __init__(self, most: int = 16, record: Callable[[Function, Tensors, Any], Any] = CudaGraph) -> None:
        self.most, self.record = most, record
        self._graphs: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        self._uses: OrderedDict[Hashable, float] = OrderedDict()
        self._runs = 0
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

        Warns:
            UserWarning: If it cannot be recorded.
        """
        key = (name, tuple((k, v.shape, v.dtype, v.device) for k, v in inputs.items()))
        with self._lock, current(next(iter(inputs.values())).device):
            self._runs += 1
            if key in self._graphs:
                graph, _ = self._graphs.pop(key)
            elif self._due(key):
                graph, failure = self._recorded(function, inputs)
                if graph is None:
                    out = function(inputs)  # with errors of its own, if these were what failed
                    self._uses[key] = -inf
                    _warn_once(failure)
                    return out
                del self._uses[key]
            else:
                return function(inputs)
            self._graphs[key] = graph, self._runs
            with graph.turn():
                _copy(inputs, graph.inputs)
                graph.replay()
                return copies(graph.outputs)

    def _due(self, key: Hashable) -> bool:
        """Whether it is time to record what has no graph; this counts as a use of it."""
        self._uses[key] = self._uses.pop(key, 0) + 1
        if len(self._uses) > KNOWN:
            self._uses.popitem(last=False)
        if self._uses[key] < RECORDED:
            return False
        return len(self._graphs) < self.most or self._runs - next(iter(self._graphs.values()))[1] > IDLE

    def _recorded(self, function: Function, inputs: Tensors) -> tuple[Any, str]:
        """A graph, for which there is room then; or None, and why there is none."""
        while len(self._graphs) >= self.most:
            self._graphs.popitem(last=False)
        device = next(iter(inputs.values())).device
        there = (
            graph
            for graph, _ in reversed(self._graphs.values())
            if graph.room.open and next(iter(graph.inputs.values())).device == device
        )
        try:
            return self.record(function, inputs, next(there, None)), ""
        except Exception as e:  # of CUDA, its allocator or the function; not kept, as it holds tensors
            return None, " ".join(str(e).split()) or type(e).__name__


def copies(tensors: Tensors) -> Tensors:
    """Copies of tensors: one launch for all of a type, not one for each."""
    out = {name: torch.empty_like(value) for name, value in tensors.items()}
    _copy(tensors, out)
    return out


def _copy(source: Tensors, target: Tensors) -> None:
    """Copies tensors to those of the same names, shapes and types."""
    pairs: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
    for name, value in source.items():
        into, values = pairs.setdefault(value.dtype, ([], []))
        into.append(target[name])
        values.append(value)
    for into, values in pairs.values():
        torch._foreach_copy_(into, values)


@lru_cache
def _warn_once(failure: str) -> None:
    warnings.warn(
        f"A step could not be recorded as a CUDA graph, and runs without, which is slower: {failure} "
        "(supernet.runtime.use(graphs=False) records none).",
        stacklevel=4,
    )
