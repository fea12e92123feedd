"""`prance validate`: rows of an evaluation are played again and must come out the same."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from prance_env.settings import EnvArguments, EnvSettings
from supernet.reading import read_json

from ..options import Split, noted_options
from ..play import play_actions
from ..runs.folder import Noted, plain
from ..runs.trained import DEFAULTS, REQUIRED, noted_settings
from ..runs.trust import check_local, say_so
from .rows import Columns, action_column, read_rows

SETTINGS = "settings.json"
REPLAYED = ("label", "prediction", "macs")
SHOWN = 10


@dataclass(frozen=True)
class ReplaySettings:
    """What rows are replayed on; what is not given is as `settings.json` beside them says."""

    env: str | None = None
    """Environment id; what settings.json beside the file says if not given, and so are the other options."""
    split: Split | None = None
    """Images."""
    environment: Annotated[EnvArguments, noted_options("as settings.json says")] = field(default_factory=EnvArguments)
    """What else the environment takes. The device should be that of the evaluation."""


@dataclass(frozen=True)
class Difference:
    """One entry of one row that came out otherwise.

    Attributes:
        row: Of the file, 0-based, without its header.
        index: Image.
        column: One of `REPLAYED`.
        recorded: What the file says.
        replayed: What the environment says.
    """

    row: int
    index: int
    column: str
    recorded: int
    replayed: int

    def __str__(self) -> str:
        return f"row {self.row} (image {self.index}): {self.column} {self.recorded}, replayed {self.replayed}"


def validate_rows(rows: Columns, settings: EnvSettings, batch_size: int = 512) -> list[Difference]:
    """Plays recorded actions again.

    Args:
        rows: What `read_rows` returns.
        settings: Supernet, data set and split of the rows.
        batch_size: Images at a time. Floating-point sums depend on which images are computed together, so a prediction
            between two classes that are equally probable to the last bits may need the evaluation's batches: all rows
            in their order, and the same size. MACs never do.

    Returns:
        Every entry of `REPLAYED` that differs; empty if all is reproduced.

    Raises:
        ValueError: If columns are missing, or hold what is no action or no image of the split.
    """
    space = settings.config().space
    names = [action_column(t, a) for t in range(space.num_decisions) for a in range(space.action_size)]
    missing = [name for name in ("index", *REPLAYED, *names) if name not in rows]
    unknown = [name for name in rows if name.startswith("action_") and name not in names]
    if missing or unknown:
        raise ValueError(
            f"The rows lack the columns {missing[:4]} or have {unknown[:4]} too many for a supernet with "
            f"{space.num_decisions} decisions of {space.action_size} entries; pass the --env and --checkpoint of the "
            "evaluation, and a file that `prance eval --out FOLDER` wrote."
        )
    if not len(rows["index"]):
        raise ValueError("There are no rows, so there is nothing to replay; write them again with `prance eval --out`.")
    engine = settings.engine()
    total = len(engine.dataset)
    recorded = {name: _whole(rows[name], name) for name in ("index", *REPLAYED)}
    index = recorded["index"]
    bad = index[(index < 0) | (index >= total)]
    if len(bad):
        raise ValueError(f"index={bad[0]} is not one of the {total} images; pass the evaluation's --env and --split.")
    for name in names:
        if not np.issubdtype(rows[name].dtype, np.number) or np.iscomplexobj(rows[name]):
            raise ValueError(
                f"The column {name} holds {rows[name].dtype}; expected real numbers. Write the rows again."
            )
    actions = np.stack([rows[name] for name in names], axis=1).reshape(-1, space.num_decisions, space.action_size)
    if not np.isfinite(actions).all():
        row = int(np.flatnonzero(~np.isfinite(actions).all(axis=(1, 2)))[0])
        raise ValueError(f"Row {row} holds actions that are no finite numbers; write the rows again.")
    differences = []
    for begin in range(0, len(index), batch_size):
        part = slice(begin, begin + batch_size)
        end = play_actions(actions[part], settings, engine, index[part])[0][-1]
        for column in REPLAYED:
            noted, replayed = recorded[column][part], getattr(end, column)
            for i in np.flatnonzero(noted != replayed).tolist():
                differences.append(
                    Difference(begin + i, int(index[begin + i]), column, int(noted[i]), int(replayed[i]))
                )
    return differences


def _whole(values: NDArray[Any], name: str) -> NDArray[np.int64]:
    """A column as whole numbers.

    Raises:
        ValueError: If one of them is none; the message says in which row.
    """
    if np.issubdtype(values.dtype, np.signedinteger):
        return values.astype(np.int64)
    numbers = np.issubdtype(values.dtype, np.number) and not np.iscomplexobj(values)
    for row, value in enumerate(values.tolist()):
        if not numbers or not -(2.0**53) < value < 2.0**53 or value != int(value):
            raise ValueError(f"Row {row}: {name}={value!r} is no whole number of 53 bits; write the rows again.")
    return values.astype(np.int64)


def run_validate(path: Path, given: ReplaySettings | None = None) -> None:
    """Validates a file and says so.

    Args:
        path: Rows of `prance eval --out`.
        given: What to replay them on; what is missing is as `settings.json` beside the file says, else the default.

    Raises:
        ValueError: If rows differ, or cannot be played.
        FileNotFoundError: If there is no such file.
    """
    given = given or ReplaySettings()
    rows = read_rows(path)
    asked = {k: v for k, v in plain(given).items() if v is not None}
    noted = _noted(path.parent / SETTINGS)
    if "dataset" not in asked:
        named = noted.get("dataset")
        check_local(named, path.parent / SETTINGS, say_so(named))
    chosen = noted_settings({**DEFAULTS, **noted, **asked})
    settings = EnvSettings.from_id(chosen.pop("env"), **chosen)
    differences = validate_rows(rows, settings)
    total = len(rows["index"])
    if differences:
        listed = "; ".join(map(str, differences[:SHOWN])) + ("; ..." if len(differences) > SHOWN else "")
        count = len({d.row for d in differences})
        raise ValueError(
            f"{count} of {total} rows of {path} are not reproduced on the split {chosen['split']!r}: {listed}"
        )
    print(f"{path}: all {total} rows are reproduced, predictions and MACs.")


def _noted(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    remedy = "delete it and pass --env, --split and --checkpoint"
    data: Any = read_json(path, Noted, remedy)
    if missing := [k for k in REQUIRED if k not in data]:
        raise ValueError(f"{path}: {', '.join(missing)} is missing; {remedy}.")
    # Older files know fewer settings, which were not to be chosen then.
    return {k: data.get(k, default) for k, default in DEFAULTS.items()}
