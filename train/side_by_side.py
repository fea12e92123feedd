"""`prance eval`: agents side by side on the same images, with intervals, tests, controls and files."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from rich.console import Console

from agents.baselines import FullAgent, RandomAgent, StaticAgent
from agents.fitting import BehindWrappers
from agents.protocol import Agent
from agents.sb3.saved import Normalized
from prance_env.settings import EnvArguments, EnvSettings
from prance_env.spaces import action_names
from supernet import SubnetConfig
from supernet.reading import read_json
from supernet.staging import staged

from .evaluate.budget import at_price, calibrate, front_prices
from .evaluate.evaluation import Evaluation, evaluate
from .evaluate.intervals import RESAMPLES, describe
from .evaluate.pairs import compare
from .evaluate.replay import SETTINGS
from .evaluate.rows import FORMATS, check_format, rows_of, write_rows
from .evaluate.scoring import scoring_of
from .options import Observation, Split, Trust, noted_options
from .policies.load_agent import load_agent
from .report.curves import plot_learning_curves
from .report.plots import plot_choices, plot_fronts
from .report.tables import Table, results_table, write_json
from .reward_options import AllTerms, RewardName, RewardTerms, reward_arguments
from .runs.curves import read_curves
from .runs.folder import plain
from .runs.lock import only_writer
from .runs.trained import (
    deployed_interface,
    environment_of,
    noted_settings,
    price_range,
    run_of,
    settings_for,
    trained_settings,
)
from .timing.agents import measure_latency
from .yardsticks.fronts import Yardsticks
from .yardsticks.standing import DEFAULT_PRICE, standing, standings_table

BLIND = (FullAgent, RandomAgent, StaticAgent)


@dataclass(frozen=True)
class EvalSettings:
    """Settings of an evaluation.

    Raises:
        ValueError: If both prices and a budget are given, or a number is too small.
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
    """Format of the rows; parquet needs the extra [parquet]."""
    latency: int | None = None
    """Images at a time for measured milliseconds, from pixels to logits with all looking and deciding."""
    controls: bool = False
    """Two more lines per agent that looks: with the observations of other images, and its mean action for all."""
    yardsticks: str | None = None
    """Folder that `prance yardsticks` wrote: what every agent saves, and what share of what there is to win."""
    observation: Observation | None = None
    """What agents without a run folder observe, such as zip files of Stable-Baselines3; cls if not given."""
    normalize_actions: bool = True
    """Whether their actions are those of Box(-1, 1) instead of Box(0, 1)."""
    resamples: int = RESAMPLES
    """Resamples of the bootstrap that gives the intervals, but for that of the accuracy."""
    reward: RewardName | None = None
    """What returns are counted by: potential, paper, or one that you have registered (--import); if not given, the
    reward that an agent was trained with."""
    latency_table: str | None = None
    """File that prance profile wrote: that reward pays for milliseconds instead of MACs."""
    reward_terms: AllTerms = field(default_factory=RewardTerms)
    """Changes of that reward."""
    seed: int = 0
    """Fixes the random agent, the intervals and the shuffling."""
    trust: Trust = False
    environment: Annotated[EnvArguments, noted_options("as in the agents' training")] = field(
        default_factory=EnvArguments
    )
    """What else the environment takes."""

    def __post_init__(self) -> None:
        if self.macs_weight and self.target_macs is not None:
            raise ValueError(
                f"macs_weight={self.macs_weight} and target_macs={self.target_macs} were both given; choose one."
            )
        for name in ("resamples", "latency"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1.")

    @property
    def given_reward(self) -> dict[str, Any] | None:
        """The environment's argument `reward`; None if nothing was said of it."""
        if self.reward is None and self.latency_table is None and not self.reward_terms:
            return None
        return reward_arguments(self.reward, None, self.latency_table, self.reward_terms)


def run_eval(agents: Sequence[str], settings: EvalSettings, out: Path | None = None) -> dict[str, Any]:
    """Evaluates agents on the same images and prints tables.

    Args:
        agents: Names and paths, see `train.policies.load_agent.load_agent`.
        settings: What to evaluate on, and how.
        out: Folder for `metrics.json`, `comparisons.json`, `settings.json`, `pareto.png`, `choices.png` of
            agents that look, `learning.png` of those with a run folder, and one file of rows per agent and price; all
            of them change at once, and those of an earlier evaluation there go.

    Returns:
        What is written to `metrics.json`: `describe` of every agent, with its mean `return` and the `reward` that it
        is counted by, its `macs_weight` if it was chosen here,
        `measure_latency` if asked for, and `standing` under "yardsticks".

    Raises:
        ValueError: If an agent does not fit, trained agents are for different supernets or images, the yardsticks are
            for others, or there is no agent whose price could be chosen as asked.
        FileNotFoundError: If there is no such agent, or there are no yardsticks.
        FileExistsError: If another process writes to `out`, or it is a file; before anything is played.
    """
    if not agents:
        raise ValueError("agent= names none; pass at least one, such as full or a run folder.")
    check_format(settings.rows)
    yardsticks = None if settings.yardsticks is None else Yardsticks.load(settings.yardsticks)
    names = list(dict.fromkeys(agents))
    noted = settings_for(names, plain(settings))
    with nullcontext() if out is None else only_writer(out):
        return _evaluated(names, noted, settings, yardsticks, out)


def _evaluated(
    names: Sequence[str], noted: dict[str, Any], settings: EvalSettings, yardsticks: Yardsticks | None, out: Path | None
) -> dict[str, Any]:
    console = Console()
    played = _play(names, noted, settings, yardsticks, console)
    metrics = {name: describe(result, settings.seed, settings.resamples) for name, result in played.results.items()}
    for label, (_, env) in played.players.items():
        metrics[label] |= {"reward": env.reward} if "return" in metrics[label] else {}
    for label, price in (pair for front in played.fronts.values() for pair in front.items()):
        metrics[label]["macs_weight"] = price
    if settings.latency is not None:
        for label, measured in measure_latency(played.players, settings.latency).items():
            metrics[label] |= measured
    _print_metrics(played, metrics, f"{noted['env']}, {settings.split}", console)
    comparisons = {
        f"{a} - {b}": compare(played.results[a], played.results[b], settings.seed, settings.resamples)
        for a, b in combinations(played.results, 2)
        if not any(a in front and b in front for front in played.fronts.values())
    }
    if comparisons:
        console.print(_comparisons_table(comparisons))
    if yardsticks is not None:
        for name, result in played.results.items():
            metrics[name]["yardsticks"] = standing(
                result, yardsticks, played.prices[name], settings.seed, settings.resamples
            )
        console.print(standings_table({name: data["yardsticks"] for name, data in metrics.items()}))
    if out is not None:
        with staged(out, _written_earlier(out)) as folder:
            _write(folder, played, metrics, comparisons, settings)
            write_json(folder / SETTINGS, noted_settings(noted))
        console.print(f"Written to {out}", highlight=False, markup=False)
    return metrics


@dataclass(frozen=True)
class _Played:
    """What came of all agents.

    Attributes:
        names: The agents.
        results: Evaluations by name, those of controls and of every price of an agent included.
        prices: At which yardsticks judge them, by name.
        fronts: Price by label, for every agent that was trained for a range of prices.
        players: Agents with their environments, by label.
        env: Environment of the last agent; the images and the supernet are those of all.
        remarks: About the returns.
    """

    names: Sequence[str]
    results: dict[str, Evaluation]
    prices: dict[str, float]
    fronts: dict[str, dict[str, float]]
    players: dict[str, tuple[Agent, EnvSettings]]
    env: EnvSettings
    remarks: tuple[str, ...]


def _play(
    names: Sequence[str], noted: dict[str, Any], settings: EvalSettings, yardsticks: Yardsticks | None, console: Console
) -> _Played:
    ranges = {name: price_range(name) for name in names}
    if (settings.macs_weight or settings.target_macs is not None) and not any(ranges.values()):
        raise ValueError(f"None of the agents {names} was trained for a range of prices, so none can be chosen.")
    scoring = scoring_of(names, settings.given_reward)
    results: dict[str, Evaluation] = {}
    judged_at: dict[str, float] = {}
    fronts: dict[str, dict[str, float]] = {}
    players: dict[str, tuple[Agent, EnvSettings]] = {}
    for name in names:
        env = environment_of(name, noted, settings.split, settings.environment)
        reward = scoring.rewards[name]
        env = replace(env, reward=reward)
        if not trained_settings(name) and not deployed_interface(name):
            seen = settings.observation or env.observation
            env = replace(env, observation=seen, normalize_actions=settings.normalize_actions)
        with console.status(f"{name} on {settings.split} ..."):
            agent = load_agent(name, env, settings.seed, settings.trust)
            model = agent.agent if isinstance(agent, BehindWrappers) else agent
            if isinstance(model, Normalized):
                console.print(f"{name} looks through {model.file}", highlight=False, markup=False)
            if yardsticks is not None and not results:  # images and supernet are those of all agents
                yardsticks.check(env.engine())
            chosen = {name: env}
            if ranges[name] is not None:
                prices = _prices(agent, env, settings)
                fronts[name] = {f"{name} (macs_weight {price:g})": price for price in prices}
                chosen = {label: at_price(env, price) for label, price in fronts[name].items()}
            for label, at in chosen.items():
                players[label] = agent, at
                lines = {label: evaluate(agent, at, returns=reward is not None)}
                if settings.controls and not isinstance(agent, BLIND) and at.observation != "constant":
                    lines |= controls(label, agent, lines[label], at, settings.seed)
                results |= lines
                judged_at |= dict.fromkeys(lines, fronts.get(name, {}).get(label, trained_price(name)))
    return _Played(names, results, judged_at, fronts, players, env, scoring.remarks)


def _print_metrics(played: _Played, metrics: dict[str, Any], title: str, console: Console) -> None:
    """Tables by stratum and of all agents, and what is to be said about the returns."""
    source = played.env.engine().dataset
    for name, data in metrics.items():
        rho = data["macs_difficulty_spearman"]
        about = f"{name}: {played.env.split} by {source.difficulty_name}"
        about += "" if rho is None else f" (rank correlation with MACs {rho:+.2f})"
        strata = {key: {k: v for k, v in part.items() if k != "return"} for key, part in data["by_difficulty"].items()}
        console.print(results_table(about, strata))
    console.print(results_table(title, metrics))
    for remark in played.remarks:
        console.print(remark, highlight=False, markup=False)


def _write(
    out: Path, played: _Played, metrics: dict[str, Any], comparisons: dict[str, Any], settings: EvalSettings
) -> None:
    """The files of an evaluation, but for its settings."""
    difficulty_name = played.env.engine().dataset.difficulty_name
    for name, label in file_names(list(played.results)).items():
        write_rows(out / f"{label}.{settings.rows}", rows_of(played.results[name], difficulty_name))
    write_json(out / "metrics.json", metrics)
    write_json(out / "comparisons.json", comparisons)
    plot_fronts(metrics, played.fronts, settings.split, out / "pareto.png")
    if looking := {n: played.results[n] for n, (agent, _) in played.players.items() if not isinstance(agent, BLIND)}:
        names = action_names(played.env.config().space)
        plot_choices(looking, names, difficulty_name, out / "choices.png")
    if curves := {n: found for n in played.names if (run := run_of(n)) and (found := read_curves(run))}:
        plot_learning_curves(curves, out / "learning.png")


def _written_earlier(out: Path) -> set[str]:
    """What an evaluation in a folder wrote of its agents, which another of other agents would leave there."""
    if not all((out / name).is_file() for name in ("metrics.json", "comparisons.json", SETTINGS)):
        return set()
    try:
        metrics = read_json(out / "metrics.json", dict[str, Any], "evaluate again")
    except ValueError:
        return set()
    labels = file_names([*metrics]).values()
    rows = {f"{label}.{kind}" for label in labels for kind in FORMATS}
    return {"choices.png", "learning.png", *rows}


def trained_price(name: str) -> float:
    """The price that an agent was trained for, where there is one; 0.05 for others."""
    price = trained_settings(name).get("macs_weight")
    return price if isinstance(price, int | float) else DEFAULT_PRICE


def controls(name: str, agent: Agent, seen: Evaluation, env: EnvSettings, seed: int) -> dict[str, Evaluation]:
    """The agent with other images' observations, and its average action as one static subnet.

    Args:
        name: Of the agent; those of the controls begin with it.
        agent: The agent.
        seen: Its evaluation.
        env: What it was evaluated on.
        seed: Fixes the shuffling.
    """
    config = env.config()
    mean = SubnetConfig.from_actions(config.space, torch.from_numpy(seen.mean_action()))
    static = StaticAgent(mean, config, env.observation, env.normalize_actions)
    return {
        f"{name} (shuffled)": evaluate(
            agent, env, shuffle_observations=True, seed=seed, returns=seen.returns is not None
        ),
        f"{name} (mean action)": evaluate(static, env, returns=seen.returns is not None),
    }


def file_names(names: Sequence[str]) -> dict[str, str]:
    """A file name of its own, without suffix, for every agent: the path's last part, or all of it if not unique."""
    short = [Path(name).name or name for name in names]
    plain = {n: s if short.count(s) == 1 else n.strip("./") for n, s in zip(names, short, strict=True)}
    found: dict[str, str] = {}
    for name, said in plain.items():
        label = free = said.replace("/", "_").replace(" (", "-").replace(" ", "-").replace(")", "")
        number = 1
        while free in found.values():
            free = f"{label}-{(number := number + 1)}"
        found[name] = free
    return found


def _prices(agent: Agent, env: EnvSettings, settings: EvalSettings) -> list[float]:
    """The prices at which to evaluate an agent for a range of them."""
    if settings.target_macs is None:
        return [*dict.fromkeys(settings.macs_weight)] or front_prices(env)
    return [calibrate(agent, replace(env, split="val"), settings.target_macs).macs_weight]


def _comparisons_table(comparisons: dict[str, dict[str, Any]]) -> Table:
    table = Table(title="pairs, on the same images")
    for column in ("", "accuracy (95 %)", "McNemar p", "MACs / full (95 %)", "Wilcoxon p"):
        table.add_column(column, justify="left" if not column else "right")
    for name, c in comparisons.items():
        cells = []
        for key in ("accuracy", "macs_fraction"):
            low, high = c[f"{key}_interval"]
            cells += [f"{c[key]:+.2%} ({100 * low:+.2f} .. {100 * high:+.2f})", f"{c[f'{key}_p']:.2g}"]
        table.add_row(name, *cells)
    return table
