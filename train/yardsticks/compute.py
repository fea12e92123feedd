"""`prance yardsticks`: the opponents and bounds that agents are measured by, chosen on one split and judged on another.

What each one knows is said in docs/yardsticks.md.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from tqdm import tqdm

from agents.baselines import BaselineAgent, StaticAgent
from agents.confidence import ConfidenceAgent
from prance_env.engine import InferenceEngine
from prance_env.settings import EnvArguments, EnvSettings
from supernet import StaticViT, SubnetConfig
from supernet.staging import staged

from ..evaluate.evaluation import Evaluation, evaluate, evaluate_actions
from ..options import EnvironmentOptions, Split
from ..play import played_by_full
from ..policies.load_agent import load_agent
from ..report.tables import Table
from ..runs.folder import plain
from ..runs.lock import only_writer
from ..runs.trained import trained_settings
from ..search import oracle
from ..search.confidence import SWEEPS, Rules, static_rules, tune_confidence
from ..search.memory import Arrays, Memory, digest_of
from ..search.noisy_copies import noisy_copy
from ..search.shared_runs import Actions
from ..search.static import SearchResult, check_static, evolve_static_front
from .fronts import FRONTS, Front, Yardsticks, agents_in
from .static_designs import (
    PRUNE_IMAGES,
    Methods,
    deepmad_subnets,
    load_networks,
    networks_front,
    nvit_networks,
    nvit_subnets,
    subnets_front,
)

# Of the full network's MACs, in accuracy.
PRICES = np.array([0.001, 0.003, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8])
CONFIDENCE_PRICES = np.array([0.01, 0.05, 0.1, 0.3])
MACS_BANDS = 20
TUNING_IMAGES = 2048
NOISE_SEED = 1000


@dataclass(frozen=True)
class YardstickSettings:
    """What to compute.

    Raises:
        ValueError: If a number is too small.
    """

    env: str = "Prance-Digits-v0"
    """Environment id."""
    choose_on: Split = "val"
    """Images on which everything is searched and tuned."""
    split: Split = "test"
    """Images on which everything is judged."""
    num_subnets: int = 600
    """Static subnets to search."""
    oracle_subnets: int = 128
    """How many of them the per-image oracle chooses among."""
    copies: int = 4
    """Copies of every image with other noise, on which the oracle chooses."""
    sweeps: int = SWEEPS
    """Times that the decisions of the confidence heuristic are made anew at every price."""
    seed: int = 0
    """Fixes everything."""
    designs: bool = True
    """Begin the search for static subnets with those of DeepMAD and NViT, and judge these as well."""
    networks: tuple[str, ...] = ()
    """Folders of static networks of any sizes (prance prune, prance train static), which join the front `free`."""
    also_static: tuple[str, ...] = ()
    """Agents that join the static front, such as those of `prance train agent --observation constant`."""
    environment: EnvironmentOptions = field(default_factory=EnvArguments)
    """What else the environment takes; as its id says if not given."""

    def __post_init__(self) -> None:
        for name, least in (("num_subnets", 2), ("oracle_subnets", 1), ("copies", 1), ("sweeps", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)} must be at least {least}.")

    def settings(self, split: str, observation: str = "cls") -> EnvSettings:
        """The settings of the environment on one of the splits."""
        given: EnvArguments = {**self.environment, "split": split, "observation": observation}
        return EnvSettings.from_id(self.env, **given)


def run_yardsticks(settings: YardstickSettings, out: Path) -> Yardsticks:
    """Computes all yardsticks, prints them and writes them.

    Args:
        settings: What to compute.
        out: Folder for the agents as JSON files, `yardsticks.json` and `outcomes.npz`; all of them change at once. What
            a search of the same settings that was stopped has left there is gone on with.

    Returns:
        What was written.

    Raises:
        ValueError: If a setting is out of range, keep rates are thresholds, or the supernet, the data set or an agent
            does not fit.
        FileNotFoundError: If there is no such agent.
        FileExistsError: If another process writes to `out`.
    """
    chosen_on, judged_on = settings.settings(settings.choose_on), settings.settings(settings.split)
    check_static(judged_on.config())
    val, test = chosen_on.engine(), judged_on.engine()
    learned = {name: evaluate_static(name, settings) for name in settings.also_static}
    networks, console = load_networks(settings.networks, test, judged_on.dataset_config.class_map), Console()
    with only_writer(out):
        memory = Memory(out, {**plain(settings), "of": digest_of(val, test)})
        if memory.goes_on:
            console.print(f"Going on with what was begun in {out}.", highlight=False, markup=False)
        methods = Methods(memory)
        with memory.timed("all") as spent, staged(out, agents_in(out)) as folder:
            found, fronts = _fronts(settings, memory, methods, folder, learned, networks)
            notes = {**plain(settings), **spent(), "search": search_progress(found), "methods": methods.taken}
            full = played_by_full(test, np.arange(len(test.dataset)))
            yardsticks = Yardsticks(*full, fronts, notes)
            yardsticks.save(folder)
        memory.forget()
    console.print(_table(fronts, settings.split))
    static = {name: front for name, front in fronts.items() if name == "static" or name not in FRONTS}
    console.print(methods.table(static, settings.split))
    console.print(f"Written to {out}; compare agents with them: prance eval --agent AGENT --yardsticks {out}")
    return yardsticks


def _fronts(
    settings: YardstickSettings,
    memory: Memory,
    methods: Methods,
    folder: Path,
    learned: dict[str, Evaluation],
    networks: dict[str, StaticViT],
) -> tuple[SearchResult, dict[str, Front]]:
    """The search for static subnets, and all fronts; agents are written to `folder`."""
    chosen_on, judged_on = settings.settings(settings.choose_on), settings.settings(settings.split)
    val, test = chosen_on.engine(), judged_on.engine()
    index, stratum = np.arange(len(val.dataset)), val.dataset.difficulty.numpy()
    designed, free = designs_of(settings, methods, memory) if settings.designs else ({}, {})
    starts = np.concatenate([*designed.values()]) if designed else None
    with (
        methods.timed("static", len(index)),
        tqdm(total=settings.num_subnets, desc="static subnets", unit="subnet") as bar,
    ):
        found = evolve_static_front(
            val, index, settings.num_subnets, settings.seed, lambda done: bar.update(1), starts=starts, memory=memory
        )
    fronts = {
        "static": static_front(found, judged_on, folder, learned, memory),
        "per_stratum": per_stratum_front(found, stratum, judged_on, memory),
        "confidence": confidence_front(found, val, judged_on, folder, settings, memory),
        **oracle_fronts(found, chosen_on, judged_on, settings, memory),
        **{name: subnets_front(test, actions) for name, actions in designed.items() if len(actions)},
    }
    if free or networks:
        fronts["free"] = networks_front(test, {**free, **networks})
    return found, fronts


def designs_of(
    settings: YardstickSettings, methods: Methods, memory: Memory
) -> tuple[dict[str, Actions], dict[str, StaticViT]]:
    """Subnets of DeepMAD and NViT by method, and NViT's networks by name; the time that they took is noted."""
    train = settings.settings("train").engine()
    scored_on = min(PRUNE_IMAGES, len(train.dataset))
    with methods.timed("deepmad", 0):
        found = memory.step("deepmad", lambda: {"actions": deepmad_subnets(train.config)})
        designed = {"deepmad": found["actions"]}
    with methods.timed("free", scored_on, gradients=True):
        pruned = memory.networks("pruned", lambda: nvit_networks(train, settings.seed))
    with methods.timed("nvit", scored_on, gradients=True):
        designed["nvit"] = nvit_subnets(train, pruned)
    device = train.net.pos_embed.device  # what is remembered is on the CPU
    free = {f"pruned to {network.macs() / train.full_macs:.1%}": network.to(device) for network in pruned}
    return designed, free


def evaluate_static(name: str, settings: YardstickSettings) -> Evaluation:
    """An agent on the images that yardsticks are judged on.

    Raises:
        ValueError: If it does not do the same with every image.
    """
    env = settings.settings(settings.split, trained_settings(name).get("observation", "cls"))
    result = evaluate(load_agent(name, env, settings.seed), env)
    # Networks round differently in different rows of a batch.
    if not np.allclose(result.actions, result.actions[:1], atol=1e-5):
        raise ValueError(
            f"{name} is not static: it does not choose the same for every image. Learn a static subnet with "
            "`prance train agent --observation constant`."
        )
    return result


def static_front(
    found: SearchResult, judged_on: EnvSettings, out: Path, learned: dict[str, Evaluation], memory: Memory
) -> Front:
    """The best static subnet at every price and in every band of MACs, the full network, and learned ones.

    At a price, one subnet that is lucky on the images of the search may stand before all dearer ones. Those of the
    bands are judged as well, so that the front that agents are compared with has no hole there. Written as
    `static-PRICE.json` and `static-macs-BAND.json`.
    """
    space = judged_on.config().space
    bands = found.best_in_bands(MACS_BANDS)
    actions = [*found.actions[found.best_at(PRICES)], *found.actions[[*bands.values()]], np.ones_like(found.actions[0])]
    names = [*map(_text, PRICES), *(f"macs-{_text(band)}" for band in bands), "full"]
    agents = {}
    for name, subnet in zip(names, actions, strict=True):
        chosen = SubnetConfig.from_actions(space, torch.from_numpy(subnet[None]))
        agent = StaticAgent(chosen, judged_on.config(), judged_on.observation, judged_on.normalize_actions)
        agents[f"static-{name}.json"] = agent
        agent.save(out / f"static-{name}.json")

    def judged() -> list[Evaluation]:
        known: dict[bytes, Evaluation] = {}
        for subnet, agent in zip(actions, tqdm(agents.values(), desc="static front"), strict=True):
            if (key := subnet.tobytes()) not in known:
                known[key] = evaluate(agent, judged_on)
        return [known[subnet.tobytes()] for subnet in actions]

    parts = [memory.step("static-subnets", lambda: _outcomes(judged()))]
    if learned:  # not remembered: they may be trained anew before the search goes on
        parts.append(_outcomes([*learned.values()]))
    prices = [*PRICES, *[np.nan] * (len(actions) - len(PRICES) + len(learned))]
    return _front(prices, _joined(parts), [*agents, *learned])


def per_stratum_front(found: SearchResult, stratum: NDArray[np.int64], judged_on: EnvSettings, memory: Memory) -> Front:
    """At every price, the best static subnet for each true difficulty; for one that was not seen, the best for all."""
    difficulty = judged_on.engine().dataset.difficulty.numpy()
    choice = np.repeat(found.best_at(PRICES)[:, None], len(difficulty), axis=1)
    for s in np.intersect1d(stratum, difficulty):
        choice[:, difficulty == s] = found.best_at(PRICES, stratum == s)[:, None]
    known = {c.tobytes(): c for c in choice}

    def judged() -> list[Evaluation]:
        results = {k: evaluate_actions(found.actions[c], judged_on) for k, c in tqdm(known.items(), desc="per stratum")}
        return [results[c.tobytes()] for c in choice]

    return _front(PRICES, memory.step("per-stratum", lambda: _outcomes(judged())))


def confidence_front(
    found: SearchResult,
    val: InferenceEngine,
    judged_on: EnvSettings,
    out: Path,
    settings: YardstickSettings,
    memory: Memory,
) -> Front:
    """The confidence heuristic tuned at some prices; written as `confidence-PRICE.json`."""
    stratum, index = val.dataset.difficulty.numpy(), np.arange(len(val.dataset))
    pool = np.concatenate([found.best_at(PRICES), *(found.best_at(PRICES, stratum == s) for s in np.unique(stratum))])
    subnets = found.actions[np.unique(pool)]
    parts, files = [], []
    known: list[Rules] = []

    def tuned(price: float, starts: list[Rules], progress: Callable[[int], object]) -> Arrays:
        agent = tune_confidence(val, index, starts, subnets, price, settings.seed, progress, settings.sweeps)
        return {"agent": np.array(json.dumps(agent.to_dict())), **_outcomes([evaluate(agent, judged_on)])}

    with tqdm(total=len(CONFIDENCE_PRICES) * settings.sweeps, desc="confidence heuristic", unit="sweep") as bar:
        for price, best in zip(CONFIDENCE_PRICES, found.best_at(CONFIDENCE_PRICES), strict=True):
            starts = [static_rules(found.actions[best]), *known]
            files.append(f"confidence-{_text(price)}.json")
            part = memory.step(
                files[-1].removesuffix(".json"),
                partial(tuned, float(price), starts, lambda done: bar.update(1)),
            )
            agent = BaselineAgent.from_dict(json.loads(str(part["agent"])))
            assert isinstance(agent, ConfidenceAgent)
            known = [agent.rules]
            agent.save(out / files[-1])
            parts.append(part)
    return _front(CONFIDENCE_PRICES, _joined(parts), files)


def oracle_fronts(
    found: SearchResult, chosen_on: EnvSettings, judged_on: EnvSettings, settings: YardstickSettings, memory: Memory
) -> dict[str, Front]:
    """The per-image oracle, cross-fitted and lucky."""
    val, test = chosen_on.engine(), judged_on.engine()
    stratum, difficulty = val.dataset.difficulty.numpy(), test.dataset.difficulty.numpy()
    subnets = oracle.useful_subnets(found, stratum, PRICES, settings.oracle_subnets)
    actions, macs = found.actions[subnets], found.macs_fraction[subnets]
    tuning = np.random.default_rng(settings.seed).permutation(len(stratum))[:TUNING_IMAGES]
    index = np.arange(len(difficulty))
    with tqdm(total=len(subnets) * (2 * settings.copies + 1), desc="oracle", unit="subnet") as bar:

        def judged(engine: InferenceEngine, images: NDArray[np.int64]) -> Arrays:
            correct, votes = oracle.judge_subnets(engine, images, actions, lambda done: bar.update(1))
            return {"correct": correct, "votes": votes}

        def votes(name: str, env: EnvSettings, images: NDArray[np.int64]) -> NDArray[np.float64]:
            total = np.zeros((len(subnets), len(images)))
            for copy in range(settings.copies):
                source = noisy_copy(env, NOISE_SEED * (settings.seed + 1) + copy)
                engine = InferenceEngine(env.engine().net, source)
                total += memory.step(f"votes-{name}-{copy}", partial(judged, engine, images))["votes"]
            return total / settings.copies

        val_votes, test_votes = votes("chosen", chosen_on, tuning), votes("judged", judged_on, index)
        clean = memory.step("clean", partial(judged, test, index))["correct"]
    val_prior = oracle.stratum_votes(val_votes, stratum[tuning], stratum[tuning])
    prior = oracle.stratum_votes(val_votes, stratum[tuning], difficulty)
    correct = found.correct[subnets][:, tuning]
    fitted: list[Arrays] = []
    lucky: list[Arrays] = []

    def chosen(choice: NDArray[np.int64]) -> Arrays:
        return _outcomes([evaluate_actions(actions[choice], judged_on)])

    for price in PRICES.tolist():
        weight = oracle.tune_prior_votes(val_votes, settings.copies, val_prior, correct, macs, price)
        choice = oracle.choose_crossfitted(test_votes, settings.copies, prior, weight, macs, price)
        fitted.append(memory.step(f"oracle-{_text(price)}", partial(chosen, choice)))
        choice = oracle.choose_lucky(clean, macs, price)
        lucky.append(memory.step(f"lucky-{_text(price)}", partial(chosen, choice)))
    return {"oracle": _front(PRICES, _joined(fitted)), "oracle_lucky": _front(PRICES, _joined(lucky))}


def search_progress(found: SearchResult) -> list[dict[str, Any]]:
    """The best accuracy - price * MACs on the images of the search after 1/8, 2/8, ... of its subnets."""
    scores = found.correct.mean(axis=1) - CONFIDENCE_PRICES[:, None] * found.macs_fraction
    counts = np.unique((len(found.macs_fraction) * np.arange(1, 9) / 8).astype(int).clip(1))
    return [
        {"num_subnets": int(n), "score": dict(zip(map(_text, CONFIDENCE_PRICES), best, strict=True))}
        for n in counts
        for best in [scores[:, :n].max(axis=1).round(5).tolist()]
    ]


def _outcomes(results: list[Evaluation]) -> Arrays:
    """What a front holds of P evaluations: (P, N) arrays."""
    return {name: np.stack([getattr(r, name) for r in results]) for name in ("correct", "macs_fraction")}


def _joined(parts: list[Arrays]) -> Arrays:
    return {name: np.concatenate([part[name] for part in parts]) for name in ("correct", "macs_fraction")}


def _front(prices: Any, outcomes: Arrays, files: list[str] | None = None) -> Front:
    return Front(
        np.array(prices, dtype=np.float64),
        outcomes["correct"],
        outcomes["macs_fraction"],
        tuple(files) if files else (None,) * len(outcomes["correct"]),
    )


def _text(price: float) -> str:
    return f"{price:g}"


def _table(fronts: dict[str, Front], split: str) -> Table:
    """Accuracy at MACs of every yardstick, one line per price."""
    fronts = {name: front for name, front in fronts.items() if name in FRONTS}
    table = Table("price", *fronts, title=f"yardsticks on {split}: accuracy @ MACs / full")
    rows = {name: {r["price"] or r["agent"]: r for r in front.rows()} for name, front in fronts.items()}
    for price in rows["static"]:
        cells = [rows[name].get(price) for name in fronts]
        shown = ["" if c is None else f"{c['accuracy']:.2%} @ {c['macs_fraction']:.3f}" for c in cells]
        table.add_row(_text(price) if isinstance(price, float) else price, *shown)
    return table
