"""What a long search has found out so far, in a folder, so that the same search goes on where it was stopped."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from annotated_types import Ge, Le
from numpy.typing import NDArray

from prance_env.engine import InferenceEngine
from supernet import StaticViT, load_static, save_static
from supernet.archives import read_arrays
from supernet.arrays import Bools, Ints
from supernet.files import write_atomically, write_text
from supernet.reading import read_json

from ..play import played_by_full
from ..runs.pace import Pace
from .shared_runs import Actions

FOLDER, IDENTITY, TIMES = ".search", "of.json", "times.json"
FORGET = f"remove {FOLDER}"
Arrays = dict[str, NDArray[Any]]
Seconds = Annotated[float, Ge(0), Le(1e12)]
"""Neither NaN nor infinite."""


def digest_of(*engines: InferenceEngine) -> str:
    """What tells weights and images apart, as hexadecimal digits."""
    digest = hashlib.sha256()
    for engine in engines:
        for name, weight in sorted(engine.net.state_dict().items()):
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(weight.detach().cpu().float().numpy()).tobytes())
        _, label, prediction = played_by_full(engine, np.arange(len(engine.dataset)))
        digest.update(label.tobytes() + prediction.tobytes())
    return digest.hexdigest()


@contextmanager
def timed(earlier: Mapping[str, float] | None = None) -> Iterator[Callable[[], dict[str, float]]]:
    """Times a block.

    Args:
        earlier: What is added, under the same names.

    Yields:
        A function that gives `seconds` and `cpu_seconds` until now.
    """
    wall, cpu, before = time.perf_counter(), time.process_time(), earlier or {}

    def until_now() -> dict[str, float]:
        spent = {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
        return {k: round(v + before.get(k, 0.0), 1) for k, v in spent.items()}

    yield until_now


class Memory:
    """Results of the steps of a search.

    Args:
        out: Where the search writes; the memory is a hidden folder in it until `forget`.
        identity: What the results depend on, plain data; those of another search are dropped.
    """

    def __init__(self, out: Path, identity: dict[str, Any]) -> None:
        self.folder, text = out / FOLDER, json.dumps(identity, sort_keys=True)
        noted = self.folder / IDENTITY
        # As bytes: what is damaged may be no text.
        self.goes_on = noted.is_file() and noted.read_bytes() == text.encode()
        if not self.goes_on:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
            write_text(noted, text)

    def step(self, name: str, compute: Callable[[], Arrays]) -> Arrays:
        """The arrays of a step, computed unless they are there."""
        found = _read(self.folder / f"{name}.npz")
        if found is None:
            found = compute()
            _write(self.folder / f"{name}.npz", found)
        return found

    def networks(self, name: str, compute: Callable[[], list[StaticViT]]) -> list[StaticViT]:
        """The networks of a step, computed unless they are there."""
        folder, complete = self.folder / name, self.folder / f"{name}.json"
        with suppress(OSError, ValueError):
            parts = read_json(complete, list[str], FORGET)
            # The list has no checksum; its networks, which have, lie in folders that are numbered.
            if parts == [str(i) for i in range(sum(path.name.isdecimal() for path in folder.iterdir()))]:
                return [load_static(folder / part) for part in parts]
        found = compute()
        for i, network in enumerate(found):
            save_static(network, folder / str(i))
        write_text(complete, json.dumps([str(i) for i in range(len(found))]))
        return found

    @contextmanager
    def judging(
        self, name: str, verdict: Callable[[Ints, Actions], Bools]
    ) -> Iterator[Callable[[Ints, Actions], Bools]]:
        """Remembers verdicts about subnets, and keeps them once a minute, at the end, and when somebody stops.

        Args:
            name: Of the file.
            verdict: (N,) whether a subnet (num_decisions, A) is right about images (N,).

        Yields:
            The same function, which asks only for what is not known.
        """
        path, pace = self.folder / f"{name}.npz", Pace()
        known = _read(path) or {}

        def remembered(index: Ints, actions: Actions) -> Bools:
            key = hashlib.sha256(index.tobytes() + actions.tobytes()).hexdigest()
            if key not in known:
                known[key] = np.packbits(verdict(index, actions))
                if pace.due():
                    _write(path, known)
            return np.unpackbits(known[key], count=len(index)).astype(bool)

        try:
            yield remembered
        finally:
            _write(path, known)

    @contextmanager
    def timed(self, name: str) -> Iterator[Callable[[], dict[str, float]]]:
        """Times a block, with what earlier processes have spent in it until they were stopped.

        Yields:
            A function that gives `seconds` and `cpu_seconds` until now.
        """
        with timed(self._times().get(name)) as until_now:
            try:
                yield until_now
            finally:
                if self.folder.is_dir():
                    write_text(self.folder / TIMES, json.dumps({**self._times(), name: until_now()}))

    def _times(self) -> dict[str, dict[str, float]]:
        with suppress(OSError, ValueError):
            return read_json(self.folder / TIMES, dict[str, dict[str, Seconds]], FORGET)
        return {}

    def forget(self) -> None:
        """Removes the memory: the search is done."""
        forget(self.folder.parent)


def forget(out: Path) -> None:
    """Removes what is remembered of a search whose results are in `out`: killed after them, it had no time to."""
    shutil.rmtree(out / FOLDER, ignore_errors=True)


def _read(path: Path) -> Arrays | None:
    """The arrays in a file; None if it is missing or damaged."""
    try:
        return read_arrays(path)
    except (OSError, ValueError):
        return None


def _write(path: Path, arrays: Arrays) -> None:
    def write(name: str) -> None:
        with open(name, "wb") as f:
            np.savez(f, **arrays)  # type: ignore[arg-type]

    write_atomically(path, write)
