"""What the stages of the case study reported, read back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Le, Len
from typing_extensions import NotRequired, TypedDict

from supernet.reading import OPEN, checked, read_json

from ..runs.rows import RowLog
from ..yardsticks.leaderboard import ADAPTIVE

REMEDY = "the report is damaged: put a copy of it back, or remove the folder and run the case study again"
Share = Annotated[float, Ge(0), Le(1)]


class _Summary(TypedDict):
    accuracy: Share
    macs_fraction: Annotated[float, Ge(0)]
    agent: NotRequired[str]


class _Standing(TypedDict):
    saved: float | None


class _Own(TypedDict):
    accuracy: Annotated[list[Share], Len(1)]
    macs_fraction: Annotated[list[Annotated[float, Ge(0)]], Len(1)]
    standing: Annotated[list[_Standing], Len(1)]


class _Benchmark(TypedDict):
    agents: dict[str, _Own]
    fronts: dict[str, Annotated[list[_Summary], Len(1)]]


class _Judged(TypedDict):
    policy: _Summary


class _Joint(TypedDict):
    before: _Judged
    after: _Judged


class _Accuracy(TypedDict):
    before: dict[str, Share]
    after: dict[str, Share]


class _Order(TypedDict):
    accuracy: _Accuracy


class _Row(TypedDict):
    step: Annotated[int, Ge(0)]
    val_accuracy_full: Share
    val_accuracy_narrowest: Share
    val_accuracy_min: Share
    val_accuracy_random: Share


for _kind in (_Summary, _Standing, _Own, _Benchmark, _Judged, _Joint, _Accuracy, _Order, _Row):
    setattr(_kind, "__pydantic_config__", OPEN)  # noqa: B010 - mypy knows no such attribute of all of them


def read_benchmark(path: Path) -> dict[str, Any]:
    """`benchmark.json`, with the agent of the study and the static front in it.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is damaged, or another benchmark's.
    """
    found = dict(read_json(path, _Benchmark, REMEDY))
    for part, name in (("agents", ADAPTIVE), ("fronts", "static")):
        if name not in found[part]:  # type: ignore[operator]
            raise ValueError(f"{path}: {part}.{name} is missing; {REMEDY}.")
    return found


def read_joint(path: Path) -> dict[str, Any]:
    """`joint.json`: what the policy reached before and after.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is damaged.
    """
    return dict(read_json(path, _Joint, REMEDY))


def read_order(path: Path) -> dict[str, dict[str, float]]:
    """Accuracies `before` and `after` the units were sorted, by subnet, that `importance.json` tells.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is damaged, or tells of other subnets before than after.
    """
    found = read_json(path, _Order, REMEDY)["accuracy"]
    if found["before"].keys() != found["after"].keys():
        raise ValueError(f"{path}: accuracy.before and accuracy.after are of other subnets; {REMEDY}.")
    return {"before": found["before"], "after": found["after"]}


def read_rows(path: Path) -> list[dict[str, Any]]:
    """What a training of a supernet logged in `metrics.jsonl`.

    Raises:
        ValueError: If a row tells of no accuracies.
    """
    return [
        dict(checked(row, _Row, f"{path}, line {i + 1}", REMEDY)) for i, row in enumerate(RowLog(path).read().values())
    ]
