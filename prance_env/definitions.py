"""What functions and classes of users are made of: what outlives a process is kept for one function, not for a name."""

from __future__ import annotations

import copyreg
import hashlib
import sys
from collections.abc import Iterator
from functools import cached_property, lru_cache
from types import CellType, CodeType, FunctionType, MappingProxyType, MethodType, ModuleType
from typing import Any

from torch import Tensor, device, dtype

_PLAIN = {type(None), type(...), bool, int, float, complex, str, bytes, dtype, device}
# Two of these that are equal may or may not be one object.
_CONSTANTS = {*_PLAIN, tuple, frozenset, slice, CodeType}
_CODE = ("co_code", "co_flags", "co_argcount", "co_kwonlyargcount", "co_varnames", "co_names")
# Packages whose functions and classes count as imported ones do, also where they are bound.
_BY_NAME = {*sys.stdlib_module_names, "numpy", "torch"}
_WRAPPERS = (property, cached_property, classmethod, staticmethod, MethodType, type(lru_cache(len)))
_WRAPPED = ("fget", "fset", "func", "__func__", "__self__", "__wrapped__")


def definition_digest(thing: Any) -> str:
    """Digest of how a function or a class is defined: of what runs, not of a file that may have been edited since.

    With it counts what is bound to it (attributes, partial arguments, defaults, variables of an enclosing function) and
    what it names of its own module, functions, classes and values. What is imported counts by name, and by the version
    of its package if that says one. Objects count by what they would be pickled as.

    Raises:
        Exception: Of whatever class, if something in it cannot be pickled, as a lock.
    """
    digest, waiting, seen = hashlib.sha256(), [thing], dict[int, tuple[int, Any]]()
    while waiting:
        thing = waiting.pop()
        if id(thing) in seen:
            digest.update(f"{seen[id(thing)][0]}\n".encode())
            continue
        if type(thing) not in _CONSTANTS:
            seen[id(thing)] = len(seen), thing  # held, so that nothing else gets its id
        said, parts = _read(thing)
        digest.update(f"{type(thing).__qualname__} {said!r} {len(parts)}\n".encode())
        waiting += parts
    return digest.hexdigest()


def _read(thing: Any) -> tuple[Any, list[Any]]:
    """What tells a thing from others of its type, and further things that do."""
    if type(thing) in _PLAIN:
        return thing, []
    if isinstance(thing, Tensor):
        return f"{thing.dtype} {tuple(thing.shape)} {thing.tolist()}", []
    if isinstance(thing, set | frozenset):
        return sorted(map(definition_digest, thing)), []
    if type(thing) in (tuple, list):
        return None, [*thing]
    if type(thing) in (dict, MappingProxyType):
        return None, [x for pair in thing.items() for x in pair]
    if isinstance(thing, CodeType):
        return [getattr(thing, name) for name in _CODE], [*thing.co_consts]
    if isinstance(thing, ModuleType):
        return f"{thing.__name__} {getattr(thing, '__version__', '')}", []
    if isinstance(thing, FunctionType | type):
        if str(thing.__module__).partition(".")[0] in _BY_NAME:
            return _name(thing), []
        inside = _of_function(thing) if isinstance(thing, FunctionType) else _of_class(thing)
        return f"{thing.__module__}.{thing.__qualname__}", [*inside]
    if isinstance(thing, _WRAPPERS):
        return None, [getattr(thing, name, None) for name in _WRAPPED]
    pickled = copyreg.dispatch_table.get(type(thing))
    made = thing.__reduce_ex__(4) if pickled is None else pickled(thing)
    if isinstance(made, str):
        return f"{getattr(thing, '__module__', '')}.{made}", []
    return None, [[*part] if isinstance(part, Iterator) else part for part in made]


def _of_function(thing: FunctionType) -> Iterator[Any]:
    yield from (thing.__code__, thing.__defaults__, thing.__kwdefaults__, vars(thing))
    for cell in thing.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # of a variable that has no value yet
            yield CellType
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
    imported = isinstance(thing, FunctionType | type) and thing.__module__ != module
    return _name(thing) if imported else thing


def _name(thing: FunctionType | type) -> str:
    version = getattr(sys.modules.get(str(thing.__module__).partition(".")[0]), "__version__", "")
    return f"{thing.__module__}.{thing.__qualname__} {version}"


def _names(code: CodeType) -> set[str]:
    """All names outside of themselves that a piece of code and those in it may mean."""
    inner = (_names(part) for part in code.co_consts if isinstance(part, CodeType))
    return {*code.co_names}.union(*inner)
