"""From the names of classes to labels, and from what readers call a label to a whole number."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

from supernet import SupernetConfig

from .config import NUMERIC, DatasetConfig

SHOWN = 8


def labels_of(names: Sequence[str], config: DatasetConfig, source: str, own: Sequence[str] = ()) -> dict[str, int]:
    """The label of every class, as `class_map` says: by their numbers, or by a file; else as the supernet calls its
    classes, or by the names' order.

    Names that the supernet does not know are worth a warning, and so are numbers in another order than the alphabet's:
    10 comes before 2 there.

    Args:
        names: Of the classes, in the order of the source.
        config: Says what `class_map` is.
        source: What has these classes, for messages.
        own: The supernet's names of its classes, by label; empty: it has none.

    Raises:
        ValueError: If the class map lacks a class, or the classes are not named by numbers that would be their labels.
    """
    numbers = [int(name) if name.isascii() and name.isdigit() else None for name in names]
    if config.class_map == NUMERIC:
        known = {name: k for name, k in zip(names, numbers, strict=True) if k is not None}
        if len(known) < len(names) or len(set(known.values())) < len(names):
            other = [name for name in names if name not in known] or names
            raise ValueError(
                f"class_map='numeric' needs classes that are named by their labels, but {source} has {other[:SHOWN]}; "
                "pass a text file with one class per line."
            )
        return known
    if (by_file := config.read_class_map()) is not None:
        if missing := [name for name in names if name not in by_file]:
            raise ValueError(
                f"class_map={config.class_map!r} lacks the classes {missing[:SHOWN]} of {source}; add them, or pass "
                "dataset={'name': ..., 'class_map': FILE} with another file."
            )
        return {name: by_file[name] for name in names}
    by_name = {name: k for k, name in enumerate(own)}
    other = [name for name in names if name not in by_name]
    if not other:
        return {name: by_name[name] for name in names}
    if own:
        warnings.warn(
            f"{source} has the classes {other[:SHOWN]}, which the supernet does not know: its own are "
            f"{[*own[:SHOWN]]}. Label k is the k-th class of the data, whatever it is called. Call them as the "
            "supernet does (one of `prance import clip` has a list beside it, classes.txt), or pass "
            "dataset={'name': ..., 'class_map': FILE} with their names in the order of the supernet's.",
            stacklevel=2,
        )
    if None not in numbers and numbers != sorted(numbers):  # type: ignore[type-var]
        k = next(k for k, number in enumerate(numbers) if number != sorted(numbers)[k])  # type: ignore[type-var]
        warnings.warn(
            f"{source}: label {k} is the class {names[k]!r}, by alphabet. If the numbers are to be the labels, pass "
            "dataset={'name': ..., 'class_map': 'numeric'}; another order: a text file with one class per line.",
            stacklevel=2,
        )
    return {name: k for k, name in enumerate(names)}


def reader_labels(
    names: Sequence[str], config: DatasetConfig, source: str, own: Sequence[str] = ()
) -> Callable[[Any, str], int]:
    """What turns a label of a reader, and where it stands, into the label of the supernet.

    Args:
        names: Of the classes that the reader's numbers stand for; empty if it does not say.
        config: Says what `class_map` is.
        source: What has these classes, for messages.
        own: As for `labels_of`.

    Raises:
        ValueError: As `labels_of`; so does what is returned for labels that are no whole numbers, or not in the map.
    """
    if names:
        label_of = labels_of(names, config, source, own)
        return lambda label, where: label_of[names[whole(label, where)]]
    if (by_file := config.read_class_map()) is None:
        return whole

    def mapped(label: Any, where: str) -> int:
        if str(label) not in by_file:
            raise ValueError(f"{where}: class_map={config.class_map!r} lacks the class {label!r}; add it.")
        return by_file[str(label)]

    return mapped


def warn_of_few(count: int, net: SupernetConfig, config: DatasetConfig, source: str) -> None:
    """Says that there are fewer classes than the supernet has, which need not be its first ones."""
    if config.class_map is None and not net.class_names and count < net.num_classes:
        warnings.warn(
            f"{source} has {count} classes, the supernet {net.num_classes}; label k is the k-th of them. If that is "
            "not what the supernet means, pass dataset={'name': ..., 'class_map': FILE}.",
            stacklevel=2,
        )


def whole(label: Any, source: str) -> int:
    """A label as a whole number.

    Raises:
        ValueError: If it is none: a text, a list, a fraction.
    """
    try:
        number = int(label)
        if isinstance(label, str | bytes) or number == label:
            return number
    except (TypeError, ValueError, OverflowError):
        pass
    raise ValueError(f"{source}: the label {label!r} is no whole number; pass target_key, the name of the labels.")
