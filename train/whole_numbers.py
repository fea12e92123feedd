"""Whole numbers as they are typed: 100000, and 1e5 as well, which tyro alone does not read."""

from __future__ import annotations

from contextlib import suppress

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
