"""What Optuna has kept of a search, checked before the search goes on with it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Len
from typing_extensions import TypedDict

from supernet.reading import OPEN, checked

if TYPE_CHECKING:
    import optuna

REMEDY = "put a copy of it back, or begin another search"
OF_THE_MACHINE = ("disk is full", "disk i/o error", "readonly database", "is locked", "unable to open")
"""What SQLite says of a file that need not be damaged."""


class _Trial(TypedDict):
    """What a trial that has been judged tells."""

    hyperparams: dict[str, Any]
    accuracy: float
    macs_fraction: float
    returns: Annotated[list[Any], Len(1)]


_Trial.__pydantic_config__ = OPEN  # type: ignore[attr-defined]


@contextmanager
def damage_told(path: Path) -> Iterator[None]:
    """Says in a sentence what is wrong with a file of studies.

    Args:
        path: The file, for the message.

    Raises:
        ValueError: If the block raises anything, unless that is of the machine, such as a full disk.
    """
    try:
        yield
    except Exception as e:  # Optuna, SQLAlchemy and SQLite have a hundred of their own for what they do not understand
        said = " ".join((str(e).splitlines() or [""])[0].split()) or type(e).__name__
        if isinstance(e, OSError) or any(words in said.lower() for words in OF_THE_MACHINE):
            raise
        raise ValueError(f"{path} is damaged ({said.rstrip('.')}); {REMEDY}.") from e


def check_studies(storage: optuna.storages.RDBStorage, name: str) -> None:
    """Checks that a file holds the study of a search and no other; one that was killed before has none.

    Raises:
        ValueError: If it holds others, as if the name had been damaged.
    """
    from sqlalchemy import text

    with storage.engine.connect() as connection:
        problems = [str(row[0]) for row in connection.execute(text("PRAGMA integrity_check")).fetchall()]
    if problems != ["ok"]:
        raise ValueError(problems[0])
    for study in storage.get_all_studies():
        if study.study_name != name or [d.name for d in study.directions] != ["MAXIMIZE"]:
            raise ValueError(f"it holds a study {study.study_name!r}, and not one of {name!r} to maximize")


def check_trials(trials: Sequence[optuna.trial.FrozenTrial]) -> None:
    """Checks what trials that have ended tell; those that were given up before they were judged tell nothing.

    Raises:
        ValueError: If one tells something else.
    """
    for trial in trials:
        told = trial.user_attrs
        if trial.state.name == "COMPLETE" or "accuracy" in told:
            returns = [value for _, value in sorted(trial.intermediate_values.items())]
            checked({**told, "returns": returns}, _Trial, f"its trial {trial.number}", "it cannot be gone on with")
        if trial.state.name == "COMPLETE" and trial.value != returns[-1]:
            raise ValueError(f"its trial {trial.number} ended with {trial.value}, and not with {returns[-1]}")
