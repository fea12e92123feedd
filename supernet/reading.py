"""Plain data from files, checked against a dataclass or a TypedDict; one sentence says what is wrong with it.

pydantic does the checking. Constraints are said where the fields are declared, as `Annotated[float, Gt(0)]`.
"""

from __future__ import annotations

import json
import os
import re
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar, cast, get_type_hints

import numpy as np
import torch
from typing_extensions import TypedDict

T = TypeVar("T")

STRICT: Any = {"strict": True, "allow_inf_nan": False, "extra": "forbid", "arbitrary_types_allowed": True}
"""What dataclasses and TypedDicts that are read from files have as `__pydantic_config__`: nothing is converted, no
number is NaN or infinite, and there are no other fields."""
OPEN: Any = {**STRICT, "extra": "allow"}
"""The same for those to which others may add fields."""
DEEPEST = 100
"""Lists and mappings in each other; beyond it, nobody means it."""
_TYPES = ("int", "float", "str", "bool", "none")


def read_json(path: Path, kind: type[T], remedy: str) -> T:
    """A JSON file as an instance of `kind`.

    Args:
        path: The file.
        kind: A dataclass or a TypedDict, with `STRICT` or `OPEN` as its `__pydantic_config__`.
        remedy: What to do if it is damaged, for the message: "save it again".

    Raises:
        ValueError: If it is no such file; the message names the file, the field, its value and what is allowed.
        FileNotFoundError: If there is none.
    """
    return checked(_parsed(path.read_text, json.loads, "JSON file", str(path), remedy), kind, str(path), remedy)


def read_text(path: Path, remedy: str) -> str:
    """The text in a file.

    Args:
        path: The file.
        remedy: What to do if it is none, for the message.

    Raises:
        ValueError: If it is not in UTF-8.
        OSError: If it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as e:
        byte = f"byte {e.object[e.start]:#04x} at position {e.start}"
        raise ValueError(f"{path} is no text in UTF-8 ({byte}); {remedy}.") from e


def parsed_json(text: str, source: str, remedy: str) -> Any:
    """What JSON text says, not yet checked.

    Args:
        text: The text.
        source: Where it comes from, for the message.
        remedy: What to do about it, for the message.

    Raises:
        ValueError: If it is no JSON, or nested too deeply.
    """
    return _parsed(lambda encoding: text, json.loads, "JSON", source, remedy)


def read_yaml(path: Path, kind: type[T], remedy: str) -> T:
    """A YAML file as an instance of `kind`; otherwise as `read_json`."""
    import yaml

    return checked(_parsed(path.read_text, yaml.safe_load, "YAML file", str(path), remedy), kind, str(path), remedy)


def _parsed(read: Callable[..., str], parse: Any, name: str, source: str, remedy: str) -> Any:
    try:
        return parse(read(encoding="utf-8"))
    except FileNotFoundError:
        raise
    except RecursionError as e:
        raise ValueError(f"{source} is no {name}: it is nested too deeply; {remedy}.") from e
    except Exception as e:  # YAML answers some texts with what its own constructors stumble over
        raise ValueError(f"{source} is no {name} ({' '.join(str(e).split())}); {remedy}.") from e


def checked(data: Any, kind: type[T], source: str, remedy: str) -> T:
    """Plain data as an instance of `kind`; see `read_json`.

    Args:
        data: Mappings, lists, texts, numbers.
        kind: A dataclass or a TypedDict.
        source: Where it comes from, for the message.
        remedy: What to do about it, for the message.

    Raises:
        ValueError: If it does not fit, or is nested more than `DEEPEST` deep.
    """
    from pydantic import ValidationError

    try:
        text = json.dumps(_shallow(data))
    except (TypeError, ValueError) as e:
        raise ValueError(f"{source}: {e}; {remedy}.") from e
    try:
        return _adapter(cast(Any, kind)).validate_json(
            text
        )  # as from JSON: lists are tuples, and nothing else is converted
    except ValidationError as e:
        raise ValueError(f"{source}: {_in_words(e, kind)}; {remedy}.") from e


def plain(value: Any) -> Any:
    """The same, and what is inside it, as Python's own texts (paths: absolute ones), numbers and lists."""
    if isinstance(value, os.PathLike):
        return os.path.abspath(os.path.expanduser(value))  # so that it is not taken for a name
    if isinstance(value, np.generic | np.ndarray | torch.Tensor):
        return value.tolist()
    if isinstance(value, torch.device):
        return str(value)
    if isinstance(value, Mapping):
        return {plain(k): plain(v) for k, v in value.items()}
    return type(value)(plain(v) for v in value) if type(value) in (list, tuple) else value


def make_plain(instance: Any, *names: str) -> None:
    """Makes fields of a frozen dataclass `plain`, all of them unless named, for its `__post_init__`."""
    for name in names or [f.name for f in fields(instance)]:
        object.__setattr__(instance, name, plain(getattr(instance, name)))


def check_fields(instance: Any, source: str = "") -> None:
    """Checks the fields of a dataclass against its annotations, for its `__post_init__`.

    Args:
        instance: The dataclass.
        source: What stands before the name of the field in the message.

    Raises:
        ValueError: If one has another type or is out of range; the message names it, its value and what is allowed.
    """
    from pydantic import ValidationError

    values = {f.name: getattr(instance, f.name) for f in fields(instance)}
    try:
        _fields_adapter(cast(Any, type(instance))).validate_python(values)
    except ValidationError as e:
        raise ValueError(f"{source}{_in_words(e, type(instance))}.") from e


def checked_count(value: Any, name: str) -> int:
    """How many there are to be of something: a whole number of at least 1.

    Raises:
        ValueError: If it is none, or has more than 32 bits; the message names it.
    """
    count = plain(value)
    if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count < 2**31:
        raise ValueError(f"{name}={reprlib.repr(value)} must be a whole number from 1 to {2**31 - 1}.")
    return count


def check_value(value: Any, kind: Any, source: str) -> None:
    """Checks one value against a type, an annotation of somebody else's class.

    Raises:
        ValueError: If it is of another type.
    """
    from pydantic import TypeAdapter, ValidationError

    adapter = TypeAdapter(kind, config={"strict": True, "allow_inf_nan": False, "arbitrary_types_allowed": True})
    try:
        adapter.validate_python(value)
    except ValidationError as e:
        raise ValueError(f"{source}={reprlib.repr(value)} {_must(e.errors(include_url=False)[0]['msg'])}.") from e


def _must(message: str) -> str:
    return message.replace("Input should", "must", 1).replace("a valid boolean", "True or False", 1)


def _shallow(data: Any, depth: int = 0) -> Any:
    """The same; keys that are no texts and what is nested too deeply are errors."""
    if depth > DEEPEST:
        raise ValueError(f"lists or mappings are nested more than {DEEPEST} deep")
    if isinstance(data, Mapping):
        if strange := [key for key in data if not isinstance(key, str)]:
            raise ValueError(f"the key {strange[0]!r} must be a text")
        return {k: _shallow(v, depth + 1) for k, v in data.items()}
    return [_shallow(v, depth + 1) for v in data] if isinstance(data, list | tuple) else data


@lru_cache
def _adapter(kind: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


@lru_cache
def _fields_adapter(kind: Any) -> Any:
    from pydantic import TypeAdapter

    hints, typed_dict = get_type_hints(kind, include_extras=True), cast(Any, TypedDict)
    own = typed_dict(kind.__name__, {f.name: hints[f.name] for f in fields(kind)})
    own.__pydantic_config__ = STRICT
    return TypeAdapter(own)


def _in_words(error: Any, kind: Any) -> str:
    """The first of what is wrong, and how much more there is."""
    problems = error.errors(include_url=False)
    first = problems[0]
    # Of a field that may be one of several types, pydantic also names each type that it tried.
    parts = [str(part) for part in first["loc"] if re.fullmatch(r"\w+", str(part)) and str(part) not in _TYPES]
    where, value = ".".join(parts), reprlib.repr(first["input"])
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    if first["type"] == "value_error":
        return f"{first['msg'].removeprefix('Value error, ').rstrip('.')}{more}"
    if first["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        known = sorted(f.name for f in fields(kind)) if is_dataclass(kind) else sorted(get_type_hints(kind))
        return f"{where} is unknown{f', known are {known}' if len(first['loc']) == 1 else ''}{more}"
    if first["type"] in ("missing", "missing_argument"):
        return f"{where} is missing{more}"
    return f"{where or 'the whole'}={value} {_must(first['msg'])}{more}"
