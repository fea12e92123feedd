"""How far a run is, and what it has cost, its earlier processes included."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge
from typing_extensions import NotRequired, TypedDict

from supernet.files import write_text
from supernet.reading import OPEN, read_json

PROGRESS = "progress.json"


class _Noted(TypedDict):
    """What `progress.json` holds."""

    step: Annotated[int, Ge(0)]
    total: Annotated[int, Ge(0)]
    seconds: NotRequired[Annotated[float, Ge(0)]]
    cpu_seconds: NotRequired[Annotated[float, Ge(0)]]


_Noted.__pydantic_config__ = OPEN  # type: ignore[attr-defined]


class Progress:
    """Counts the seconds of a run from one checkpoint to the next.

    Args:
        folder: Run folder, whose `progress.json` says what came before; None begins at zero.
    """

    def __init__(self, folder: Path | None = None) -> None:
        noted = {} if folder is None else read_progress(folder)
        self._wall = noted.get("seconds", 0.0) - time.perf_counter()
        self._cpu = noted.get("cpu_seconds", 0.0) - time.process_time()

    @property
    def seconds(self) -> float:
        """Wall seconds, those of earlier processes up to their last checkpoints included."""
        return self._wall + time.perf_counter()

    def write(self, folder: Path, step: int, total: int) -> None:
        """Notes a checkpoint at `step` of `total` steps, and the seconds until now."""
        cpu_seconds = self._cpu + time.process_time()
        noted = {"step": step, "total": total, "seconds": self.seconds, "cpu_seconds": cpu_seconds}
        write_text(folder / PROGRESS, json.dumps(noted) + "\n")


def read_progress(folder: Path) -> dict[str, Any]:
    """`step`, `total`, `seconds` and `cpu_seconds` of a run's last checkpoint; empty if it has none."""
    path = folder / PROGRESS
    return dict(read_json(path, _Noted, "begin the run anew")) if path.is_file() else {}
