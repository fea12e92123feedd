"""What `torch.compile` is kept out of: planning a batch, whose sizes are numbers of the host."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import torch

Method = TypeVar("Method", bound=Callable[..., Any])


def eager(method: Method) -> Method:
    """A method that runs as it is inside `torch.compile`, and says what to compile instead.

    Compiled, planning would be a graph for every batch: minutes of compilation until PyTorch gives up.
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
        return method(*args, **kwargs)

    return called  # type: ignore[return-value]
