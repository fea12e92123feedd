"""How much there is to win by looking, before any agent is trained.

Subnets are searched and chosen on one half of the images and judged on the other half. "static" is one subnet for all
images; "per stratum" picks one for few, some and many digits, which is what an agent can do that only counts; "seen"
picks one for each third of the images, by a linear guess at how much they need.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from rich.console import Console
from tqdm import tqdm
from tyro.conf import arg

from prance_env.engine import InferenceEngine
from prance_env.settings import EnvArguments, EnvSettings
from supernet.arrays import Bools, Ints

from ..options import Split, environment_options
from ..report.tables import Table, write_json
from ..runs.lock import only_writer
from ..search.static import SearchResult, check_static, correct_of_static, evolve_static_front, macs_of_static
from .visible import area_under_curve, chances, observed_at_full_size, strata_of

STRATA_BOUNDS = (4, 8)  # few: 1..3 digits, some: 4..7, many: 8..11
DROPS = (0.005, 0.01, 0.02)
IMAGES = 4096
WAYS = {"static": "static", "per_stratum": "per stratum", "seen": "seen"}
WithoutCheckpoint = Annotated[EnvArguments, arg(constructor_factory=lambda: environment_options(["checkpoint"]))]


def choose_static(found: SearchResult, rows: Bools, least: float) -> int:
    """The cheapest subnet whose accuracy on `rows` is at least `least` (the most accurate one if there is none)."""
    accuracy = found.correct[:, rows].mean(axis=1)
    enough = np.flatnonzero(accuracy >= least)
    return int(enough[found.macs_fraction[enough].argmin()] if len(enough) else accuracy.argmax())


def choose_per_stratum(found: SearchResult, stratum: Ints, least: float) -> list[int]:
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


def measure_headroom(engine: InferenceEngine, num_subnets: int, images: int = IMAGES, seed: int = 0) -> dict[str, Any]:
    """Searches static subnets on half of the images and compares the ways of using them on the other half.

    Args:
        engine: Supernet and images.
        num_subnets: Static subnets to search among; fewer, if the search space has no more.
        images: At most so many, evenly spaced, so that both halves have all classes.
        seed: Fixes the search.

    Returns:
        Accuracy of the full and of the smallest subnet; for each allowed drop in accuracy the MACs and the accuracy of
        all ways, with the saving of those that look; and under `visible` for every decision how often, of an image that
        needs more than the least and one that does not, the former looks so (area under the curve; an image needs it
        if the full network is right about it and the smallest subnet is not).
    """
    half = min(images, len(engine.dataset)) // 2
    spaced = np.arange(2 * half) * len(engine.dataset) // (2 * half)
    select, read = spaced[::2], spaced[1::2]
    with tqdm(total=num_subnets, desc="static subnets", unit="subnet") as bar:
        found = evolve_static_front(engine, select, num_subnets, seed, progress=lambda tried: bar.update(1))
    read_correct: dict[int, Bools] = {}

    def on_read(subnet: int) -> Bools:
        if subnet not in read_correct:
            read_correct[subnet] = correct_of_static(engine, read, found.actions[subnet])
        return read_correct[subnet]

    # The search may have put the smallest one aside, if it is hopeless.
    ends = [np.full(found.actions.shape[1:], value) for value in (1.0, 0.0)]
    full, smallest = ([correct_of_static(engine, part, end) for part in (select, read)] for end in ends)
    counted = np.digitize(engine.dataset.difficulty.numpy(), STRATA_BOUNDS)
    ways = {"per_stratum": (counted[select], counted[read])} if len(np.unique(counted[select])) > 1 else {}
    visible = []
    seen = zip(observed_at_full_size(engine, select), observed_at_full_size(engine, read), strict=True)
    for decision, (own, others) in enumerate(seen):
        chance = chances(own, full[0] & ~smallest[0], others)
        visible.append(None if chance is None else area_under_curve(chance[1], full[1] & ~smallest[1]))
        if chance is not None and not decision:
            ways["seen"] = strata_of(*chance)

    least = full[0].mean()
    rows = [{"drop": drop, **_at(found, ways, least - drop, on_read)} for drop in DROPS]
    return {
        "full_accuracy": float(full[1].mean()),
        "min_accuracy": float(smallest[1].mean()),
        "min_macs": float(macs_of_static(engine, ends[1][None])[0]),
        "num_subnets": len(found.actions),
        "images": half,
        "visible": visible,
        "rows": rows,
    }


def _at(
    found: SearchResult, ways: dict[str, tuple[Ints, Ints]], least: float, on_read: Callable[[int], Bools]
) -> dict[str, Any]:
    """What one subnet for all and one for every stratum cost and reach, of which at least `least` was wanted."""
    static = choose_static(found, np.ones(found.correct.shape[1], dtype=bool), least)
    macs = float(found.macs_fraction[static])
    row: dict[str, Any] = {"static_macs": macs, "static_accuracy": float(on_read(static).mean())}
    for name, (chosen_on, judged_on) in ways.items():
        chosen = choose_per_stratum(found, chosen_on, least)
        of_image = np.searchsorted(np.unique(chosen_on), judged_on).clip(max=len(chosen) - 1)
        correct = np.stack([on_read(c) for c in chosen])[of_image, np.arange(len(judged_on))]
        row[f"{name}_macs"] = float(found.macs_fraction[chosen][of_image].mean())
        row[f"{name}_accuracy"] = float(correct.mean())
        row[f"{name}_choice"] = [round(float(found.macs_fraction[c]), 3) for c in chosen]
        row[f"{name}_saving"] = 1 - row[f"{name}_macs"] / macs
    return row


@dataclass(frozen=True)
class HeadroomSettings:
    """What `prance headroom` measures."""

    checkpoint: tuple[str, ...] = ()
    """Folders with supernets; the bundled one if none is given."""
    env: str = "Prance-Digits-v0"
    """Environment id."""
    num_subnets: int = 400
    """Static subnets to search among."""
    split: Split = "val"
    """Images, half of them to choose on and half to judge on: such as the supernet was not trained on."""
    images: int = IMAGES
    """At most so many of them, evenly spaced."""
    environment: WithoutCheckpoint = field(default_factory=EnvArguments)
    """What else the environment takes; as its id says if not given."""

    def __post_init__(self) -> None:
        for name, least in (("num_subnets", 2), ("images", 2)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)} must be at least {least}.")


def run_headroom(settings: HeadroomSettings, out: Path | None) -> None:
    """Measures every checkpoint, prints a table, and writes `headroom.json` to the folder `out`.

    Raises:
        ValueError: If an argument is unknown, keep rates are thresholds, or there are fewer than two images.
        FileNotFoundError: If a folder holds no supernet.
        FileExistsError: If another process writes to `out`, or it is a file; before anything is measured.
    """
    measured_on = {checkpoint: _settings(settings, checkpoint) for checkpoint in settings.checkpoint or (None,)}
    for env in measured_on.values():
        check_static(env.config())
    with nullcontext() if out is None else only_writer(out):
        results = {name or "bundled": _measured(settings, env, name) for name, env in measured_on.items()}
        if out is not None:
            write_json(out / "headroom.json", results)


def _settings(settings: HeadroomSettings, checkpoint: str | None) -> EnvSettings:
    given: EnvArguments = {**settings.environment, "split": settings.split, "checkpoint": checkpoint}
    return EnvSettings.from_id(settings.env, **given)


def _measured(settings: HeadroomSettings, env: EnvSettings, checkpoint: str | None) -> dict[str, Any]:
    engine, console = env.engine(), Console()
    if len(engine.dataset) < 2:
        raise ValueError(
            f"{settings.split} has {len(engine.dataset)} image; one is needed to choose on, one to judge on."
        )
    result = measure_headroom(engine, settings.num_subnets, settings.images)
    console.print(_table(Path(checkpoint).name if checkpoint else "bundled supernet", result))
    console.print(_in_words(result["visible"]), highlight=False)
    return result


def _table(name: str, result: dict[str, Any]) -> Table:
    table = Table(
        "allowed drop", "chosen", title=f"{name}: {result['images']:,} images to choose on, as many to judge on"
    )
    for column in ("accuracy", "MACs / full", "saved"):
        table.add_column(column, justify="right")
    table.add_row("", "full", f"{result['full_accuracy']:.2%}", "100.0%")
    table.add_row("", "smallest", f"{result['min_accuracy']:.2%}", f"{result['min_macs']:.1%}")
    for row in result["rows"]:
        for way, words in WAYS.items():
            if f"{way}_macs" in row:
                saved = f"{row[f'{way}_saving']:.0%}" if f"{way}_saving" in row else ""
                cells = f"{row[f'{way}_accuracy']:.2%}", f"{row[f'{way}_macs']:.1%}", saved
                table.add_row(f"{100 * row['drop']:g} points" if way == "static" else "", words, *cells)
    return table


def _in_words(visible: list[float | None]) -> str:
    told = ", ".join("unknown" if area is None else f"{area:.2f}" for area in visible)
    return (
        "How well what is seen before each decision tells the images that need more than the least (area under the "
        f"curve, 0.5 is chance): {told}"
    )
