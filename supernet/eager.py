"""What `torch.compile` and `torch.func` are kept out of: planning a batch, whose sizes are numbers of the host."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch._C import _functorch

Method = TypeVar("Method", bound=Callable[..., Any])


def eager(method: Method) -> Method:
    """A method that runs as it is inside `torch.compile`, and says what to compile instead.

    Compiled, planning would be a graph for every batch: minutes of compilation until PyTorch gives up. Inside
    `torch.func.grad` and its like, which have no arrays of the host, it is a RuntimeError.
    """

    @torch.compiler.disable
    def uncompiled(*args: Any, **kwargs: Any) -> Any:
        warnings.warn(
            "torch.compile leaves a supernet as it is: how its images are computed is planned anew for every batch. "
            "Compile what has fixed sizes instead: torch.compile(net.extract(subnet)).",
            stacklevel=2,
        )
        return method(*args, **kwargs)

    @wraps(method)
    def called(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_dynamo_compiling():
            return uncompiled(*args, **kwargs)
        if _differentiated():
            raise RuntimeError(
                "torch.func.grad, jvp and their like cannot follow a supernet: how its images are computed is planned "
                "on the host for every batch. Transform what has fixed sizes instead, net.extract(subnet); or take "
                "Tensor.backward, which goes through a supernet, as torch.func.vmap does."
            )
        return method(*args, **kwargs)

    return called  # type: ignore[return-value]


def _differentiated() -> bool:
    """Whether a transform of `torch.func` is at work under which no tensor gives its values as an array."""
    stack = _functorch.get_interpreter_stack()
    return stack is not None and any(level.key() != _functorch.TransformType.Vmap for level in stack)


def transformed() -> bool:
    """Whether a transform of `torch.func` is at work: `vmap` knows no products that are written into a given place."""
    return _functorch.get_interpreter_stack() is not None


def values_are_known(tensor: Tensor) -> bool:
    """Whether the values of a tensor may be looked at: nobody compiles, exports, traces, transforms or records."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or type(tensor) is not Tensor or tensor.is_meta:
        return False
    recorded = tensor.is_cuda and torch.cuda.is_current_stream_capturing()
    return not recorded and not transformed()
