"""`prance bench-menu`: what a menu loses against free choice, and how long one image takes with it."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor
from tqdm import tqdm

from agents import AdaptiveViT
from agents.adaptive import joined
from agents.deployed.convert import plain_agent
from agents.deployed.menu import MenuPlan, entries_of
from agents.fitting import Interface
from agents.prance_ppo.algorithm import PrancePPO
from supernet import SubnetConfig, Supernet, freeze, from_timm
from supernet.extract import extract

from ..machine import machine, machine_in_words
from ..networks.export import traced, write_onnx
from ..networks.export_adaptive import export_adaptive
from ..networks.onnx_runner import AdaptiveModel
from ..report.tables import Table
from .clock import time_interleaved

BATCH = 256
SPREAD, CLOSE, AIMS = 0.06, 0.01, 8


def menu_losses(
    model: AdaptiveViT,
    images: tuple[Tensor, Tensor],
    judged: tuple[Tensor, Tensor],
    counts: list[int],
    budgets: list[Any],
) -> list[dict[str, Any]]:
    """Accuracy and MACs of menus beside those of free choice.

    Args:
        model: The model; its menu is another one afterwards.
        images: Images and labels that the menus are made of.
        judged: Others, that they are judged on.
        counts: Entries for each decision.
        budgets: At which everything is measured, menus being made for all of them; [None] of one price only.

    Returns:
        Rows with `entries` (None: free choice), `budget`, `accuracy`, `macs_fraction` and `same_class`.
    """
    rows: list[dict[str, Any]] = []
    free: dict[Any, Any] = {}

    def measured(entries: int | None, budget: Any) -> dict[str, Any]:
        begins = range(0, len(judged[0]), BATCH)
        parts = [model(judged[0][b : b + BATCH], budget, entries is not None) for b in begins]
        found = joined(parts)
        free.setdefault(budget, found.labels)
        return {
            "entries": entries,
            "budget": budget,
            "accuracy": float((found.labels == judged[1].numpy()).mean()),
            "macs_fraction": float(found.macs.mean() / model.full_macs),
            "same_class": float((found.labels == free[budget]).mean()),
        }

    for count in [None, *counts]:
        if count is not None:
            model.make_menu(images[0], count)
        rows += [measured(count, budget) for budget in budgets]
    return rows


def untrained(name: str, share: float, entries: int, seed: int = 0) -> AdaptiveViT:
    """A model for timing: random weights, a random policy, and a menu of which it picks a share of the MACs.

    Args:
        name: Of a ViT of timm.
        share: Of the full network's MACs, that noise images cost on average.
        entries: For each decision.
        seed: Fixes everything.
    """
    import timm

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = freeze(from_timm(timm.create_model(name).eval()))
        interface = Interface(net.config)
        policy = PrancePPO(None, spaces=(interface.observation_space, interface.action_space), seed=seed)
        for parameter in policy.policy.parameters():
            parameter.data.add_(torch.randn_like(parameter), alpha=0.3)
    images, agent, around = noise(net, seed).flatten(0, 1), plain_agent(policy, interface), share
    for _ in range(AIMS):
        plan = MenuPlan(entries_of(_around(net, around, seed), net.space, entries))
        model = AdaptiveViT(net, agent, menu=plan).eval()
        off = share - float(model(images, from_menu=True).macs.mean() / model.full_macs)
        if abs(off) < CLOSE:
            break
        # A random policy likes some entries more than others.
        around += off
    return model


def noise(net: Supernet, seed: int) -> Tensor:
    """(8, 1, C, H, W) normalised noise: eight images, one at a time."""
    c = net.config
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(8, 1, c.in_chans, c.img_size, c.img_size, generator=generator)


def _around(net: Supernet, share: float, seed: int) -> Any:
    """(N, T, A) actions whose subnets cost about a share of the MACs."""
    generator, space, found = np.random.default_rng(seed), net.space, []
    for _ in range(64):
        unit = generator.random((512, space.num_decisions, space.action_size)) ** generator.uniform(0.3, 3)
        cost = net.macs(SubnetConfig.from_actions(space, torch.from_numpy(unit))).numpy() / int(net.macs())
        found.append(unit[np.abs(cost - share) < SPREAD])
        if sum(map(len, found)) >= 512:
            break
    if not (kept := np.concatenate(found)).size:
        raise ValueError(f"share={share} of the MACs is not within reach of this network's subnets.")
    return kept


def menu_latency(model: AdaptiveViT, reference: Any, repeats: int, seed: int = 0) -> dict[str, Any]:
    """Milliseconds of one image on random images, interleaved: the menu, the full network, timm; eager and exported.

    Args:
        model: With a menu, on the CPU.
        reference: The same full network as timm has it.
        repeats: Rounds.
        seed: Fixes the images.

    Returns:
        By name `milliseconds` (median), `throughput_vs_timm` and `throughput_vs_onnxruntime` (medians of ratios within
        a round), and `macs_fraction` of the menu and of free choice.
    """
    menu, images, turn = model.menu, noise(model.net, seed), [0]
    assert menu is not None

    def next_image() -> Tensor:
        turn[0] += 1
        return images[turn[0] % len(images)]

    def eager(call: Callable[[Tensor], Any]) -> Any:
        with torch.inference_mode():
            return call(next_image())

    calls: dict[str, Callable[[], Any]] = {
        "timm": partial(eager, reference),
        "menu": partial(eager, menu),
        "free choice": partial(eager, model),
    }
    if find_spec("onnxruntime") and find_spec("onnxscript"):
        with tempfile.TemporaryDirectory() as folder:
            calls |= _exported(model, Path(folder), next_image)
    with tqdm(total=len(calls) * (repeats + 2), desc="one image", unit="call", leave=False) as bar:
        seconds = time_interleaved(calls, "cpu", 2, repeats, bar)
    spent = {
        name: float(call(images.flatten(0, 1)).macs.mean() / menu.full_macs)
        for name, call in {"menu": menu, "free choice": model}.items()
    }

    def against(name: str, other: str) -> float | None:
        if other not in seconds:
            return None
        return statistics.median(a / b for a, b in zip(seconds[other], seconds[name], strict=True))

    return {
        name: {
            "milliseconds": 1e3 * statistics.median(times),
            "throughput_vs_timm": against(name, "timm"),
            "throughput_vs_onnxruntime": against(name, "full, onnxruntime"),
            "macs_fraction": spent.get(name.split(",")[0]),
        }
        for name, times in seconds.items()
    }


def _exported(model: AdaptiveViT, folder: Path, next_image: Callable[[], Tensor]) -> dict[str, Callable[[], Any]]:
    """Calls of exported models; their sessions hold them, so that the folder may go."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    noise = torch.randint(256, (4, *next_image().shape[1:]), dtype=torch.uint8)
    export_adaptive(model, noise, folder / "menu.onnx", [])
    write_onnx(traced(extract(model.net, SubnetConfig.full(model.net.space)), False), folder / "full.onnx")
    session = onnxruntime.InferenceSession(folder / "full.onnx", options, ["CPUExecutionProvider"])
    run = AdaptiveModel(folder / "menu.onnx", torch.get_num_threads())
    return {
        "menu, onnxruntime": lambda: run(next_image().numpy()),
        "full, onnxruntime": lambda: session.run(None, {"images": next_image().numpy()}),
    }


def print_losses(rows: list[dict[str, Any]], console: Console) -> None:
    """A table of `menu_losses`."""
    table = Table("entries a decision", "budget", title="menus against free choice, on test images")
    for column in ("accuracy", "lost", "MACs / full", "more", "same class"):
        table.add_column(column, justify="right")
    free = {row["budget"]: row for row in rows if row["entries"] is None}
    for row in rows:
        base = free[row["budget"]]
        table.add_row(
            "free choice" if row["entries"] is None else str(row["entries"]),
            "" if row["budget"] is None else f"{row['budget']:g}",
            f"{row['accuracy']:.2%}",
            f"{100 * (base['accuracy'] - row['accuracy']):+.2f}",
            f"{row['macs_fraction']:.1%}",
            f"{100 * (row['macs_fraction'] - base['macs_fraction']):+.2f}",
            f"{row['same_class']:.1%}",
        )
    console.print(table)


def print_latency(name: str, measured: dict[str, Any], console: Console) -> None:
    """A table of `menu_latency`."""
    threads = torch.get_num_threads()
    table = Table("", title=f"{name}, one image, {threads} thread(s), {machine_in_words(machine('cpu'))}")
    for column in ("ms", "MACs / full", "throughput / timm", "/ full, onnxruntime"):
        table.add_column(column, justify="right")
    for label, row in measured.items():
        ratios = [
            "" if v is None else f"{v:.2f}" for v in (row["throughput_vs_timm"], row["throughput_vs_onnxruntime"])
        ]
        share = "" if row["macs_fraction"] is None else f"{row['macs_fraction']:.1%}"
        table.add_row(label, f"{row['milliseconds']:.1f}", share, *ratios)
    console.print(table)
