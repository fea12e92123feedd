"""Numbers as they are typed: whole ones as 100000, and 1e5 as well, which tyro alone does not read."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, get_args, get_origin

from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

REGISTRY = ConstructorRegistry()
"""What `tyro.cli` reads options by."""


def whole(text: str) -> int:
    """The number.

    Raises:
        ValueError: If it is none, or has a fraction.
    """
    with suppress(ValueError):
        return int(text)
    with suppress(ValueError):
        number = float(text)
        if number.is_integer():
            return int(number)
    raise ValueError(f"{text!r} is no whole number, such as 100000 or 1e5")


@REGISTRY.primitive_rule
def whole_rule(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[int] | None:
    """How options of the type int are read; None of other types."""
    if info.type is not int:
        return None
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="INT",
        instance_from_str=lambda words: whole(words[0]),
        is_instance=lambda value: isinstance(value, int),
        str_from_instance=lambda value: [str(value)],
    )


def real(text: str) -> float:
    """The number.

    Raises:
        ValueError: If it is none.
    """
    with suppress(ValueError):
        return float(text)
    raise ValueError(f"{text!r} is no number, such as 0.05 or 1e-3")


@REGISTRY.primitive_rule
def several_rule(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[tuple[Any, ...]] | None:
    """How options of any count of numbers are read; None of other types. Tyro's own way names no word that is wrong."""
    kinds = {int: ("INT", whole), float: ("FLOAT", real)}
    kind, *more = get_args(info.type) or (None,)
    if get_origin(info.type) is not tuple or more != [...] or kind not in kinds:
        return None
    name, read = kinds[kind]
    return PrimitiveConstructorSpec(
        nargs="*",
        metavar=f"[{name} [{name} ...]]",
        instance_from_str=lambda words: tuple(read(word) for word in words),
        is_instance=lambda value: isinstance(value, tuple) and all(isinstance(v, int | kind) for v in value),
        str_from_instance=lambda values: [str(value) for value in values],
    )
