"""What every run folder holds: the command and the settings that made it."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, asdict, fields, replace
from pathlib import Path
from typing import Annotated, Any

import yaml
from annotated_types import Ge, Len
from typing_extensions import TypedDict

from prance_env.images.config import CLASSES, DatasetConfig
from prance_env.images.loading import list_datasets
from prance_env.settings import EnvArguments, EnvSettings
from supernet import list_supernets
from supernet.checkpoint import CONFIG as SUPERNET
from supernet.extract import DESCRIPTION as STATIC
from supernet.files import WEIGHTS
from supernet.reading import OPEN, read_yaml
from supernet.staging import finish_commit, staged

from ..machine import git_revision, machine, versions
from .lock import LOCK, only_writer
from .progress import PROGRESS
from .rows import EVALUATIONS, ROWS
from .trust import SYSTEM, WRITER, check_own_or_local, writer

CONFIG, COMMAND = "config.yml", "command.txt"
NOTES = (CONFIG, COMMAND, SYSTEM, CLASSES)
"""What is noted of a run when it begins."""
NETWORK = (SUPERNET, STATIC, WEIGHTS)
"""What tells that there is a network in a folder: a supernet, an adaptive model or a static network."""
STORE = "store.json"
"""What tells that there is a store of logits in a folder."""
CORRECT = "correct it, or begin another run"
Price = Annotated[float, Ge(0)]
PATHS = (
    *("checkpoint", "dataset", "cache_dir", "conf_file", "ranges", "source", "init", "teacher", "agent"),
    "latency_table",
)
"""Settings that may be paths, or names of something else."""
NAMES = ("original", "random", "none")
"""What is no path, whatever lies in the folder that a command is called in: teachers and initial weights."""
STORED = "store:"
"""What precedes the path of a teacher's store."""


class Noted(TypedDict, total=False):
    """What `config.yml` of any command, and `settings.json` of an evaluation, may hold, and more."""

    algo: str
    env: str
    split: str
    observation: str
    checkpoint: str | None
    dataset: str | dict[str, Any] | None
    token_mode: str | None
    dtype: str
    decide_first_group: bool | None
    on_error: str | None
    macs_weight: Price | Annotated[list[Price], Len(2, 2)]
    reward: str | dict[str, Any] | None
    reward_terms: dict[str, Any] | None
    latency_table: str | None
    preset: str
    conf_file: str | None
    seed: int
    n_envs: Annotated[int, Ge(1)] | None
    total_timesteps: int | None


Noted.__pydantic_config__ = OPEN  # type: ignore[attr-defined]


@contextmanager
def open_run(
    out: Path,
    settings: Any,
    last: Path,
    resume: bool,
    held: Iterable[Path] = (),
    what: str = "run",
    go_on: str = "continue it",
    may_change: Collection[str] = (),
) -> Iterator[bool]:
    """Begins a run in `out`, or goes on with the one that is there; see `write_command`.

    No other process can open it meanwhile. A run that was killed before its first checkpoint starts over, with `resume`
    or without; nothing of the dead one stays. One that is refused before it has done anything leaves nothing behind.

    Args:
        out: Run folder.
        settings: A dataclass, the settings of the run.
        last: What a run goes on from.
        resume: Whether to go on.
        held: What else tells that there is something in `out` that must not be lost.
        what: "run", or another word for messages.
        go_on: What --resume does, for messages.
        may_change: Settings that a run may go on with other values of, also where they are part of another setting.

    Yields:
        Whether there is a checkpoint to go on from.

    Raises:
        FileExistsError: If `out` holds a run and `resume` is False, or that of another command, or a network that no
            run wrote, or a store, or another process writes to it.
        FileNotFoundError: If `resume` is True and there is no run.
        ValueError: If the run was begun with other settings.
    """
    names = plain(settings).keys()
    check_kind(out, names)
    if not (out / CONFIG).is_file():  # no lock stays in a folder of something else
        check_free(out, [last, *held], what)
        if resume:
            raise nothing_to_resume(out, what)
    with only_writer(out):
        check_kind(out, names)  # once more: now nobody else writes
        if not resume:
            check_free(out, [last, *held], what, f"pass --resume to {go_on}, or another --out")
        else:
            flags = ", ".join(f"--{name.replace('_', '-')}" for name in may_change)
            remedy = f"Leave them out, and they are taken from the folder{flags and f'; only {flags} may change'}"
            check_settings(out, settings, remedy, what, may_change)
        going_on = last.exists()
        if not going_on:
            check_free(out, held, what, f"it is done, and has no checkpoint to {go_on} from; pass another --out")
            _forget_beginning(out)
        if not going_on or may_change:
            write_command(out, settings)
        try:
            yield going_on
        except Exception:
            if not going_on:
                _forget_refused(out)
            raise


def nothing_to_resume(out: Path, what: str = "run") -> FileNotFoundError:
    """What to raise about a folder in which nothing was begun, or of a run that failed before its first checkpoint."""
    return FileNotFoundError(f"{out} holds no {what}, so there is nothing to resume; drop --resume.")


def check_kind(folder: Path, names: Collection[str] = ()) -> None:
    """Checks that a folder holds nothing of another command: no run whose notes would be lost, no network, no store.

    Args:
        folder: Run folder, or one that is none yet.
        names: Settings that a run has; arguments of environments may stand beside them. None of a command that keeps
            no run.

    Raises:
        FileExistsError: If others are noted, or a network, a store of logits or logs lie there that no run has written.
    """
    finish_commit(folder)
    if not (folder / CONFIG).is_file():
        logs = (ROWS, EVALUATIONS, PROGRESS) if names else ()
        for what, marks in {"network": NETWORK, "store of logits": (STORE,), "run": logs}.items():
            if found := [name for name in marks if (folder / name).exists()]:
                raise FileExistsError(f"{folder} holds a {what} already ({', '.join(found)}); pass another --out.")
        return
    known = {*names, *EnvArguments.__required_keys__, *EnvArguments.__optional_keys__}
    if others := sorted(read_config(folder).keys() - known):
        raise FileExistsError(
            f"{folder} holds a run of another command, which has {', '.join(others[:3])} among its settings; pass "
            "another --out."
        )


def check_settings(out: Path, settings: Any, remedy: str, what: str = "run", may_change: Collection[str] = ()) -> None:
    """Checks that a run has the settings that are wanted.

    Raises:
        ValueError: If others than `may_change` differ; they are named with both values, and what to do about it.
    """
    check_noted(read_config(out), settings, f"{out} holds a {what}", remedy, may_change)


def check_noted(
    noted: Mapping[str, Any], settings: Any, what: str, remedy: str, may_change: Collection[str] = ()
) -> None:
    """`check_settings` of settings that were noted elsewhere than in a run folder.

    Raises:
        ValueError: As there.
    """
    found = {k: v for k, v in _changed(noted, settings).items() if k not in may_change}
    pairs = {k: (_without(then, may_change), _without(now, may_change)) for k, (then, now) in found.items()}
    if changed := {k: (then, now) for k, (then, now) in pairs.items() if then != now}:
        values = "; ".join(f"{name}={now!r} instead of {then!r}" for name, (then, now) in changed.items())
        raise ValueError(f"{what} with other values of {[*changed]}: {values}. {remedy}.")


def _without(value: Any, names: Collection[str]) -> Any:
    """Settings that are one setting of a run, but for some of them; what is none as it is."""
    return {k: v for k, v in value.items() if k not in names} if isinstance(value, Mapping) else value


def _forget_refused(out: Path) -> None:
    """Removes what is noted of a run that was refused before it did anything."""
    names = [name for name in os.listdir(out) if name != LOCK]
    if all(name in NOTES or "tfevents" in name for name in names):
        for name in names:
            (out / name).unlink()


def _forget_beginning(out: Path) -> None:
    """Removes what a run that has no checkpoint logged, if there is one."""
    if not (out / CONFIG).is_file():
        return
    for name in (ROWS, EVALUATIONS, PROGRESS, CLASSES):
        (out / name).unlink(missing_ok=True)
    for folder in [out, *(f for f in out.iterdir() if f.is_dir() and not (f / CONFIG).exists())]:
        found = [*folder.glob("events.out.tfevents.*")]
        for events in found:
            events.unlink()
        if found and not any(folder.iterdir()):
            folder.rmdir()  # the next logger would take the next number


def check_free(out: Path, held: Iterable[Path], what: str, remedy: str = "pass another --out") -> None:
    """Refuses to overwrite what a folder holds, which a killed process may not have had the time to put there.

    Raises:
        FileExistsError: If any of the paths `held` exists.
    """
    finish_commit(out)
    if any(path.exists() for path in held):
        raise FileExistsError(f"{out} holds a {what} already; {remedy}.")


def write_command(folder: Path, settings: Any) -> None:
    """Writes `command.txt`, `config.yml` (the fields of the dataclass `settings`) and `system.json`."""
    system = {"machine": machine("cpu"), "versions": versions(), "git_revision": git_revision(), WRITER: writer()}
    with staged(folder) as stage:
        (stage / COMMAND).write_text(shlex.join(sys.argv) + "\n")
        (stage / CONFIG).write_text(yaml.safe_dump(plain(settings), sort_keys=False))
        (stage / SYSTEM).write_text(json.dumps(system, indent=2) + "\n")


def plain(settings: Any) -> dict[str, Any]:
    """The fields of the dataclass `settings` as `config.yml` gives them back: flat, in YAML's and JSON's types.

    What is in the field `environment`, arguments of an environment, stands beside the other fields. Paths are absolute,
    so that they are found from elsewhere.
    """
    found: dict[str, Any] = {}
    for name, value in asdict(settings).items():
        found |= value if name == "environment" else {name: value}
    kinds = {Path: str, tuple: list}
    return _found_from_elsewhere(
        {k: next((f(v) for t, f in kinds.items() if isinstance(v, t)), v) for k, v in found.items()}
    )


def _found_from_elsewhere(noted: Mapping[str, Any]) -> dict[str, Any]:
    """Settings in which the paths of what exists are absolute; what has a name keeps it, whatever lies beside it."""
    found: dict[str, Any] = {}
    for name, value in noted.items():
        if name == "changes" and isinstance(value, Mapping):
            found[name] = _found_from_elsewhere(value)
        elif name == "dataset":
            found[name] = _absolute_dataset(value)
        else:
            found[name] = _absolute(name, value) if name in PATHS and isinstance(value, str) else value
    return found


def _absolute(name: str, value: str) -> str:
    if value in NAMES or (name == "source" and value in list_supernets()):
        return value
    prefix = STORED if value.startswith(STORED) else ""
    path = value.removeprefix(prefix)
    return prefix + os.path.abspath(path) if os.path.exists(path) else value


def _absolute_dataset(value: Any) -> Any:
    """The argument `dataset` with absolute paths, as text if it is text."""
    try:
        given = DatasetConfig.from_value(value)
        found = given.absolute(list_datasets())
    except (TypeError, ValueError):
        return value  # whoever opens it says what is wrong with it
    if found.prefix is None and not os.path.exists(found.name):
        found = replace(found, name=given.name)
    if isinstance(value, dict):
        return {**value, **{k: getattr(found, k) for k in ("name", "root", "class_map") if k in value}}
    return found.name


def changed_settings(folder: Path, settings: Any) -> dict[str, tuple[Any, Any]]:
    """The fields of the dataclass `settings` that `config.yml` has other values of: name, noted value, value now.

    What is not noted, as earlier versions did not know it, is at its default.
    """
    return _changed(read_config(folder), settings)


def _changed(read: Mapping[str, Any], settings: Any) -> dict[str, tuple[Any, Any]]:
    default = {f.name: f.default for f in fields(EnvSettings)} | {"dataset": None} | _defaults(settings)
    noted, now = _found_from_elsewhere(read), plain(settings)
    names = {*now, *(set(noted) & set(default))}
    values = {k: (noted.get(k, default.get(k)), now.get(k, default.get(k))) for k in sorted(names)}
    return {k: (then, value) for k, (then, value) in values.items() if then != value}


def _defaults(settings: Any) -> dict[str, Any]:
    """Of the fields of a dataclass that have one, as `plain` gives them."""
    found = {}
    for f in fields(settings):
        value = f.default if f.default_factory is MISSING else f.default_factory()
        if value is not MISSING:
            found[f.name] = [*value] if isinstance(value, tuple) else value
    return found


def noted_fields(folder: Path, kind: type[Any], images: bool = True) -> dict[str, Any] | None:
    """The settings in `config.yml` as the fields of the dataclass `kind`, the inverse of `plain`; None if missing.

    Args:
        folder: Run folder.
        kind: The dataclass.
        images: Whether the run's images are asked for; no if others take their place.

    Raises:
        FileExistsError: If the run is one of another command.
        ValueError: If the run is somebody else's, and images that are asked for would have to be fetched.
    """
    if not (folder / CONFIG).is_file():
        return None
    noted, names = read_config(folder), {f.name for f in fields(kind)}
    check_kind(folder, names)
    check_complete(folder, noted, kind)
    if images:
        check_own_or_local(noted.get("dataset"), folder / CONFIG)
    own = {k: tuple(v) if isinstance(v, list) else v for k, v in noted.items() if k in names}
    return own | {"environment": {k: v for k, v in noted.items() if k not in names and v is not None}}


def check_complete(folder: Path, noted: Mapping[str, Any], kind: type[Any]) -> None:
    """Checks that what `config.yml` holds has all settings that the dataclass `kind` has no default of.

    Raises:
        ValueError: If one is missing.
    """
    required = [f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING]
    if missing := [name for name in required if name not in noted]:
        raise ValueError(f"{folder / CONFIG}: {', '.join(missing)} is missing; {CORRECT}.")


def read_config(folder: Path) -> dict[str, Any]:
    """The settings in `config.yml`.

    Raises:
        FileNotFoundError: If the folder is not a run folder.
        ValueError: If the file is damaged.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is not a run folder: it holds no {CONFIG}.")
    return dict(read_yaml(path, Noted, CORRECT))


def noted_settings(folder: Path) -> dict[str, Any] | None:
    """The settings of a network's training in a folder, as options take them; None if there is none."""
    if not (folder / CONFIG).is_file():
        return None
    return {k: tuple(v) if isinstance(v, list) else v for k, v in read_config(folder).items() if v is not None}
