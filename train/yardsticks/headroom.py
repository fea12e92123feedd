"""How much there is to win by looking: static subnets against the best static subnet per stratum.

Subnets are searched and chosen on one half of the validation images and read on the other half. "static" is one subnet
for all images; "per stratum" picks one for few, some and many digits, which is what an agent can do that only counts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from tqdm import tqdm
from tyro.conf import arg

from prance_env.engine import InferenceEngine
from prance_env.settings import EnvArguments, EnvSettings

from ..options import environment_options
from ..report.tables import Table, write_json
from ..search.static import SearchResult, correct_of_static, evolve_static_front

STRATA_BOUNDS = (4, 8)  # few: 1..3 digits, some: 4..7, many: 8..11
DROPS = (0.005, 0.01, 0.02)
WithoutCheckpoint = Annotated[EnvArguments, arg(constructor_factory=lambda: environment_options(["checkpoint"]))]


def choose_static(found: SearchResult, rows: NDArray[np.bool_], least: float) -> int:
    """The cheapest subnet whose accuracy on `rows` is at least `least` (the most accurate one if there is none)."""
    accuracy = found.correct[:, rows].mean(axis=1)
    enough = np.flatnonzero(accuracy >= least)
    return int(enough[found.macs_fraction[enough].argmin()] if len(enough) else accuracy.argmax())


def choose_per_stratum(found: SearchResult, stratum: NDArray[np.int64], least: float) -> list[int]:
    """One subnet per stratum: the cheapest Lagrangian choice whose overall accuracy is at least `least`."""
    kinds = np.unique(stratum)
    share = np.array([(stratum == k).mean() for k in kinds])
    accuracy = np.stack([found.correct[:, stratum == k].mean(axis=1) for k in kinds])
    best: tuple[float, list[int]] = (np.inf, accuracy.argmax(axis=1).tolist())
    for price in np.geomspace(1e-4, 3, 400):
        chosen = (accuracy - price * found.macs_fraction).argmax(axis=1)
        reached = share @ accuracy[np.arange(len(kinds)), chosen]
        cost = share @ found.macs_fraction[chosen]
        if reached >= least and cost < best[0]:
            best = (float(cost), chosen.tolist())
    return best[1]


def measure_headroom(engine: InferenceEngine, num_subnets: int, seed: int = 0) -> dict[str, Any]:
    """Searches static subnets on half of the engine's images and compares the two ways of using them.

    Returns:
        Accuracy of the full and of the smallest subnet on the other half, and for each allowed drop in accuracy the
        MACs and the accuracy of both, with the saving of the second.
    """
    half = len(engine.dataset) // 2
    select, read = np.arange(half), np.arange(half, 2 * half)
    stratum = np.digitize(engine.dataset.difficulty.numpy(), STRATA_BOUNDS)
    with tqdm(total=num_subnets, desc="static subnets", unit="subnet") as bar:
        found = evolve_static_front(engine, select, num_subnets, seed, progress=lambda tried: bar.update(1))
    full, smallest = (np.flatnonzero((found.actions == value).all(axis=(1, 2)))[0] for value in (1.0, 0.0))

    read_correct: dict[int, NDArray[np.bool_]] = {}

    def on_read(subnet: int) -> NDArray[np.bool_]:
        if subnet not in read_correct:
            read_correct[subnet] = correct_of_static(engine, read, found.actions[subnet])
        return read_correct[subnet]

    full_selected = found.correct[full].mean()
    rows = []
    for drop in DROPS:
        static = choose_static(found, np.ones(half, dtype=bool), full_selected - drop)
        chosen = choose_per_stratum(found, stratum[select], full_selected - drop)
        kinds = np.unique(stratum[select])
        picked = np.array(chosen)[np.searchsorted(kinds, stratum[read])]
        composed = np.stack([on_read(c) for c in chosen])[np.searchsorted(kinds, stratum[read]), np.arange(half)]
        static_macs, stratum_macs = float(found.macs_fraction[static]), float(found.macs_fraction[picked].mean())
        rows.append(
            {
                "drop": drop,
                "static_macs": static_macs,
                "static_accuracy": float(on_read(static).mean()),
                "per_stratum_macs": stratum_macs,
                "per_stratum_accuracy": float(composed.mean()),
                "per_stratum_choice": [round(float(found.macs_fraction[c]), 3) for c in chosen],
                "saving": 1 - stratum_macs / static_macs,
            }
        )
    return {
        "full_accuracy": float(on_read(int(full)).mean()),
        "min_accuracy": float(on_read(int(smallest)).mean()),
        "min_macs": float(found.macs_fraction[smallest]),
        "num_subnets": num_subnets,
        "images": half,
        "rows": rows,
    }


@dataclass(frozen=True)
class HeadroomSettings:
    """What `prance headroom` measures."""

    checkpoint: tuple[str, ...] = ()
    """Folders with supernets; the bundled one if none is given."""
    env: str = "Prance-Digits-v0"
    """Environment id."""
    num_subnets: int = 400
    """Static subnets to search among."""
    environment: WithoutCheckpoint = field(default_factory=EnvArguments)
    """What else the environment takes; as its id says if not given."""

    def __post_init__(self) -> None:
        if self.num_subnets < 1:
            raise ValueError(f"num_subnets={self.num_subnets} must be at least 1.")


def run_headroom(settings: HeadroomSettings, out: Path | None) -> None:
    """Measures every checkpoint, prints a table, and writes `headroom.json` to the folder `out`.

    Raises:
        ValueError: If an argument is unknown.
        FileNotFoundError: If a folder holds no supernet.
    """
    console = Console()
    table = Table(
        "supernet", "full", "min", "allowed drop", "static: MACs", "acc", "per stratum: MACs", "acc", "saving"
    )
    results = {}
    for checkpoint in settings.checkpoint or (None,):
        name = Path(checkpoint).name if checkpoint else "bundled"
        given: EnvArguments = {**settings.environment, "split": "val", "checkpoint": checkpoint}
        engine = EnvSettings.from_id(settings.env, **given).engine()
        result = results[checkpoint or "bundled"] = measure_headroom(engine, settings.num_subnets)
        for row in result["rows"]:
            table.add_row(
                name,
                f"{result['full_accuracy']:.2%}",
                f"{result['min_accuracy']:.2%}",
                f"{row['drop']:.1%}",
                f"{row['static_macs']:.3f}",
                f"{row['static_accuracy']:.2%}",
                f"{row['per_stratum_macs']:.3f}",
                f"{row['per_stratum_accuracy']:.2%}",
                f"{row['saving']:.0%}",
            )
    console.print(table)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / "headroom.json", results)
