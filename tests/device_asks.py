"""Finds what waits for a GPU, on a machine without one."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from supernet.runtime.graphs import Function, Recorder, Tensors

ASKS = ("numpy", "item", "tolist", "cpu", "nonzero", "__bool__", "__int__", "__float__", "__index__", "__array__")


@contextmanager
def nothing_asked_of_the_device(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Within the block, an error wherever the host asks for a number that a tensor holds.

    On a GPU that would wait for it. Here it costs nothing, so the methods that ask are made to fail; inside kernels
    they work, since Triton's interpreter is made of them.
    """
    from triton.runtime.interpreter import GridExecutor

    launch, inside = GridExecutor.__call__, [False]

    def guarded(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def ask(*args: Any, **kwargs: Any) -> Any:
            assert inside[0], f"Tensor.{name} waits for the device"
            return method(*args, **kwargs)

        return ask

    def launched(self: Any, *args: Any, **kwargs: Any) -> None:
        inside[0] = True
        try:
            launch(self, *args, **kwargs)
        finally:
            inside[0] = False

    with monkeypatch.context() as patch:
        patch.setattr(GridExecutor, "__call__", launched)
        for name in ASKS:
            patch.setattr(torch.Tensor, name, guarded(name, getattr(torch.Tensor, name)))
        yield


@contextmanager
def nothing_copied_from_the_host(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Within the block, an error wherever a tensor is made of numbers of the host: a GPU would be sent them."""

    def guarded(name: str) -> Callable[..., Any]:
        def copy(*args: Any, **kwargs: Any) -> Any:
            raise AssertionError(f"torch.{name} copies from the host")

        return copy

    with monkeypatch.context() as patch:
        for name in ("from_numpy", "as_tensor", "tensor"):
            patch.setattr(torch, name, guarded(name))
        yield


class NotingRecorder(Recorder):
    """Notes how functions are named that would be recorded, and runs none."""

    class Asked(Exception):
        """In the place of results."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[Hashable] = []

    def run(self, name: Hashable, function: Function, inputs: Tensors) -> Tensors:
        self.names.append(name)
        raise self.Asked
