"""What came of the stages of one seed, on test images."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from agents.adaptive import AdaptiveViT
from agents.baselines import BaselineAgent, FullAgent, StaticAgent
from supernet import SubnetConfig, extract

from ..evaluate.evaluation import evaluate
from ..joint import REPORT as JOINT
from ..networks.ordering import REPORT as IMPORTANCE
from ..policies.load_agent import load_agent
from ..runs.progress import read_progress
from ..runs.rows import ROWS
from ..timing.agents import images_to_time
from ..timing.clock import time_interleaved
from ..yardsticks.fronts import Front, Yardsticks
from ..yardsticks.leaderboard import ADAPTIVE
from .reports import read_benchmark, read_joint, read_order, read_rows
from .stages import Stages

HALF = 0.5
TRAININGS = ("plain", "plain-longer", "supernet")
STATIC, FULL, AGENT = "static subnet", "full network", "agent"


def judged(stages: Stages) -> dict[str, Any]:
    """Everything that the page says of one seed.

    Returns:
        `accuracy` of every full network; `smallest` and `half`, a summary of the smallest subnet and of the best static
        one at half of the MACs; `agent` and `equal_static`, that of the agent and of the cheapest static subnet that is
        at least as accurate (None if there is none); `saved` MACs against the static front; `milliseconds` an image;
        `joint` before and after; `prefixes`, accuracies at every size by order; `curves` and `seconds` of trainings.
    """
    front = Yardsticks.load(stages.place / "benchmark" / "yardsticks").fronts["static"]
    board = read_benchmark(stages.place / "benchmark" / "benchmark.json")
    own = {k: v[0] for k, v in board["agents"][ADAPTIVE].items() if k in ("accuracy", "macs_fraction", "standing")}
    equal = cheapest_as_accurate(front, own["accuracy"])
    orders = {name: read_order(stages.place / name / IMPORTANCE) for name in ("ordered", "ordered-randomly")}
    return {
        "seed": stages.seed,
        "accuracy": {
            "head": _full(stages, stages.out / "head"),
            **{name: _full(stages, stages.place / name) for name in (*TRAININGS, "joint")},
        },
        "smallest": _smallest(stages),
        "half": best_within(front, HALF),
        "agent": {k: own[k] for k in ("accuracy", "macs_fraction")},
        "equal_static": equal,
        "saved": own["standing"]["saved"],
        "milliseconds": _milliseconds(stages, equal or best_within(front, 1.0)),
        "joint": {k: read_joint(stages.place / "joint" / JOINT)[k] for k in ("before", "after")},
        "prefixes": {
            "own": orders["ordered"]["before"],
            "random": orders["ordered-randomly"]["after"],
            "taylor": orders["ordered"]["after"],
        },
        "curves": {name: read_rows(stages.place / name / ROWS) for name in TRAININGS},
        "cpu_seconds": {
            name: read_progress(folder).get("cpu_seconds")
            for name, folder in {**{n: stages.place / n for n in TRAININGS}, AGENT: stages.agent}.items()
        },
    }


def best_within(front: Front, macs: float) -> dict[str, Any] | None:
    """The most accurate point of a front that costs no more, the cheapest of equals; None if all cost more."""
    rows = [row for row in front.rows() if row["macs_fraction"] <= macs + 1e-9]
    return max(rows, key=lambda r: (r["accuracy"], -r["macs_fraction"]), default=None)


def cheapest_as_accurate(front: Front, accuracy: float) -> dict[str, Any] | None:
    """The cheapest point of a front that is at least so accurate; None if none is."""
    rows = [row for row in front.rows() if row["accuracy"] >= accuracy]
    return min(rows, key=lambda r: r["macs_fraction"], default=None)


def _full(stages: Stages, folder: Path) -> float:
    settings = stages.environment("test", folder)
    return evaluate(FullAgent(settings.config()), settings).summary()["accuracy"]


def _smallest(stages: Stages) -> dict[str, float]:
    settings = stages.environment("test", stages.place / "supernet")
    config = settings.config()
    return evaluate(StaticAgent(SubnetConfig.min(config.space), config), settings).summary()


@torch.inference_mode()
def _milliseconds(stages: Stages, static: dict[str, Any] | None) -> dict[str, float]:
    """CPU milliseconds an image of the agent, looking and deciding included, and of plain modules beside it."""
    batch_size, repeats = stages.settings.sizes.latency
    settings = stages.environment("test", stages.place / "supernet")
    engine = settings.engine()
    net, images = engine.net, images_to_time(engine, batch_size)
    adaptive = AdaptiveViT.from_settings(settings, load_agent(str(stages.agent), settings))
    plain = {FULL: extract(net, SubnetConfig.full(net.space))}
    if static is not None:
        file = stages.place / "benchmark" / "yardsticks" / str(static["agent"])
        chosen = BaselineAgent.load(file)
        assert isinstance(chosen, StaticAgent)
        plain[STATIC] = extract(net, chosen.subnet)
    calls: dict[str, Callable[[], Any]] = {name: partial(module, images) for name, module in plain.items()}
    calls[AGENT] = partial(adaptive, images)
    with tqdm(total=len(calls) * (repeats + 2), desc="latency", unit="batch", leave=False) as bar:
        seconds = time_interleaved(calls, settings.device, 2, repeats, bar, time.process_time)
    return {name: 1e3 * statistics.median(found) / batch_size for name, found in seconds.items()}
