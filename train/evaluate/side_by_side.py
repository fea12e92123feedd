"""`prance eval`: agents side by side on the same images, with intervals, tests, controls and files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from rich.table import Table

from agents.baselines import FullAgent, RandomAgent, StaticAgent
from prance_env.settings import EnvArguments, EnvSettings
from prance_env.spaces import action_names
from supernet import SubnetConfig

from ..options import EnvironmentOptions, Split
from ..policies.load_agent import load_agent
from ..report.plots import plot_choices, plot_fronts, plot_learning_curves
from ..report.tables import results_table, write_json
from ..runs.curves import read_curves
from ..runs.folder import plain, read_config
from ..timing.agents import measure_latency
from ..yardsticks.fronts import Yardsticks
from ..yardsticks.standing import DEFAULT_PRICE, standing, standings_table
from .budget import at_price, calibrate, front_prices
from .evaluation import Agent, Evaluation, evaluate
from .intervals import RESAMPLES, describe
from .pairs import compare
from .replay import DEFAULTS, SETTINGS, noted_settings, of_the_machine
from .rows import check_format, rows_of, write_rows

BLIND = (FullAgent, RandomAgent, StaticAgent)


@dataclass(frozen=True)
class EvalSettings:
    """Settings of an evaluation.

    Raises:
        ValueError: If both prices and a budget are given.
    """

    env: str | None = None
    """Environment id; that of the trained agents, or Prance-Digits-v0, if not given."""
    split: Split = "test"
    """Images."""
    macs_weight: tuple[float, ...] = ()
    """For agents that were trained with a range of prices: those to evaluate at; seven that span the range if none."""
    target_macs: float | None = None
    """Instead of prices: a budget relative to the full network, whose price is looked for on validation images."""
    rows: Literal["csv", "parquet"] = "csv"
    """Format of the rows; parquet needs the extra prance-env[parquet]."""
    latency: int | None = None
    """Images at a time for measured milliseconds, from pixels to logits with all looking and deciding."""
    controls: bool = False
    """Two more lines per agent that looks: with the observations of other images, and its mean action for all."""
    yardsticks: str | None = None
    """Folder that `prance yardsticks` wrote: what every agent saves, and what share of what there is to win."""
    resamples: int = RESAMPLES
    """Resamples of the bootstrap that gives the intervals."""
    seed: int = 0
    """Fixes the random agent, the intervals and the shuffling."""
    environment: EnvironmentOptions = field(default_factory=EnvArguments)
    """What else the environment takes; as in the training of the agents, or as its id says, if not given."""

    def __post_init__(self) -> None:
        if self.macs_weight and self.target_macs is not None:
            raise ValueError(
                f"macs_weight={self.macs_weight} and target_macs={self.target_macs} were both given; choose one."
            )


def run_eval(agents: Sequence[str], settings: EvalSettings, out: Path | None = None) -> dict[str, Any]:
    """Evaluates agents on the same images and prints tables.

    Args:
        agents: Names and paths, see `train.policies.load_agent.load_agent`.
        settings: What to evaluate on, and how.
        out: Folder for `metrics.json`, `comparisons.json`, `settings.json`, `pareto.png`, `choices.png` of
            agents that look, `learning.png` of those with a run folder, and one file of rows per agent and price.

    Returns:
        What is written to `metrics.json`: `describe` of every agent, with its `macs_weight` if it was chosen here,
        `measure_latency` if asked for, and `standing` under "yardsticks".

    Raises:
        ValueError: If an agent does not fit, trained agents are for different supernets or images, the yardsticks are
            for others, or there is no agent whose price could be chosen as asked.
        FileNotFoundError: If there is no such agent, or there are no yardsticks.
    """
    check_format(settings.rows)
    yardsticks = None if settings.yardsticks is None else Yardsticks.load(settings.yardsticks)
    console = Console()
    names = list(dict.fromkeys(agents))
    noted = {k: v for k, v in plain(settings).items() if k in DEFAULTS and v is not None}
    noted = {**DEFAULTS, **_shared(names, [key for key in DEFAULTS if key not in noted]), **noted}
    ranges = {name: _price_range(name) for name in names}
    if (settings.macs_weight or settings.target_macs is not None) and not any(ranges.values()):
        raise ValueError(f"None of the agents {names} was trained for a range of prices, so none can be chosen.")
    results: dict[str, Evaluation] = {}
    fronts: dict[str, dict[str, float]] = {}
    players: dict[str, tuple[Agent, EnvSettings]] = {}
    for name in names:
        env = _env(name, noted, settings.split, settings.environment)
        with console.status(f"{name} on {settings.split} ..."):
            agent = load_agent(name, env, settings.seed)
            chosen = {name: env}
            if ranges[name] is not None:
                prices = _prices(agent, env, settings)
                fronts[name] = {f"{name} (macs_weight {price:g})": price for price in prices}
                chosen = {label: at_price(env, price) for label, price in fronts[name].items()}
            for label, at in chosen.items():
                players[label] = agent, at
                results[label] = evaluate(agent, at)
                if settings.controls and not isinstance(agent, BLIND):
                    results |= controls(label, agent, results[label], at, settings.seed)
    source = env.engine().dataset
    metrics = {name: describe(result, settings.seed, settings.resamples) for name, result in results.items()}
    for label, price in (pair for front in fronts.values() for pair in front.items()):
        metrics[label]["macs_weight"] = price
    if settings.latency is not None:
        for label, measured in measure_latency(players, settings.latency).items():
            metrics[label] |= measured
    for name, data in metrics.items():
        rho = data["macs_difficulty_spearman"]
        title = f"{name}: {settings.split} by {source.difficulty_name}"
        title += "" if rho is None else f" (rank correlation with MACs {rho:+.2f})"
        console.print(results_table(title, data["by_difficulty"]))
    console.print(results_table(f"{noted['env']}, {settings.split}", metrics))
    comparisons = {
        f"{a} - {b}": compare(results[a], results[b], settings.seed, settings.resamples)
        for a, b in combinations(results, 2)
        if not any(a in front and b in front for front in fronts.values())
    }
    if comparisons:
        console.print(_comparisons_table(comparisons))
    if yardsticks is not None:
        yardsticks.check(env.engine())
        for name, result in results.items():
            price = metrics[name].get("macs_weight") or trained_settings(name).get("macs_weight") or DEFAULT_PRICE
            metrics[name]["yardsticks"] = standing(result, yardsticks, price, settings.seed, settings.resamples)
        console.print(standings_table({name: data["yardsticks"] for name, data in metrics.items()}))
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        for name, label in file_names(list(results)).items():
            write_rows(out / f"{label}.{settings.rows}", rows_of(results[name], source.difficulty_name))
        write_json(out / "metrics.json", metrics)
        write_json(out / "comparisons.json", comparisons)
        plot_fronts(metrics, fronts, settings.split, out / "pareto.png")
        if looking := {n: results[n] for n, (agent, _) in players.items() if not isinstance(agent, BLIND)}:
            plot_choices(looking, action_names(env.config().space), source.difficulty_name, out / "choices.png")
        if curves := {n: found for n in names if trained_settings(n) and (found := read_curves(Path(n)))}:
            plot_learning_curves(curves, out / "learning.png")
        write_json(out / SETTINGS, noted_settings(noted))
        console.print(f"Written to {out}")
    return metrics


def controls(name: str, agent: Agent, seen: Evaluation, env: EnvSettings, seed: int) -> dict[str, Evaluation]:
    """The agent with other images' observations, and its average action as one static subnet.

    Args:
        name: Of the agent; those of the controls begin with it.
        agent: The agent.
        seen: Its evaluation.
        env: What it was evaluated on.
        seed: Of the shuffling.
    """
    config = env.config()
    mean = SubnetConfig.from_actions(config.space, torch.from_numpy(seen.mean_action()))
    static = StaticAgent(mean, config, env.observation, env.normalize_actions)
    return {
        f"{name} (shuffled)": evaluate(agent, env, shuffle_observations=True, seed=seed),
        f"{name} (mean action)": evaluate(static, env),
    }


def file_names(names: Sequence[str]) -> dict[str, str]:
    """A file name, without suffix, for every agent: the path's last part, or all of it if not unique."""
    short = [Path(name).name or name for name in names]
    plain = {n: s if short.count(s) == 1 else n.strip("./") for n, s in zip(names, short, strict=True)}
    return {n: s.replace("/", "_").replace(" (", "-").replace(" ", "-").replace(")", "") for n, s in plain.items()}


def trained_settings(name: str) -> dict[str, Any]:
    """The settings of a run folder of `prance train agent`; empty for other agents."""
    return read_config(Path(name)) if (Path(name) / "config.yml").is_file() else {}


def env_of_run(run: Path, split: str) -> EnvSettings:
    """The environment that an agent in a run folder was trained in, on another split and on the CPU."""
    return _env(str(run), {**DEFAULTS, **trained_settings(str(run))}, split)


def _env(name: str, noted: dict[str, Any], split: str, environment: EnvArguments | None = None) -> EnvSettings:
    """The environment as an agent saw it in training, on the images of `noted`, which has the keys of `DEFAULTS`."""
    arguments = of_the_machine(environment or {}) | noted_settings({k: noted[k] for k in DEFAULTS if k != "env"})
    arguments |= {"split": split, "cost_conditioning": _price_range(name)}
    arguments["observation"] = trained_settings(name).get("observation", "cls")
    return EnvSettings.from_id(noted["env"], **arguments)


def _shared(names: Sequence[str], keys: Sequence[str]) -> dict[str, Any]:
    """Those of the settings `keys` that the trained agents among `names` noted, in which they must agree.

    Raises:
        ValueError: If they do not.
    """
    configs = {name: trained for name in names if (trained := trained_settings(name))}
    shared: dict[str, Any] = {}
    for key in keys:
        found = {name: trained[key] for name, trained in configs.items() if trained.get(key) is not None}
        if not found:
            continue
        values = {name: trained.get(key, DEFAULTS[key]) for name, trained in configs.items()}
        shared[key] = next(iter(found.values()))
        if any(value != shared[key] for value in values.values()):
            flag = key.replace("_", "-")
            raise ValueError(
                f"The agents were trained with different values of {key}, {values}; name one with --{flag}."
            )
    return shared


def _price_range(name: str) -> tuple[float, float] | None:
    """The prices that an agent was trained for, None if for one only."""
    price = trained_settings(name).get("macs_weight")
    return (price[0], price[1]) if isinstance(price, list) else None


def _prices(agent: Agent, env: EnvSettings, settings: EvalSettings) -> list[float]:
    """The prices at which to evaluate an agent for a range of them."""
    if settings.target_macs is None:
        return [*dict.fromkeys(settings.macs_weight)] or front_prices(env)
    return [calibrate(agent, replace(env, split="val"), settings.target_macs).macs_weight]


def _comparisons_table(comparisons: dict[str, dict[str, Any]]) -> Table:
    table = Table(title="pairs, on the same images")
    for column in ("", "accuracy", "95 %", "McNemar p", "MACs / full", "95 %", "Wilcoxon p"):
        table.add_column(column, justify="left" if not column else "right")
    for name, c in comparisons.items():
        cells = []
        for key in ("accuracy", "macs_fraction"):
            low, high = c[f"{key}_interval"]
            cells += [f"{c[key]:+.2%}", f"{low:+.2%} .. {high:+.2%}", f"{c[f'{key}_p']:.2g}"]
        table.add_row(name, *cells)
    return table
