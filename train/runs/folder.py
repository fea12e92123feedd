"""What every run folder holds: the command and the settings that made it."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Collection, Iterable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import yaml

from prance_env.settings import EnvSettings
from supernet.files import write_text


def open_run(
    out: Path,
    settings: Any,
    last: Path,
    resume: bool,
    held: Iterable[Path] = (),
    what: str = "run",
    go_on: str = "continue it",
    may_change: Collection[str] = (),
) -> None:
    """Begins a run in `out`, or goes on with the one that is there; writes `command.txt` and `config.yml`.

    Args:
        out: Run folder.
        settings: A dataclass, the settings of the run.
        last: What a run goes on from.
        resume: Whether to go on.
        held: What else tells that there is a run in `out`.
        what: "run", or another word for messages.
        go_on: What --resume does, for messages.
        may_change: Settings that a run may go on with other values of.

    Raises:
        FileExistsError: If `out` holds a run and `resume` is False.
        FileNotFoundError: If `resume` is True and there is nothing to go on from.
        ValueError: If the run was begun with other settings.
    """
    held = [last, *held]
    if not resume:
        check_free(out, held, what, f"pass --resume to {go_on}, or another --out")
        write_command(out, settings)
        return
    nothing = FileNotFoundError(f"{last} does not exist, so there is nothing to resume; drop --resume.")
    if not any(path.exists() for path in held):
        raise nothing
    if changed := [name for name in changed_settings(out, settings) if name not in may_change]:
        if may_change:
            flags = ", ".join(f"--{name.replace('_', '-')}" for name in may_change)
            raise ValueError(f"{out} holds a {what} with other values of {changed}; only {flags} may change.")
        raise ValueError(f"{out} was trained with other values of {changed}; resume with the same settings.")
    if not last.exists():
        raise nothing
    if may_change:
        write_command(out, settings)


def check_free(out: Path, held: Iterable[Path], what: str, remedy: str = "pass another --out") -> None:
    """Refuses to overwrite what a folder holds.

    Raises:
        FileExistsError: If any of the paths `held` exists.
    """
    if any(path.exists() for path in held):
        raise FileExistsError(f"{out} holds a {what} already; {remedy}.")


def write_command(folder: Path, settings: Any) -> None:
    """Writes `command.txt` and `config.yml` (the fields of the dataclass `settings`)."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "command.txt", shlex.join(sys.argv) + "\n")
    write_text(folder / "config.yml", yaml.safe_dump(plain(settings), sort_keys=False))


def plain(settings: Any) -> dict[str, Any]:
    """The fields of the dataclass `settings` as `config.yml` gives them back: flat, in YAML's and JSON's types.

    What is in the field `environment`, arguments of an environment, stands beside the other fields.
    """
    found: dict[str, Any] = {}
    for name, value in asdict(settings).items():
        found |= value if name == "environment" else {name: value}
    kinds = {Path: str, tuple: list}
    return {k: next((f(v) for t, f in kinds.items() if isinstance(v, t)), v) for k, v in found.items()}


def changed_settings(folder: Path, settings: Any) -> list[str]:
    """Names of the fields of the dataclass `settings` that `config.yml` has other values of.

    An argument of the environment that is not noted is at its default, as version 0.1 noted all that it knew.
    """
    default = {f.name: f.default for f in fields(EnvSettings)} | {"dataset": None}
    noted, now = read_config(folder), plain(settings)
    names = {*now, *(set(noted) & set(default))}
    return sorted(k for k in names if noted.get(k, default.get(k)) != now.get(k, default.get(k)))


def read_config(folder: Path) -> dict[str, Any]:
    """The settings in `config.yml`.

    Raises:
        FileNotFoundError: If the folder is not a run folder.
    """
    path = folder / "config.yml"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is not a run folder: it holds no config.yml.")
    return yaml.safe_load(path.read_text())
