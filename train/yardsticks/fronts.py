"""Fronts of accuracy against MACs that agents are measured by, and their files."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from annotated_types import Gt
from numpy.typing import NDArray
from typing_extensions import NotRequired, TypedDict

from prance_env.engine import InferenceEngine
from supernet.archives import read_arrays
from supernet.arrays import Floats
from supernet.reading import OPEN, read_json
from supernet.staging import finish_commit, staged

from ..play import played_by_full
from ..report.tables import write_json

FILE, OUTCOMES = "yardsticks.json", "outcomes.npz"
# Another device rounds differently, which turns few predictions; another supernet turns more.
SAME_SUPERNET = 0.01
FREE = 1e-9  # a price of 0, among prices on a logarithmic scale
AGENT_FILE = re.compile(r"(static|confidence)-[^/\\]+\.json")
FRONTS = ("static", "per_stratum", "confidence", "oracle", "oracle_lucky")


class _Row(TypedDict):
    """What a point of a front is read from."""

    price: Annotated[float, Gt(0)] | None
    agent: NotRequired[str | None]


class _Written(TypedDict):
    """What `yardsticks.json` holds; the other fields are the settings."""

    fronts: dict[str, list[_Row]]


_Row.__pydantic_config__ = _Written.__pydantic_config__ = OPEN  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Front:
    """One yardstick at several prices, on N images.

    Attributes:
        price: (P,) of the full network's MACs at which each point was chosen; NaN: at none.
        correct: (P, N) whether it is right.
        macs_fraction: (P, N) MACs / MACs of the full network.
        agent: (P,) file of each point's agent, if it is one.
    """

    price: Floats
    correct: NDArray[np.bool_]
    macs_fraction: Floats
    agent: tuple[str | None, ...]

    def rows(self) -> list[dict[str, Any]]:
        """One dict per point: price, accuracy, macs_fraction, agent."""
        return [
            {"price": None if np.isnan(p) else float(p), "accuracy": float(c.mean()), "macs_fraction": float(m.mean())}
            | ({} if a is None else {"agent": a})
            for p, c, m, a in zip(self.price, self.correct, self.macs_fraction, self.agent, strict=True)
        ]


@dataclass(frozen=True)
class Point:
    """One point of a front as something to compare with; see `train.evaluate.pairs.Outcomes`."""

    index: NDArray[np.int64]
    label: NDArray[np.int64]
    correct: NDArray[np.bool_]
    macs_fraction: Floats


@dataclass(frozen=True)
class Yardsticks:
    """All fronts, on the same images.

    Attributes:
        index: (N,) images.
        label: (N,) their classes.
        full_prediction: (N,) what the full network says of them; tells supernets and splits apart.
        fronts: By name, the keys of `FRONTS`.
        settings: How they were made.
    """

    index: NDArray[np.int64]
    label: NDArray[np.int64]
    full_prediction: NDArray[np.int64]
    fronts: dict[str, Front]
    settings: dict[str, Any]

    def point(self, front: str, price: float) -> tuple[float, Point]:
        """The point of a front that was chosen at the nearest price, and that price."""
        chosen = self.fronts[front]
        at = int(np.nanargmin(np.abs(np.log(chosen.price) - np.log(max(price, FREE)))))
        return float(chosen.price[at]), Point(self.index, self.label, chosen.correct[at], chosen.macs_fraction[at])

    def check(self, engine: InferenceEngine) -> None:
        """Checks that these are for an engine's images and supernet.

        Raises:
            ValueError: If the images are others, or the full network says something else of more than 1 % of them.
        """
        made_for = ", ".join(f"{k}={self.settings.get(k)!r}" for k in ("env", "split", "checkpoint"))
        others = ValueError(f"These yardsticks are for the {len(self.label)} images of {made_for}, not for these.")
        # Broken images have others in their places, here and there; their labels are told before anything is computed.
        if len(self.label) != len(engine.labels) or not (self.index < len(engine.labels)).all():
            raise others
        if not np.array_equal(self.label, engine.labels[self.index]):
            raise others
        index, _, said = played_by_full(engine, np.arange(len(engine.labels)))
        if not np.array_equal(self.index, index):
            raise others
        differ = float((said != self.full_prediction).mean())
        if differ > SAME_SUPERNET:
            raise ValueError(
                f"These yardsticks are for another supernet ({made_for}): the full networks disagree on "
                f"{differ:.1%} of the images. Run `prance yardsticks` with this --checkpoint."
            )

    def save(self, folder: Path) -> None:
        """Writes `yardsticks.json` to read and `outcomes.npz` to compute with, both or none of them."""
        arrays: dict[str, Any] = {n: getattr(self, n) for n in ("index", "label", "full_prediction")}
        for name, front in self.fronts.items():
            arrays |= {f"{name}.correct": front.correct, f"{name}.macs_fraction": front.macs_fraction}

        fronts = {name: front.rows() for name, front in self.fronts.items()}
        with staged(folder) as stage:
            np.savez_compressed(stage / OUTCOMES, **arrays)
            write_json(stage / FILE, {**self.settings, "fronts": fronts})

    @staticmethod
    def load(folder: str | Path) -> Yardsticks:
        """Reads what `save` wrote.

        Raises:
            FileNotFoundError: If the folder holds no yardsticks.
            ValueError: If a file is damaged.
        """
        folder = Path(folder)
        finish_commit(folder)
        for name in (FILE, OUTCOMES):
            if not (folder / name).is_file():
                raise FileNotFoundError(f"{folder} holds no {name}; `prance yardsticks --out {folder}` writes it.")
        data: Any = read_json(folder / FILE, _Written, "the yardsticks are damaged: run `prance yardsticks` again")
        try:
            arrays = read_arrays(folder / OUTCOMES)
            fronts = {}
            for name, rows in data.pop("fronts").items():
                price = np.array([np.nan if r["price"] is None else r["price"] for r in rows])
                correct, macs_fraction = arrays[f"{name}.correct"], arrays[f"{name}.macs_fraction"]
                if not correct.shape == macs_fraction.shape == (len(rows), len(arrays["index"])):
                    raise ValueError(f"{name} has {len(rows)} points, but outcomes of the shape {correct.shape}")
                fronts[name] = Front(price, correct, macs_fraction, tuple(r.get("agent") for r in rows))
            if missing := set(FRONTS) - set(fronts):
                raise ValueError(f"the fronts {sorted(missing)} are missing")
            return Yardsticks(arrays["index"], arrays["label"], arrays["full_prediction"], fronts, data)
        except (AttributeError, KeyError, OSError, TypeError, ValueError) as e:
            raise ValueError(f"{folder} holds damaged yardsticks ({e!r}); run `prance yardsticks` again.") from e


def hull(macs: Floats, accuracy: Floats) -> tuple[Floats, Floats]:
    """The upper concave hull of (P,) points, cheapest to most accurate: what mixing two of them at random reaches."""
    kept: list[tuple[float, float]] = []
    for x, y in sorted(zip(macs.tolist(), accuracy.tolist(), strict=True), key=lambda p: (p[0], -p[1])):
        if kept and y <= kept[-1][1]:
            continue
        while len(kept) > 1 and (kept[-1][1] - kept[-2][1]) * (x - kept[-2][0]) <= (y - kept[-2][1]) * (
            kept[-1][0] - kept[-2][0]
        ):
            kept.pop()
        kept.append((x, y))
    xs, ys = np.array(kept).T
    return xs, ys


def macs_at(macs: Floats, accuracy: Floats, wanted: float) -> float:
    """MACs that a front needs for an accuracy, on its hull.

    Returns:
        Beyond its most accurate point that point's MACs, so that a yardstick is never said to be worse than it is; NaN
        below its cheapest point, where nothing can be said.
    """
    xs, ys = hull(macs, accuracy)
    return float(np.interp(wanted, ys, xs, left=np.nan))


def accuracy_at(macs: Floats, accuracy: Floats, wanted: float) -> float:
    """Accuracy of a front at some MACs, on its hull; beyond its dearest point of the hull that one's, NaN below its
    cheapest."""
    if not len(macs):
        return float("nan")
    xs, ys = hull(macs, accuracy)
    return float(np.interp(wanted, xs, ys, left=np.nan))


def agents_in(folder: Path) -> set[str]:
    """Names of the files of agents that the yardsticks in a folder wrote; none if it holds no yardsticks."""
    try:
        fronts = read_json(folder / FILE, dict[str, Any], "search again")["fronts"].values()
        names = {row["agent"] for front in fronts for row in front if "agent" in row}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return set()
    # The others are agents of --also-static, which lie elsewhere.
    return {name for name in names if AGENT_FILE.fullmatch(str(name))}
