"""Files with one row per image, CSV or Parquet, that can be read back without loss."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from supernet.files import write_atomically

from .evaluation import Evaluation

FORMATS = ("csv", "parquet")
Columns = dict[str, NDArray[Any]]


def rows_of(evaluation: Evaluation, difficulty_name: str) -> Columns:
    """Name and (N,) values of every column: what was predicted, what it cost, what was done at each decision."""
    columns: Columns = {
        "index": evaluation.index,
        "label": evaluation.label,
        "prediction": evaluation.prediction,
        "correct": evaluation.correct.astype(np.int64),
        difficulty_name: evaluation.difficulty,
        "macs": evaluation.macs,
        "macs_fraction": np.round(evaluation.macs_fraction, 6),
        "params": evaluation.params,
    }
    if evaluation.returns is not None:
        columns["return"] = evaluation.returns
    for t in range(evaluation.patches.shape[1]):
        columns[f"patches_after_{t + 1}"] = np.round(evaluation.patches[:, t], 6)
    decisions, size = evaluation.taken.shape[1:]
    for t in range(decisions):
        for a in range(size):
            columns[action_column(t, a)] = evaluation.taken[:, t, a].astype(np.float64)
    return columns


def action_column(decision: int, entry: int) -> str:
    """Name of the column of one entry of one decision's action, both counted from 0."""
    return f"action_{decision + 1}_{entry + 1}"


def check_format(suffix: str) -> None:
    """Checks that files with this suffix (without its dot) can be written and read here.

    Raises:
        ValueError: If the format is unknown, or is Parquet and pyarrow is not installed.
    """
    if suffix not in FORMATS:
        raise ValueError(f"Rows are written and read as {FORMATS}, not {suffix!r}; name the file .csv or .parquet.")
    if suffix == "parquet":
        _parquet()


def write_rows(path: Path, columns: Columns) -> None:
    """Writes rows atomically, as CSV or Parquet by the name's suffix.

    Raises:
        ValueError: If the format is unknown.
    """
    check_format(path.suffix.removeprefix("."))
    if path.suffix == ".parquet":
        arrow, parquet = _parquet()
        write_atomically(path, lambda name: parquet.write_table(arrow.table(columns), name))
        return

    def write(name: str) -> None:
        with open(name, "w", newline="") as f:
            writer = csv.writer(f)
            writer.writerow(columns)
            writer.writerows(zip(*(c.tolist() for c in columns.values()), strict=True))

    write_atomically(path, write)


def read_rows(path: Path) -> Columns:
    """Reads what `write_rows` wrote; whole numbers come back as int64, others as float64, every bit of them.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, or see `check_format`.
    """
    check_format(path.suffix.removeprefix("."))
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}; `prance eval --out FOLDER` writes one per agent.")
    try:
        if path.suffix == ".parquet":
            table = _parquet()[1].read_table(str(path))
            return {name: table[name].to_numpy().copy() for name in table.column_names}  # Arrow's are read-only
        with path.open(newline="", encoding="utf-8") as f:
            header, *rows = csv.reader(f)
        columns = zip(*rows, strict=True) if rows else [()] * len(header)
        return {name: _numbers(values) for name, values in zip(header, columns, strict=True)}
    # Of pyarrow's own, some are Lookup- or NotImplementedErrors; columns of lists are TypeErrors.
    except (LookupError, MemoryError, NotImplementedError, OSError, TypeError, ValueError, csv.Error) as e:
        raise ValueError(f"{path} does not hold rows ({e}); write it again with `prance eval --out FOLDER`.") from e


def _numbers(values: tuple[str, ...]) -> NDArray[Any]:
    try:
        return np.array([int(v) for v in values], dtype=np.int64)
    except (ValueError, OverflowError):
        return np.array([float(v) for v in values], dtype=np.float64)


def _parquet() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as e:
        raise ValueError(
            "Parquet needs pyarrow, which is not installed; pip install -e '.[parquet]', or take CSV."
        ) from e
    return pyarrow, pyarrow.parquet
