"""Logs of one JSON object a line, which follow the checkpoints of their run exactly."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

from supernet.files import flush, write_atomically

ROWS = "metrics.jsonl"
"""Name of the log in a run folder."""
EVALUATIONS = "evaluations.jsonl"
"""Name of the log of validations beside it."""


class RowLog:
    """A file that rows are added to while a run goes on.

    A checkpoint at some step belongs to the rows up to it: `flush` before it is written, and `forget_after` when the
    run goes on from it. What a killed run has left is then the same file as if it had not been killed.

    Args:
        path: Created by the first row.
        step: The key by which rows are ordered.
    """

    def __init__(self, path: Path, step: str = "step") -> None:
        self.path, self.step = path, step

    def write(self, row: dict[str, Any]) -> None:
        """Adds a row."""
        with self.path.open("a") as f:
            f.write(json.dumps(row) + "\n")

    def flush(self) -> None:
        """Waits until all rows are on the disk."""
        if self.path.exists():
            flush(self.path)

    def read(self) -> dict[bytes, dict[str, Any]]:
        """The rows by line; lines that a killed process left unfinished are dropped with a warning."""
        lines = self.path.read_bytes().splitlines() if self.path.exists() else []
        rows = {line: row for line in lines if (row := self._row_of(line)) is not None}
        if torn := sum(line not in rows for line in lines):
            warnings.warn(f"{self.path}: {torn} unfinished line(s) of a killed run are dropped.", stacklevel=2)
        return rows

    def _row_of(self, line: bytes) -> dict[str, Any] | None:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            return None
        return row if isinstance(row, dict) and isinstance(row.get(self.step), int | float) else None

    def forget_after(self, step: float) -> None:
        """Drops the rows after a step, which are written again, and unfinished lines."""
        if self.path.exists():
            kept = [line + b"\n" for line, row in self.read().items() if row[self.step] <= step]
            write_atomically(self.path, lambda name: Path(name).write_bytes(b"".join(kept)))
