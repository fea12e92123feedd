"""`prance prune`: networks at several targets, the subnets of the search space next to them, and who lost what."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from torch import Tensor
from tqdm import tqdm

from prance_env.images.loading import load_dataset
from prance_env.images.source import check_fits
from prance_env.rewards.latency import load_latency_table
from supernet import StaticViT, SubnetConfig, Supernet, load_static, save_static
from supernet.extract import DESCRIPTION
from supernet.files import write_text
from supernet.nearest import LEVELS, nearest_subnet
from supernet.staging import staged
from supernet.token_graph import least_macs, token_graph

from ..networks.importance import full_network
from ..networks.ordering import draw_batches, num_images, validation_batches
from ..networks.saliency import Saliency
from ..networks.subnet_choice import open_supernet
from ..options import DatasetOption
from ..report.pruning import plot_pruning
from ..report.tables import Table
from ..runs.folder import check_free, check_kind
from .global_prune import LATENCY_WEIGHT, MOMENTUM, PER_STEP, Pruned, PruneOptions, global_prune, usual_bundles
from .size_costs import SizeCost, macs_cost, milliseconds_cost

REPORT, FIGURE = "pruning.json", "pruning.png"
VAL_BATCH = 256
Kind = Literal["embed_dim", "heads", "qk", "v", "hidden", "tokens"]
KINDS: tuple[Kind, ...] = ("embed_dim", "heads", "qk", "v", "hidden")


@dataclass(frozen=True)
class PruneSettings:
    """What `prance prune` does.

    Raises:
        ValueError: If a number is out of range.
    """

    supernet: str = "digits"
    """Registered name or folder of a supernet, whose full network is pruned; or folder of a static network."""
    dataset: DatasetOption = "digits"
    """Images to score units on: digits, a folder in ImageNet's layout, a timm name, or JSON (docs/images.md)."""
    target: tuple[float, ...] = (0.5,)
    """Shares of the cost of the network to get down to."""
    target_ms: tuple[float, ...] = ()
    """Instead: milliseconds an image, by --latency-table."""
    latency_table: Path | None = None
    """Count milliseconds by this file of prance profile, instead of MACs."""
    saliency: Saliency = "taylor"
    """taylor: the squared derivative by a gate, as NViT; hutchinson: second derivatives along random signs."""
    latency_weight: float = LATENCY_WEIGHT
    """Of the share of the cost that a unit saves, against its share of the saliency."""
    kinds: tuple[Kind, ...] = KINDS
    """Which units may go; tokens, by the token mode prune, are ours and not NViT's."""
    bundles: tuple[int, ...] = ()
    """How many units of each of these kinds go together; by default as NViT, but at most a quarter of what there is."""
    per_step: int = PER_STEP
    """Bundles that go before units are scored anew."""
    momentum: float = MOMENTUM
    """Of the moving average of scores."""
    images: int = 512
    """Training images to score on at every step."""
    batch_size: int = 32
    """Images a batch; saliencies are squared once for every batch."""
    check_images: int = 1000
    """Validation images for the table of accuracies; 0: no table."""
    seed: int = 0
    """Fixes which images are drawn."""

    def __post_init__(self) -> None:
        if self.target_ms and self.latency_table is None:
            raise ValueError("--target-ms needs --latency-table, which prance profile writes.")
        if self.target_ms and self.target != type(self).target:
            raise ValueError(f"target={self.target} and target_ms={self.target_ms} were both given; choose one.")
        wanted = self.target_ms or self.target
        if not wanted or not all(t > 0 for t in wanted) or (not self.target_ms and max(wanted) > 1):
            raise ValueError(f"target={self.target} must be shares in (0, 1], target_ms={self.target_ms} above 0.")
        if self.bundles and len(self.bundles) != len(self.kinds):
            raise ValueError(f"bundles={self.bundles} must be as many as kinds={self.kinds}, or none.")
        self.options({kind: 1 for kind in self.kinds})

    def options(self, usual: Mapping[str, int]) -> PruneOptions:
        """How units are taken out.

        Args:
            usual: Bundles by kind, where none were given.
        """
        bundles = self.bundles or [usual[kind] for kind in self.kinds]
        return PruneOptions(
            self.saliency,
            self.latency_weight,
            dict(zip(self.kinds, bundles, strict=True)),
            self.per_step,
            self.momentum,
            self.seed,
        )


@contextmanager
def progress_bar(full: float) -> Iterator[Callable[[float], None]]:
    """Shows how far pruning has come; gives what is to be called with the cost after every step.

    Args:
        full: Cost of the network to begin with.
    """
    with tqdm(desc="prune", unit="step") as bar:

        def progress(now: float) -> None:
            bar.update()
            bar.set_postfix_str(f"{now / full:.1%} of the cost")

        yield progress


def run_prune(settings: PruneSettings, out: Path) -> list[Pruned]:
    """Prunes a network, says what it found and writes it to `out`.

    Raises:
        FileExistsError: If `out` holds networks.
        FileNotFoundError: If there is no such network, data set or table.
        ValueError: If a target cannot be reached, or images, table and network do not fit.
    """
    begun, cpu = time.perf_counter(), time.process_time()
    net, static = open_network(settings.supernet)
    train = load_dataset(settings.dataset, "train", static.config)
    check_fits(train, static.config)
    batches = draw_batches(train, settings.images, settings.batch_size, settings.seed)
    checked = validation_batches(static, settings.dataset, settings.check_images, VAL_BATCH, settings.seed)
    cost, options = _cost(settings, static), settings.options(usual_bundles(static))
    full = cost(static.block_sizes)
    targets = [*settings.target_ms] or [share * full for share in settings.target]
    with staged(out) as folder:
        check_free(out, [out / REPORT], "pruning")
        check_kind(out)
        with progress_bar(full) as progress:
            found = global_prune(static, batches, cost, targets, options, progress)
        seconds = {"seconds": round(time.perf_counter() - begun, 1), "cpu_seconds": round(time.process_time() - cpu, 1)}
        rows = _written(settings, net, found, sorted(targets, reverse=True), full, cost, checked, folder)
        report: dict[str, Any] = {"full_cost": full, "images": num_images(batches), **seconds}
        report |= {"blocks": static.sizes(), "networks": rows}
        write_text(folder / REPORT, json.dumps(report, indent=2) + "\n")
        plot_pruning(
            static.block_sizes,
            {row["name"]: p.network.block_sizes for row, p in zip(rows, found, strict=True)},
            folder / FIGURE,
        )
    _print(rows, out, Console())
    return found


def open_network(name_or_folder: str) -> tuple[Supernet | None, StaticViT]:
    """A supernet and its full network, or a static network alone.

    Raises:
        FileNotFoundError: If the folder holds neither.
        ValueError: If the name is unknown, or the folder damaged.
    """
    if (Path(name_or_folder) / DESCRIPTION).is_file():
        return None, load_static(name_or_folder)
    net = open_supernet(name_or_folder)
    return net, full_network(net)


def _cost(settings: PruneSettings, static: StaticViT) -> SizeCost:
    if settings.latency_table is None:
        return macs_cost(static.config)
    return milliseconds_cost(static.config, load_latency_table(str(settings.latency_table)))


def _written(
    settings: PruneSettings,
    net: Supernet | None,
    found: Sequence[Pruned],
    targets: Sequence[float],
    full: float,
    cost: SizeCost,
    batches: Sequence[tuple[Tensor, Tensor]],
    folder: Path,
) -> list[dict[str, Any]]:
    """Writes every network and its subnet; what there is to say of each, its accuracy if there are images for it."""
    rows = []
    for pruned, target in zip(found, targets, strict=True):
        name = f"{target:g}ms" if settings.target_ms else f"{target / full:g}"
        save_static(pruned.network, folder / name)
        row: dict[str, Any] = {"name": name, "cost": pruned.cost, "share": pruned.cost / full, "steps": pruned.steps}
        row |= {"macs": pruned.network.macs(), "params": pruned.network.params(), "blocks": pruned.network.sizes()}
        row["accuracy"] = accuracy_of(pruned.network, batches) if batches else None
        subnet = None if net is None else subnet_within(net, pruned.network, cost, target)
        if net is not None and subnet is not None:
            write_text(folder / f"{name}-subnet.json", subnet.to_json() + "\n")
            row["subnet_macs"] = int(net.macs(subnet))
            row["subnet_accuracy"] = accuracy_of(net.extract(subnet), batches) if batches else None
        rows.append(row)
    return rows


def subnet_within(net: Supernet, pruned: StaticViT, cost: SizeCost, target: float) -> SubnetConfig | None:
    """The nearest subnet of the search space that costs no more than `target`; None if there is none, or the supernet
    follows the authors' rules, by which nobody can choose one for a budget."""
    if net.config.prance_embed_dim is not None:
        return None
    budget, least = float(pruned.macs()), least_macs(net.config, token_graph(net.config, LEVELS))
    while budget >= least:
        subnet = nearest_subnet(net.config, pruned.block_sizes, budget)
        found = cost(net.extract(subnet).block_sizes)
        if found <= target:
            return subnet
        # Milliseconds are not in proportion to MACs.
        budget = min(int(net.macs(subnet)), budget) * min(0.99, target / found)
    return None


@torch.inference_mode()
def accuracy_of(static: StaticViT, batches: Sequence[tuple[Tensor, Tensor]]) -> float:
    """Share of the images that a network classifies correctly."""
    right = sum(int((static(images).argmax(1) == labels).sum()) for images, labels in batches)
    return right / num_images(batches)


def _print(rows: Sequence[dict[str, Any]], out: Path, console: Console) -> None:
    table = Table("", title=f"Written to {out}; fine-tune with prance train static --from {out}/{rows[0]['name']}")
    for column in ("cost", "MACs", "parameters", "accuracy", "nearest subnet: MACs", "accuracy"):
        table.add_column(column, justify="right")
    for row in rows:
        known = [None if row.get(k) is None else f"{row[k]:.2%}" for k in ("accuracy", "subnet_accuracy")]
        cells = [f"{row['share']:.1%}", f"{row['macs']:,}", f"{row['params']:,}", known[0]]
        cells += [f"{row['subnet_macs']:,}" if "subnet_macs" in row else None, known[1]]
        table.add_row(row["name"], *(cell or "-" for cell in cells))
    console.print(table)
