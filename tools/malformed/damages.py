"""Damaged versions of a file: what anybody would try, flipped bytes, missing ends, and nonsense in its data."""

from __future__ import annotations

import copy
import json
import os
import pickle
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

NONSENSE: tuple[Any, ...] = (
    *(None, True, "text", "", -1, 0, 1, 10**30, 1e308, float("nan"), float("inf")),
    *([], {}, [[1]], {"a": 1}, [None], "../../etc/passwd", "\x00", "é" * 1000),
)


def damages(path: Path, rng: random.Random, marker: Path) -> Iterator[bytes]:
    """Endless damaged versions of a file."""
    good = path.read_bytes()
    data = {".json": json.loads, ".jsonl": _of_lines, ".yml": yaml.safe_load}.get(path.suffix)
    known = data(good.decode()) if data else None
    yield from _fixed(good, marker)
    while True:
        if known is None or rng.random() < 0.2:
            yield _bytes_damaged(good, rng)
        else:
            changed = _data_damaged(copy.deepcopy(known), rng)
            as_text = {".json": json.dumps, ".jsonl": _as_lines}.get(path.suffix, yaml.safe_dump)
            yield as_text(changed).encode()


def _of_lines(text: str) -> list[Any]:
    return [json.loads(line) for line in text.splitlines()]


def _as_lines(rows: list[Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def _fixed(good: bytes, marker: Path) -> Iterator[bytes]:
    """What anybody would try."""

    class Planted:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {marker}",)

    yield from (b"", b"\x00" * 64, b"\xff\xfe", b"null", b"3", b"[]", b"{}", b'"a"', good[: len(good) // 2], good * 2)
    yield pickle.dumps(Planted())
    yield f"!!python/object/apply:os.system ['touch {marker}']".encode()
    yield f"default: !!python/object/apply:os.system ['touch {marker}']".encode()
    yield b"[" * 100_000
    yield b'{"a":' * 20_000
    yield b"a: &a [1]\nb: [*a, *a]\n? [1]\n: 2"
    yield (2**60).to_bytes(8, "little") + good[8:]


def _bytes_damaged(good: bytes, rng: random.Random) -> bytes:
    content = bytearray(good)
    for _ in range(rng.choice((1, 1, 8))):
        content[rng.randrange(len(content))] = rng.randrange(256)
    return bytes(content[: rng.randrange(len(content))] if rng.random() < 0.3 else content)


def _data_damaged(data: Any, rng: random.Random) -> Any:
    paths = list(_paths(data))
    path = rng.choice(paths)
    inner = data
    for key in path[:-1]:
        inner = inner[key]
    what = rng.random()
    if what < 0.1:
        del inner[path[-1]]
    elif what < 0.2 and isinstance(inner, dict):
        inner["more"] = rng.choice(NONSENSE)
    else:
        inner[path[-1]] = rng.choice(NONSENSE)
    return data


def _paths(data: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        yield (*above, key)
        if len(above) < 4 and (not isinstance(value, list) or len(value) < 20):
            yield from _paths(value, (*above, key))
