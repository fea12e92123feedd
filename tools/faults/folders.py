"""Whether two run folders hold the same, but for clocks."""

from __future__ import annotations

import csv
import json
import zipfile
from collections.abc import Callable
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from train.runs.curves import read_curves

CLOCKS = {"seconds", "cpu_seconds", "seconds_per_image", "milliseconds", "git_revision"}
"""Names of what is never the same twice; somebody may work on the source meanwhile."""
UNEQUAL = {"command.txt", ".lock", "study.db", "benchmark.md", "casestudy.md"}
"""Files that may differ: what was typed, Optuna's notes of trials that were killed, and the pages of `benchmark.json`
and `casestudy.json`, which say CPU seconds and milliseconds."""
BY_MEMBER = {".zip", ".npz"}


def differences(expected: Path, found: Path) -> list[str]:
    """What differs between a folder that nothing happened to and one that something did."""
    files, others = ({p.relative_to(folder): p for p in _files(folder)} for folder in (expected, found))
    problems = [f"{name} is missing" for name in sorted(files.keys() - others.keys())]
    problems += [f"{name} is left over" for name in sorted(others.keys() - files.keys())]
    for name in sorted(files.keys() & others.keys()):
        if not same(_without_place(contents(files[name]), expected), _without_place(contents(others[name]), found)):
            problems.append(f"{name} differs")
    if not same(read_curves(expected), read_curves(found)):
        problems.append("the curves in TensorBoard differ")
    return problems


def _files(folder: Path) -> list[Path]:
    every = (p for p in folder.rglob("*") if p.is_file() or p.name.startswith("."))
    return [p for p in every if p.name not in UNEQUAL and "tfevents" not in p.name]


def contents(path: Path) -> Any:
    """What a file says, without clocks."""
    readers: dict[str, Callable[[Path], Any]] = {
        ".json": lambda p: _without_clocks(json.loads(p.read_text())),
        ".jsonl": lambda p: [_without_clocks(json.loads(line)) for line in p.read_text().splitlines()],
        ".yml": lambda p: yaml.safe_load(p.read_text()),
        ".csv": lambda p: [_without_clocks(row) for row in csv.DictReader(StringIO(p.read_text()))],
        ".pt": lambda p: _without_clocks(torch.load(p, weights_only=True)),
        ".zip": _members,
        ".npz": _members,
    }
    return readers.get(path.suffix, Path.read_bytes)(path)


def _members(path: Path) -> dict[str, Any]:
    """Tensors and arrays of an archive; SB3's `data` holds clocks and addresses, and is checked by what comes of it."""
    found: dict[str, Any] = {}
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if name.endswith((".pth", ".pt")):
                found[name] = torch.load(BytesIO(archive.read(name)), weights_only=True)
            elif name.endswith(".npy"):
                found[name] = np.load(BytesIO(archive.read(name)), allow_pickle=False)
    return found


def _without_place(data: Any, folder: Path) -> Any:
    """Plain data in which paths begin at the folder."""
    if isinstance(data, dict):
        return {k: _without_place(v, folder) for k, v in data.items()}
    if isinstance(data, list):
        return [_without_place(v, folder) for v in data]
    return data.replace(str(folder), "OUT") if isinstance(data, str) else data


def _without_clocks(data: Any) -> Any:
    if isinstance(data, dict):
        return {k: _without_clocks(v) for k, v in data.items() if k not in CLOCKS}
    return [_without_clocks(v) for v in data] if isinstance(data, list) else data


def same(a: Any, b: Any) -> bool:
    """Equality of plain data, arrays and tensors, bit for bit; NaN equals NaN."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return same(a.numpy(), b.numpy())
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b) or (a != a and b != b)
