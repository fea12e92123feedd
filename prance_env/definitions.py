"""What functions and classes of users are made of: what outlives a process is kept for one function, not for a name."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator, Mapping
from functools import partial
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
from torch import Tensor, device, dtype

_PLAIN = (type(None), type(...), bool, int, float, complex, str, bytes, dtype, device)
# Of what wraps a function.
_INNER = ("fget", "fset", "func", "__func__", "__wrapped__")


def definition_digest(thing: Any) -> str:
    """Digest of how a function or a class is defined: of what runs, not of a file that may have been edited since.

    With it counts what is bound to it (partial arguments, defaults, variables of an enclosing function) and what it
    names of its own module, functions, classes and values. What is imported counts by name, and by the version of its
    package if that says one.

    Raises:
        TypeError: If something in it cannot be told from others of its kind; the message names its type.
    """
    digest, waiting, seen = hashlib.sha256(), [thing], dict[int, Any]()
    while waiting:
        thing = waiting.pop()
        # Constants that are equal may or may not be one object.
        if not isinstance(thing, (*_PLAIN, tuple, frozenset, CodeType)):
            if id(thing) in seen:
                continue
            seen[id(thing)] = thing  # and nothing else gets this number
        for part in _parts(thing):
            if isinstance(part, bytes):
                digest.update(f"{len(part)}:".encode() + part)
            else:
                waiting.append(part)
    return digest.hexdigest()


def _parts(thing: Any) -> Iterator[Any]:
    """Bytes that tell a thing from others, and further things that do."""
    yield type(thing).__qualname__.encode()
    if isinstance(thing, _PLAIN):
        yield repr(thing).encode()
    elif isinstance(thing, Tensor | np.ndarray):
        array = thing.detach().cpu() if isinstance(thing, Tensor) else thing
        yield f"{thing.dtype} {tuple(thing.shape)} {array.tolist()}".encode()
    elif isinstance(thing, set | frozenset):
        yield repr(sorted(map(repr, thing))).encode()
    elif isinstance(thing, tuple | list | Mapping):
        yield str(len(thing)).encode()
        yield from [x for pair in thing.items() for x in pair] if isinstance(thing, Mapping) else thing
    elif isinstance(thing, partial):
        yield from (thing.func, thing.args, thing.keywords)
    elif isinstance(thing, MethodType):
        yield from (thing.__func__, thing.__self__)
    elif isinstance(thing, CodeType):
        yield thing.co_code
        yield from (thing.co_names, thing.co_consts)
    elif isinstance(thing, FunctionType | type):
        yield f"{thing.__module__}.{thing.__qualname__}".encode()
        yield from _of_function(thing) if isinstance(thing, FunctionType) else _of_class(thing)
    elif inner := [getattr(thing, name) for name in _INNER if getattr(thing, name, None) is not None]:
        yield from inner
    elif isinstance(thing, ModuleType):
        yield f"{thing.__name__} {getattr(thing, '__version__', '')}".encode()
    elif hasattr(thing, "__dict__"):
        yield from (type(thing), vars(thing))
    elif (name := getattr(thing, "__qualname__", None)) is not None:
        yield f"{getattr(thing, '__module__', '')}.{name}".encode()
    else:
        raise TypeError(f"what an object of {type(thing).__module__}.{type(thing).__qualname__} holds cannot be read")


def _of_function(thing: FunctionType) -> Iterator[Any]:
    yield from (thing.__code__, thing.__defaults__, thing.__kwdefaults__)
    for cell in thing.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # of a variable that has no value yet
            continue
    for name in sorted(_names(thing.__code__) & thing.__globals__.keys()):
        yield name
        yield _used(thing.__globals__[name], thing.__module__)


def _of_class(thing: type) -> Iterator[Any]:
    for name, value in sorted(vars(thing).items()):
        if callable(value) or not (name == "_abc_impl" or (name.startswith("__") and name.endswith("__"))):
            yield name
            yield _used(value, thing.__module__)
    yield from (_used(base, thing.__module__) for base in thing.__bases__)


def _used(thing: Any, module: str) -> Any:
    """What a definition in `module` uses; of what is defined elsewhere its name and the version of its package."""
    home = getattr(thing, "__module__", None)
    if not isinstance(thing, FunctionType | type) or home == module:
        return thing
    version = getattr(sys.modules.get(str(home).partition(".")[0]), "__version__", "")
    return f"{home}.{thing.__qualname__} {version}"


def _names(code: CodeType) -> set[str]:
    """All names outside of themselves that a piece of code and those in it may mean."""
    inner = (_names(part) for part in code.co_consts if isinstance(part, CodeType))
    return {*code.co_names}.union(*inner)
