"""`prance predict`: rows of what pictures show, one after the other."""

from __future__ import annotations

import csv
import glob
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

import torch
from tqdm import tqdm

from agents import AdaptiveViT
from agents.deployed.budgets import prices_of
from agents.deployed.menu import Menu
from prance_env.images.folders import image_files
from prance_env.images.opening import SUFFIXES

Row = dict[str, Any]
COLUMNS = ("path", "class", "label", "probability", "macs", "macs_fraction", "patches", "top", "error")


def picture_paths(words: Sequence[str], lines: Iterable[str] = ()) -> list[str]:
    """Files that words name.

    Args:
        words: Files, folders (all pictures below them), patterns such as "pictures/*.jpg", or "-": `lines`.
        lines: One path each.

    Raises:
        FileNotFoundError: If a word names nothing.
    """
    found: list[str] = []
    for word in words:
        if word == "-":
            found += [line.strip() for line in lines if line.strip()]
        elif Path(word).is_dir():
            below = sorted(image_files(Path(word)))
            if not below:
                raise FileNotFoundError(f"{word} holds no file that ends in one of {', '.join(SUFFIXES)}.")
            found += below
        elif matching := sorted(glob.glob(word, recursive=True)) if not Path(word).exists() else [word]:
            found += matching
        else:
            raise FileNotFoundError(f"{word} is no file, no folder, and no pattern that matches any.")
    if not found:
        raise FileNotFoundError("There are no pictures; pass files, folders, patterns, or - and paths on the input.")
    return found


def predicted(
    model: AdaptiveViT, paths: Sequence[str], budget: Any, top: int, batch_size: int, from_menu: bool = False
) -> Iterator[Row]:
    """A row for every file, in order: what `Prediction.rows` says, or an `error`.

    Args:
        model: The model.
        paths: The files.
        budget: What each may cost.
        top: How many classes are listed.
        batch_size: Files at a time.
        from_menu: Whether choices are from the model's menu.

    Raises:
        ValueError: If the model cannot keep to the budget.
    """
    menu = model.menu if from_menu else None
    calibration = model.calibration if menu is None else menu.calibration
    prices = prices_of(budget, model.interface.conditioning, calibration, 1)
    # The price is the menu's, for batches of several too, which the model computes.
    return _rows(model, paths, None if prices is None else float(prices[0]), top, batch_size, menu)


def _rows(
    model: AdaptiveViT, paths: Sequence[str], price: float | None, top: int, batch_size: int, menu: Menu | None
) -> Iterator[Row]:
    for begin in range(0, len(paths), batch_size):
        part, images, rows = paths[begin : begin + batch_size], [], dict[str, Row]()
        for path in part:
            try:
                images.append((path, model.preprocessing(path, model.net.config)))
            except ValueError as e:
                rows[path] = {"error": str(e)}
        if images:
            batch = torch.cat([image for _, image in images])
            said = menu(batch, price) if menu is not None and len(batch) == 1 else model(batch, price, menu is not None)
            rows |= zip((path for path, _ in images), said.rows(top), strict=True)
        yield from ({"path": path, **rows[path]} for path in part)


def write_predictions(rows: Iterable[Row], total: int, out: TextIO, kind: str, top: int) -> int:
    """Writes rows as they come, with a progress bar on the error output if that is a terminal.

    Args:
        rows: The rows.
        total: How many there will be.
        out: Where to.
        kind: "csv" or "jsonl".
        top: With more than one, CSV has a column for them.

    Returns:
        How many of them are errors.
    """
    failed = 0
    columns = [c for c in COLUMNS if top > 1 or c != "top"]
    writer = csv.DictWriter(out, columns, lineterminator="\n") if kind == "csv" else None
    if writer is not None:
        writer.writeheader()
    for row in tqdm(rows, total=total, unit="picture", file=sys.stderr, disable=None):
        failed += "error" in row
        if writer is not None:
            writer.writerow({k: json.dumps(v) if isinstance(v, list) else v for k, v in row.items()})
        else:
            out.write(_line(row) + "\n")
        out.flush()
    return failed


def _line(row: Row) -> str:
    """A row as JSON, which is text in UTF-8: names of files in other bytes are escaped, as Python does it."""
    line = json.dumps(row, ensure_ascii=False)
    try:
        line.encode()
    except UnicodeEncodeError:
        return json.dumps(row)
    return line
