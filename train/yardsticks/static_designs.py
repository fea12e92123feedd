"""Static networks by three methods, side by side: DeepMAD, NViT and evolution, with what each of them took."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from prance_env.engine import InferenceEngine
from supernet import StaticViT, SubnetConfig, SupernetConfig, design, load_static
from supernet.arrays import Bools, Floats
from supernet.token_graph import full_macs, least_macs, token_graph

from ..networks.classes import Meaning
from ..networks.importance import full_network
from ..networks.ordering import draw_batches
from ..report.tables import Table
from ..search.global_prune import PruneOptions, global_prune, usual_bundles
from ..search.memory import Memory, timed
from ..search.prune import progress_bar, subnet_within
from ..search.shared_runs import Actions, SharedRuns
from ..search.size_costs import macs_cost
from ..search.static import macs_of_static
from .fronts import Front, accuracy_at

SHARES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Budgets of designs, in MACs of the full network."""
READ_AT = (0.4, 0.5, 0.6)
PRUNE_IMAGES, PRUNE_BATCH = 256, 32
BATCH = 512


@dataclass
class Methods:
    """What each method took: seconds, images, whether it needs gradients; filled as they run.

    Attributes:
        memory: Of a search that may have been interrupted, what earlier processes took.
        taken: By method.
    """

    memory: Memory | None = None
    taken: dict[str, dict[str, Any]] = field(default_factory=dict)

    @contextmanager
    def timed(self, name: str, images: int, gradients: bool = False) -> Iterator[None]:
        """Notes what the block takes.

        Args:
            name: Of the method.
            images: That it looks at.
            gradients: Whether it needs them.
        """
        with timed() if self.memory is None else self.memory.timed(name) as until_now:
            yield
            self.taken[name] = {**until_now(), "images": images, "gradients": gradients}

    def table(self, fronts: Mapping[str, Front], split: str) -> Table:
        """A line for every method: accuracies at some shares of the MACs, and what it took."""
        table = Table("method", title=f"static networks on {split}: accuracy at a share of the MACs, and what it took")
        for column in (*(f"{share:.0%}" for share in READ_AT), "CPU s", "seconds", "images", "gradients"):
            table.add_column(column, justify="right")
        for name, front in fronts.items():
            known = [accuracy_of(front, share) for share in READ_AT]
            cells = ["-" if np.isnan(a) else f"{a:.2%}" for a in known]
            if taken := self.taken.get(name):
                cells += [f"{taken[k]:,}" for k in ("cpu_seconds", "seconds", "images")]
                cells.append("yes" if taken["gradients"] else "no")
            table.add_row(name, *cells)
        return table


def accuracy_of(front: Front, share: float) -> float:
    """Accuracy of a front at a share of the full network's MACs, on its hull; NaN below its cheapest point."""
    return accuracy_at(front.macs_fraction.mean(axis=1), front.correct.mean(axis=1), share)


def deepmad_subnets(config: SupernetConfig, shares: Sequence[float] | None = None) -> Actions:
    """(K, num_decisions, A) designs of DeepMAD for budgets that can be kept; looks at neither images nor weights.

    None for supernets that follow the authors' rules, by which nobody can choose a subnet for a budget.
    """
    if config.prance_embed_dim is not None:
        return _actions(config, [])
    full, least = full_macs(config), least_macs(config, token_graph(config, 8))
    budgets = [share * full for share in (SHARES if shares is None else shares) if share * full >= least]
    return _actions(config, [design(config, budget) for budget in budgets])


def nvit_networks(engine: InferenceEngine, seed: int = 0, images: int = PRUNE_IMAGES) -> list[StaticViT]:
    """The full network, pruned to every share of its MACs that can be reached; tokens leave if the mode is `prune`.

    Args:
        engine: Supernet and images to score units on; training images.
        seed: Fixes which images are drawn.
        images: How many of them.
    """
    static, cost = full_network(engine.net), macs_cost(engine.config)
    device = static.pos_embed.device
    batches = [(x.to(device), y.to(device)) for x, y in draw_batches(engine.dataset, images, PRUNE_BATCH, seed)]
    # Embedding channels are hardly ever the cheapest to lose, and in some networks nobody knows where they all are.
    without = {"embed_dim"} | ({"qk"} if engine.config.qk_norm else set())
    without |= set() if engine.config.space.token_mode == "prune" else {"tokens"}
    bundles = {kind: size for kind, size in usual_bundles(static).items() if kind not in without}
    targets = [share * engine.full_macs for share in SHARES]
    options = PruneOptions(bundles=bundles, seed=seed)
    with progress_bar(engine.full_macs) as progress:
        found = global_prune(static, batches, cost, targets, options, progress, partly=True)
    return [pruned.network for pruned in found]


def nvit_subnets(engine: InferenceEngine, pruned: Sequence[StaticViT]) -> Actions:
    """(K, num_decisions, A) the subnets next to pruned networks that cost no more than they."""
    cost = macs_cost(engine.config)
    found = [subnet_within(engine.net, network, cost, network.macs()) for network in pruned]
    return _actions(engine.config, [subnet for subnet in found if subnet is not None])


def _actions(config: SupernetConfig, subnets: Sequence[SubnetConfig]) -> Actions:
    space = config.space
    if not subnets:
        return np.empty((0, space.num_decisions, space.action_size))
    found: Actions = torch.cat([s.to_actions(space) for s in subnets]).numpy()
    return found


# ---- judging --------------------------------------------------------------------------------------------------------


def subnets_front(engine: InferenceEngine, actions: Actions) -> Front:
    """Static subnets on all images of an engine."""
    index = np.arange(len(engine.dataset))
    correct, _ = SharedRuns(engine).verdicts(index, actions)
    return _front(correct, macs_of_static(engine, actions), [None] * len(actions))


def networks_front(engine: InferenceEngine, networks: Mapping[str, StaticViT]) -> Front:
    """Static networks of any sizes on all images of an engine, by the names of their folders."""
    correct = np.stack([_correct(engine, network) for network in networks.values()])
    macs = np.array([network.macs() / engine.full_macs for network in networks.values()])
    return _front(correct, macs, [*networks])


def load_networks(
    folders: Sequence[str | Path], engine: InferenceEngine, class_map: str | None = None
) -> dict[str, StaticViT]:
    """Static networks out of folders, by their names.

    Args:
        folders: Where they are.
        engine: On whose images they are to be judged; those that know their classes by name give them in the order of
            its labels.
        class_map: That of the images' `DatasetConfig`.

    Raises:
        FileNotFoundError: If a folder holds none.
        ValueError: If one is damaged, or takes other images or gives other classes than the supernet.
    """
    found = {str(folder): load_static(folder) for folder in folders}
    meaning = Meaning.of(engine.dataset, class_map, engine.config.class_names)
    for name, network in found.items():
        for key in ("img_size", "in_chans", "num_classes"):
            own, wanted = getattr(network.config, key), getattr(engine.config, key)
            if own != wanted:
                raise ValueError(f"{name} has {key}={own}, the supernet {wanted}; pass a network for the same images.")
        if network.config.class_names != engine.config.class_names:  # else it is judged as the supernet is
            meaning.matched(network, network.config.class_names, f"The network {name}")
    return found


@torch.inference_mode()
def _correct(engine: InferenceEngine, network: StaticViT) -> Bools:
    parts = np.split(np.arange(len(engine.dataset)), range(BATCH, len(engine.dataset), BATCH))
    device = network.pos_embed.device
    said = [network(engine.dataset.fetch(part).to(device)).argmax(1).cpu().numpy() for part in parts]
    shown = engine.dataset.shown(np.arange(len(engine.dataset)))  # others in the place of broken images
    correct: Bools = np.concatenate(said) == engine.labels[shown]
    return correct


def _front(correct: Bools, macs: Floats, names: Sequence[str | None]) -> Front:
    each = np.repeat(macs[:, None], correct.shape[1], axis=1)
    return Front(np.full(len(macs), np.nan), correct, each, tuple(names))
