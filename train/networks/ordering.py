"""`prance order`: a supernet whose prefixes hold its most important units, and how good the scores were."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from prance_env.images.loading import OnError, load_dataset
from prance_env.images.source import ImageSource, check_fits
from supernet import SearchSpace, SubnetConfig, Supernet, UnitOrder, importance_order, reorder, save_pretrained
from supernet.files import read_safetensors, write_atomically, write_tensors, write_text
from supernet.heads import ImageClassifier
from supernet.staging import staged

from ..options import DatasetOption
from ..report.tables import Table
from ..runs.folder import check_kind
from .ablation import Ablation, ablate
from .importance import BLIND, Score, unit_scores
from .subnet_choice import open_supernet

ORDER, REPORT = "order.safetensors", "importance.json"
ABLATION_BATCH = 256


@dataclass(frozen=True)
class OrderSettings:
    """How the units of a supernet are scored and sorted."""

    dataset: DatasetOption
    """Images to score and compare on: digits, a folder in ImageNet's layout, a timm name, or JSON (docs/images.md)."""
    supernet: str = "digits"
    """Folder of a supernet, or a registered name."""
    score: Score = "taylor"
    """taylor: (sum of weight times gradient)²; magnitude: weights alone; markov: GOHSP's graph of heads; random."""
    images: int = 1024
    """Training images that the scores are computed on."""
    batch_size: int = 8
    """Images a batch; taylor squares once for every batch, and small ones told more in our measurements."""
    keep_levels: bool = False
    """Sort inside the sizes that subnets have: for a supernet whose subnets are trained, all of which stay the same."""
    check_images: int = 1000
    """Validation images for the table of accuracies before and after; 0, or no classifier: no table."""
    ablate_images: int = 0
    """Validation images on which units are taken out one by one, to see how well the scores foretell it; 0: not."""
    seed: int = 0
    """Fixes which images are drawn."""
    on_error: OnError = "raise"
    """What to do about an image that cannot be decoded: raise, or skip it for the next good one."""


def run_order(settings: OrderSettings, out: Path) -> Supernet:
    """Sorts the units of a supernet and writes it to `out`, with the permutation and a report.

    Raises:
        FileExistsError: If `out` holds a network, or a run.
        FileNotFoundError: If there is no such supernet.
        ValueError: If images and supernet do not fit.
    """
    net = open_supernet(settings.supernet)
    with staged(out) as folder:
        check_kind(out)
        # Before the scores, which take long: what is wrong with the images is said now.
        batches = _val_batches(net, settings, settings.check_images) if net.head is not None else []
        order, report = order_network(net, settings)
        moved = reorder(net, order)
        if batches:
            report["check_images"] = num_images(batches)
            report["accuracy"] = {"before": prefix_accuracies(net, batches), "after": prefix_accuracies(moved, batches)}
        save_pretrained(moved, folder)
        save_order(order, folder / ORDER)
        write_text(folder / REPORT, json.dumps(report, indent=2) + "\n")
    console = Console()
    _print(report, settings, out, console)
    if settings.check_images and net.head is None:
        console.print("The network has no classifier, so that there is no table of accuracies.")
    return moved


def order_network(net: Supernet, settings: OrderSettings) -> tuple[UnitOrder, dict[str, Any]]:
    """The permutation by importance, and what `importance.json` says about the scores.

    Raises:
        ValueError: If the images do not fit the supernet.
    """
    train = load_dataset(settings.dataset, "train", net.config, on_error=settings.on_error)
    if net.head is not None:
        check_fits(train, net.config)
    batches = draw_batches(train, settings.images, settings.batch_size, settings.seed)
    ablated = _val_batches(net, settings, settings.ablate_images)
    scores = unit_scores(net, settings.score, batches, settings.seed)
    order = importance_order(net.config, scores, settings.keep_levels)
    used = 0 if settings.score in BLIND else num_images(batches)
    report: dict[str, Any] = {"score": settings.score, "images": used}
    if ablated:
        report["rank_correlation"] = _correlations(ablate(net, ablated, seed=settings.seed), net, batches)
    return order, report


def _val_batches(net: Supernet, settings: OrderSettings, count: int) -> list[tuple[Tensor, Tensor]]:
    return validation_batches(net, settings.dataset, count, ABLATION_BATCH, settings.seed, settings.on_error)


def validation_batches(
    net: ImageClassifier,
    dataset: str | dict[str, Any],
    count: int,
    batch_size: int,
    seed: int,
    on_error: OnError = "raise",
) -> list[tuple[Tensor, Tensor]]:
    """Random validation images, which fit the network's classifier if it has one, and their labels; none if none are
    asked for, and then no data set is opened."""
    if not count:
        return []
    val = load_dataset(dataset, "val", net.config, on_error=on_error)
    if net.head is not None:
        check_fits(val, net.config)
    return draw_batches(val, count, batch_size, seed)


def _correlations(ablation: Ablation, net: Supernet, batches: Sequence[tuple[Tensor, Tensor]]) -> dict[str, Any]:
    """Of every score, kind and block, the rank correlation with what taking a unit out costs."""
    found: dict[str, Any] = {}
    for score in ("taylor", "magnitude", "markov", "random"):
        rows = ablation.correlations(unit_scores(net, score, batches))
        found[score] = {
            kind: [None if np.isnan(v) else round(float(v), 3) for v in values] for kind, values in rows.items()
        }
    return found


def draw_batches(source: ImageSource, count: int, batch_size: int, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    """Some images of a source, drawn without repetition, all if it has no more: uint8 images and labels in batches.

    Raises:
        ValueError: If a number is not positive.
    """
    if count < 1 or batch_size < 1:
        raise ValueError(f"{count} images in batches of {batch_size} cannot be drawn; both must be at least 1.")
    drawn = np.random.default_rng(seed).permutation(len(source))[:count]
    parts = np.split(drawn, range(batch_size, len(drawn), batch_size))
    # Which images stand in for broken ones is known once they are fetched.
    return [(source.fetch(part), source.labels[torch.from_numpy(source.shown(part))]) for part in parts]


def num_images(batches: Sequence[tuple[Tensor, Tensor]]) -> int:
    """How many images there are in batches."""
    return sum(len(labels) for _, labels in batches)


def prefix_subnets(space: SearchSpace) -> dict[str, SubnetConfig]:
    """The full network, the ones of smaller MLPs, the ones of smaller width, and the narrowest; all patches kept."""
    full, first = SubnetConfig.full(space), space.blocks(space.first_decided).start

    def cut(embed_dim: int, mlp_ratio: float) -> SubnetConfig:
        dims, ratios = full.embed_dim.clone(), full.mlp_ratio.clone()
        dims[:, first:], ratios[:, first:] = embed_dim, mlp_ratio
        return SubnetConfig(dims, ratios, full.keep_rate)

    width, ratio = space.embed_dims[-1], space.mlp_ratios[-1]
    found = {"full": full}
    found |= {f"mlp {r:g}": cut(width, r) for r in reversed(space.mlp_ratios[:-1])}
    found |= {f"width {d}": cut(d, ratio) for d in reversed(space.embed_dims[:-1])}
    return found | {"narrowest": cut(space.embed_dims[0], space.mlp_ratios[0])}


@torch.inference_mode()
def prefix_accuracies(net: Supernet, batches: Sequence[tuple[Tensor, Tensor]]) -> dict[str, float]:
    """Accuracies of `prefix_subnets`, in the supernet's own precision."""
    found = {}
    for name, subnet in prefix_subnets(net.space).items():
        static = net.extract(subnet)
        right = sum(int((static(images).argmax(1) == labels).sum()) for images, labels in batches)
        found[name] = right / num_images(batches)
    return found


def save_order(order: UnitOrder, path: Path) -> None:
    """Writes a permutation, so that it can be undone."""
    tensors = {k: v.contiguous() for k, v in vars(order).items()}
    write_atomically(path, lambda name: write_tensors(tensors, name))


def load_order(path: Path) -> UnitOrder:
    """Inverse of `save_order`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged or holds something else.
    """
    tensors, _ = read_safetensors(path, "order")
    if set(tensors) != {"embed_dim", "heads", "hidden"}:
        raise ValueError(f"{path} holds {sorted(tensors)}, not a permutation; write it with prance order.")
    return UnitOrder(**tensors)


def _print(report: Mapping[str, Any], settings: OrderSettings, out: Path, console: Console) -> None:
    on = f", on {report['images']} images" if report["images"] else ""
    console.print(f"Units sorted by {settings.score}{on}; the supernet is in {out}.")
    if accuracy := report.get("accuracy"):
        table = Table("subnet, all patches kept", "before", "after", title=f"Accuracy, {report['check_images']} images")
        for name, before in accuracy["before"].items():
            table.add_row(name, f"{before:.1%}", f"{accuracy['after'][name]:.1%}")
        console.print(table)
    if found := report.get("rank_correlation"):
        table = Table(
            "score", title="Rank correlation with the loss of taking a unit out: mean over blocks (least, most)"
        )
        kinds = list(next(iter(found.values())))
        for kind in kinds:
            table.add_column(kind)
        for score, rows in found.items():
            table.add_row(score, *(_range(rows[kind]) for kind in kinds))
        console.print(table)


def _range(values: Sequence[float | None]) -> str:
    known = [v for v in values if v is not None]
    return f"{np.mean(known):.2f} ({min(known):.2f}, {max(known):.2f})" if known else "-"
