"""`prance designs`: DeepMAD, NViT and evolution side by side, over several seeds."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from tqdm import tqdm

from prance_env.settings import EnvArguments, EnvSettings

from ..machine import machine
from ..options import EnvironmentOptions, Split
from ..play import of_all_classes
from ..report.tables import Table, write_json
from ..runs.folder import plain
from ..search.shared_runs import Actions
from ..search.static import SearchResult, check_static, evolve_static_front
from .compute import MACS_BANDS, PRICES
from .fronts import Front
from .static_designs import (
    PRUNE_IMAGES,
    READ_AT,
    Methods,
    accuracy_of,
    deepmad_subnets,
    load_networks,
    networks_front,
    nvit_networks,
    nvit_subnets,
    subnets_front,
)

FILE = "designs.json"


@dataclass(frozen=True)
class DesignSettings:
    """What `prance designs` compares.

    Raises:
        ValueError: If a number is too small.
    """

    env: str = "Prance-Digits-v0"
    """Environment id."""
    choose_on: Split = "val"
    """Images on which evolution searches; NViT scores units on training images."""
    split: Split = "test"
    """Images on which everything is read."""
    num_subnets: int = 300
    """Subnets that an evolution tries; 0: there is none."""
    images: int = 2048
    """Images of --choose-on that it tries them on: the first ones, or evenly spaced ones if those lack a class."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """One evolution by itself, one that begins with the designs, and one pruning each."""
    networks: tuple[str, ...] = ()
    """Folders of static networks of any sizes (prance train static) to read as well."""
    environment: EnvironmentOptions = field(default_factory=EnvArguments)
    """What else the environment takes; as its id says if not given."""

    def __post_init__(self) -> None:
        if self.num_subnets < 0 or self.num_subnets == 1 or self.images < 1 or not self.seeds:
            raise ValueError(
                f"num_subnets={self.num_subnets} must be at least 2, or 0 for none, images={self.images} at least 1, "
                f"and there must be seeds ({self.seeds})."
            )

    def settings(self, split: str) -> EnvSettings:
        """The settings of the environment on one of the splits."""
        given: EnvArguments = {**self.environment, "split": split}
        return EnvSettings.from_id(self.env, **given)


def run_designs(settings: DesignSettings, out: Path) -> dict[str, Any]:
    """Compares the methods, prints what they reach and take, and writes `designs.json`.

    Returns:
        By method and seed the accuracies at 40, 50 and 60 % of the MACs, the front, and what was taken.

    Raises:
        ValueError: If a network does not fit, or keep rates are thresholds.
        FileNotFoundError: If there is no such network.
    """
    check_static(settings.settings(settings.split).config())
    engines = {split: settings.settings(split).engine() for split in ("train", settings.choose_on, settings.split)}
    train, val, test = engines["train"], engines[settings.choose_on], engines[settings.split]
    index = of_all_classes(val.labels, settings.images)
    scored_on = min(PRUNE_IMAGES, len(train.dataset))
    class_map = settings.settings(settings.split).dataset_config.class_map
    networks = load_networks(settings.networks, test, class_map)
    out.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {**plain(settings), "machine": machine(test.net.pos_embed.device.type), "seeds": []}
    with tqdm(total=2 * settings.num_subnets * len(settings.seeds), desc="evolution", unit="subnet") as bar:

        def evolved(seed: int, starts: Actions | None) -> Front:
            found = evolve_static_front(
                val, index, settings.num_subnets, seed, lambda done: bar.update(1), starts=starts
            )
            return subnets_front(test, found.actions[chosen(found)])

        once = Methods()
        with once.timed("deepmad", 0):
            designed = deepmad_subnets(test.config)
        for seed in settings.seeds:
            methods, fronts = Methods(taken=dict(once.taken)), dict[str, Front]()
            with methods.timed("nvit, not trained", scored_on, gradients=True):
                pruned = nvit_networks(train, seed)
            with methods.timed("nvit", scored_on, gradients=True):
                nearest = nvit_subnets(train, pruned)
            for name, actions in (("deepmad", designed), ("nvit", nearest)):
                if len(actions):
                    fronts[name] = subnets_front(test, actions)
            starts = {"evolution": None, "evolution from designs": np.concatenate([designed, nearest])}
            for name, given in starts.items() if settings.num_subnets else ():
                with methods.timed(name, len(index)):
                    fronts[name] = evolved(seed, given)
            fronts["nvit, not trained"] = networks_front(test, {str(i): network for i, network in enumerate(pruned)})
            if networks:
                fronts["networks"] = networks_front(test, networks)
            report["seeds"].append({"seed": seed, "methods": methods.taken, "fronts": _read(fronts)})
            write_json(out / FILE, report)
    Console().print(_table(report, settings.split))
    return report


def chosen(found: SearchResult) -> list[int]:
    """The subnets that a search hands over: the best at every price, and in every band of MACs."""
    return sorted({*found.best_at(PRICES).tolist(), *found.best_in_bands(MACS_BANDS).values()})


def _read(fronts: dict[str, Front]) -> dict[str, Any]:
    found = {}
    for name, front in fronts.items():
        at = {f"{share:g}": accuracy_of(front, share) for share in READ_AT}
        found[name] = {"rows": front.rows(), "at": {k: None if np.isnan(a) else a for k, a in at.items()}}
    return found


def _table(report: dict[str, Any], split: str) -> Table:
    """Means over seeds, least and most in brackets."""
    at, taken = defaultdict(lambda: defaultdict(list)), defaultdict(list)  # type: ignore[var-annotated]
    for run in report["seeds"]:
        for name, front in run["fronts"].items():
            for share, accuracy in front["at"].items():
                at[name][share].append(np.nan if accuracy is None else accuracy)
            taken[name].append(run["methods"].get(name))
    table = Table("method", title=f"accuracy on {split} at a share of the MACs, {len(report['seeds'])} seeds")
    for column in (*(f"{share:.0%}" for share in READ_AT), "CPU s", "images", "gradients"):
        table.add_column(column, justify="right")
    for name, shares in at.items():
        cells = [
            "-" if np.isnan(v).any() else f"{np.mean(v):.2%} ({min(v):.2%} .. {max(v):.2%})" for v in shares.values()
        ]
        known = [t for t in taken[name] if t is not None]
        if known:
            cells += [f"{np.mean([t['cpu_seconds'] for t in known]):.0f}", f"{known[0]['images']:,}"]
            cells.append("yes" if known[0]["gradients"] else "no")
        table.add_row(name, *cells)
    return table
