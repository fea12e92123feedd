"""What every run folder holds: the command and the settings that made it."""

from __future__ import annotations

import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from supernet.files import write_text


def write_command(folder: Path, settings: Any) -> None:
    """Writes `command.txt` and `config.yml` (the fields of the dataclass `settings`)."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "command.txt", shlex.join(sys.argv) + "\n")
    write_text(folder / "config.yml", yaml.safe_dump(plain(settings), sort_keys=False))


def plain(settings: Any) -> dict[str, Any]:
    """The fields of the dataclass `settings` as `config.yml` gives them back."""
    kinds = {Path: str, tuple: list}
    return {k: next((f(v) for t, f in kinds.items() if isinstance(v, t)), v) for k, v in asdict(settings).items()}


def changed_settings(folder: Path, settings: Any) -> list[str]:
    """Names of the fields of the dataclass `settings` that `config.yml` has other values of."""
    noted = read_config(folder)
    return sorted(k for k, v in plain(settings).items() if noted.get(k) != v)


def read_config(folder: Path) -> dict[str, Any]:
    """The settings in `config.yml`.

    Raises:
        FileNotFoundError: If the folder is not a run folder.
    """
    path = folder / "config.yml"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is not a run folder: it holds no config.yml.")
    return yaml.safe_load(path.read_text())
