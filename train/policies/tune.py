"""`prance tune`: a search for the hyper-parameters of a Stable-Baselines3 algorithm with Optuna."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from tqdm import tqdm

from agents.protocol import Agent
from agents.sb3.hyperparams import (
    ALGORITHMS,
    PRESETS,
    Preset,
    algorithm_class,
    check_hyperparams,
    merged,
    preset_text,
    read_preset,
)
from agents.sb3.make import fitted, make_sb3
from prance_env import make_sb3_env
from prance_env.settings import EnvArguments, EnvSettings
from supernet.reading import check_fields, make_plain, read_yaml
from supernet.staging import staged

from ..options import choice
from ..play import mean_return
from ..runs.folder import open_run
from .settings import TrainingTask
from .study_file import check_studies, check_trials, damage_told

if TYPE_CHECKING:
    import optuna

OfSB3 = Annotated[str, choice(lambda: ALGORITHMS)]
STUDY, BEST = "study.db", "best.yml"
OF_THE_PRESET = "preset"
"""Attribute of the trial that the preset is."""


@dataclass(frozen=True, kw_only=True)
class TuneSettings(TrainingTask):
    """Settings of a search; all trials train with its seed.

    Raises:
        ValueError: If a number is too small.
    """

    algo: OfSB3
    """Algorithm; tqc and trpo need `pip install -e '.[contrib]'`."""
    trials: int = 40
    """Hyper-parameters to try, the preset's first."""
    total_timesteps: int = 100_000
    """Decisions in a trial, three an image, or four with --decide-first-group."""
    evaluations: int = 4
    """How often a trial is judged, the last time at its end; what is behind is given up halfway."""
    startup_trials: int = 10
    """Trials drawn at random, before the sampler learns from them; may be 0."""
    conf_file: str | None = None
    """YAML file of hyper-parameters to begin with, in rl-zoo's format; this package's preset if not given."""
    ranges: str | None = None
    """YAML file with what to search, as `read_ranges` takes it; this package's if not given."""
    macs_weight: float | None = None
    """Price of all MACs of the full network, in accuracy; 0.05, or the paper's with --reward paper, if not given."""
    seed: int = 0
    """Fixes everything."""

    def __post_init__(self) -> None:
        make_plain(self, "environment", "macs_weight")
        check_fields(self)
        super().__post_init__()
        for name, least in (("trials", 1), ("evaluations", 1), ("startup_trials", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)} must be at least {least}.")


def tune(settings: TuneSettings, out: Path, resume: bool = False, progress_bar: bool = True) -> optuna.Study:
    """Searches hyper-parameters that give the highest mean return on the validation split after a fixed training.

    Optuna's TPE proposes, and its median pruner gives up what is behind most trials halfway. The proposals depend on
    the seed and the finished trials only, so that an interrupted search goes on as if it had not stopped.

    Args:
        settings: What to search.
        out: Folder: `study.db` (Optuna's storage, SQLite), `best.yml` (a preset), `trials.csv`, `config.yml`,
            `command.txt`.
        resume: Go on with the search in `out`, also with more trials.
        progress_bar: Whether to show one.

    Raises:
        FileExistsError: If `out` holds a search and `resume` is False, or another process writes to it.
        FileNotFoundError: If `resume` is True and there is none.
        KeyboardInterrupt: After Ctrl-C or SIGTERM; the trial that was running is lost.
        ValueError: If the search in `out` has other settings, or the ranges or `study.db` are damaged.
        ModuleNotFoundError: If Optuna is missing.
    """
    _optuna()
    preset = read_preset(settings.algo, settings.conf_file, settings.env)
    ranges = read_ranges(settings.algo, settings.ranges)
    EnvSettings.from_id(settings.env, **settings.env_arguments)  # which checks them
    with open_run(out, settings, out / STUDY, resume, (), "search", "go on with it", may_change=("trials",)):
        study = _open_study(settings, out)
        try:
            _search(study, settings, preset, ranges, out, progress_bar)
        except KeyboardInterrupt:
            print(f"\nStopped after {_num_finished(study)} of {settings.trials} trials.")
            raise
    return study


def _open_study(settings: TuneSettings, out: Path) -> optuna.Study:
    """The search in `out`, where trials that were killed have failed.

    Raises:
        ValueError: If `study.db` is damaged, or of another search.
    """
    optuna = _optuna()
    # Interrupted trials are nothing to tell about, and errors are raised.
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    pruner = optuna.pruners.MedianPruner(
        n_startup_trials=settings.startup_trials // 2, n_warmup_steps=max(1, settings.evaluations // 2)
    )
    with damage_told(out / STUDY):
        storage = optuna.storages.RDBStorage(f"sqlite:///{out / STUDY}")
        check_studies(storage, settings.algo)
        study = optuna.create_study(
            storage=storage, study_name=settings.algo, direction="maximize", load_if_exists=True, pruner=pruner
        )
        for trial in study.get_trials(states=(optuna.trial.TrialState.RUNNING,)):
            study.tell(trial.number, state=optuna.trial.TrialState.FAIL)  # it will be repeated
        check_trials(_finished(study))
    return study


def _search(
    study: optuna.Study, settings: TuneSettings, preset: Preset, ranges: dict[str, Any], out: Path, progress_bar: bool
) -> None:
    """Runs trials until there are enough, and writes what came of them after every one."""
    optuna = _optuna()
    total = settings.trials * settings.evaluations
    with tqdm(total=total, desc=f"tune {settings.algo}", unit="evaluation", disable=not progress_bar) as bar:

        def shown(value: float) -> None:
            bar.update(1)
            bar.set_postfix_str(f"now {value:.4f}, best {best_value(study):.4f}")

        while True:
            finished = _num_finished(study)
            bar.update(finished * settings.evaluations - bar.n)
            _write_results(study, settings, out)
            if finished >= settings.trials:
                return
            study.sampler = optuna.samplers.TPESampler(
                n_startup_trials=settings.startup_trials,
                seed=int(np.random.SeedSequence([settings.seed, finished]).generate_state(1)[0]),
            )
            if finished == 0 and not study.get_trials(states=(optuna.trial.TrialState.WAITING,)):
                study.enqueue_trial(_as_params(preset.hyperparams, ranges), user_attrs={OF_THE_PRESET: True})
            study.optimize(lambda trial: _run_trial(trial, settings, ranges, shown), n_trials=1)


def read_ranges(algo: str, path: str | Path | None = None) -> dict[str, Any]:
    """Reads what is searched for an algorithm.

    Args:
        algo: Key of `agents.sb3.hyperparams.ALGORITHMS`.
        path: YAML file: for every algorithm, names of hyper-parameters ("policy_kwargs.net_arch" is inside another) and
            either a list of choices or `{low, high}`, with `log: true` for a logarithmic scale and `schedule: lin`
            for a value that falls to 0 linearly; None is the file of this package. Values are for as many environments
            as the preset's, and fitted to others as the preset is.

    Raises:
        ValueError: If the file is damaged, or the algorithm does not know a hyper-parameter.
        FileNotFoundError: If there is no such file.
    """
    path = PRESETS / "ranges.yml" if path is None else Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; pass a YAML file of search ranges.")
    ranges = read_yaml(path, dict[str, Any], "correct it").get(algo)
    if not isinstance(ranges, dict) or not ranges:
        raise ValueError(f"{path} has no search ranges for {algo!r}.")
    for name, span in ranges.items():
        span_is_good = bool(span) if isinstance(span, list) else _is_interval(span)
        if not span_is_good:
            raise ValueError(f"{path}: {algo}.{name}={span!r} must be a list of choices, or low < high with log: true.")
    try:
        check_hyperparams(algorithm_class(algo), _nested(dict.fromkeys(ranges)))
    except ValueError as e:
        raise ValueError(f"{path}: {e}") from e
    return ranges


def validation_return(
    agent: Agent, env_id: str, env_arguments: EnvArguments, batch_size: int = 1024
) -> tuple[float, float, float]:
    """Plays every validation image once, without exploring.

    Args:
        agent: Whatever has SB3's `predict`.
        env_id: Environment id.
        env_arguments: Arguments of the environment, the reward included.
        batch_size: Images at a time.

    Returns:
        Mean return of an episode, accuracy, and MACs / MACs of the full network.
    """
    settings = EnvSettings.from_id(env_id, **{**env_arguments, "split": "val"})  # type: ignore[arg-type]
    return mean_return(agent, settings, batch_size)


class _Judge(BaseCallback):
    """Calls `report` with the model at equal distances in time steps, but not at the end."""

    def __init__(self, every: float, last: int, report: Callable[[int, BaseAlgorithm], None]) -> None:
        super().__init__()
        self.every, self.last, self.report, self.done = every, last, report, 0

    def _on_rollout_start(self) -> None:
        while self.done + 1 < self.last and self.num_timesteps >= self.every * (self.done + 1):
            self.done += 1
            self.report(self.done, self.model)

    def _on_step(self) -> bool:
        return True


def _run_trial(
    trial: optuna.Trial, settings: TuneSettings, ranges: dict[str, Any], shown: Callable[[float], None]
) -> float:
    optuna = _optuna()
    preset = read_preset(settings.algo, settings.conf_file, settings.env)
    chosen = merged(preset.hyperparams, _nested(_proposed(trial, preset.hyperparams, ranges)))
    env = make_sb3_env(settings.env, settings.n_envs or preset.n_envs, **settings.env_arguments)
    env.reset()  # builds the network, which draws random numbers, before the model sets the seed
    # As a training with the preset, or with `best.yml`, fits them.
    hyperparams = fitted(chosen, env, preset.n_envs / env.num_envs)
    trial.set_user_attr("hyperparams", hyperparams)

    def judged(step: int, model: BaseAlgorithm) -> float:
        value, accuracy, macs_fraction = validation_return(model, settings.env, settings.env_arguments)
        trial.report(value, step)
        trial.set_user_attr("accuracy", accuracy)
        trial.set_user_attr("macs_fraction", macs_fraction)
        shown(value)
        return value

    def report(step: int, model: BaseAlgorithm) -> None:
        judged(step, model)
        if trial.should_prune():
            raise optuna.TrialPruned

    model = None
    try:
        model = make_sb3(settings.algo, env, settings.seed, preset=settings.conf_file, **hyperparams)
        judge = _Judge(settings.total_timesteps / settings.evaluations, settings.evaluations, report)
        model.learn(settings.total_timesteps, callback=judge, log_interval=10**9)
        return judged(settings.evaluations, model)
    except ValueError as e:
        # Bad settings diverge, which algorithms and environments notice in their own ways.
        if model is None or all(torch.isfinite(p).all() for p in model.policy.parameters()):
            raise
        raise optuna.TrialPruned("diverged") from e


def _proposed(trial: optuna.Trial, hyperparams: dict[str, Any], ranges: dict[str, Any]) -> dict[str, Any]:
    """What a trial tries; of the preset's own trial, what the preset says, also where it lies outside the ranges."""
    own = _searched(hyperparams, ranges) if trial.user_attrs.get(OF_THE_PRESET) else {}
    outside = own.keys() - _as_params(hyperparams, ranges).keys()
    return {name: _suggest(trial, name, span) for name, span in ranges.items() if name not in outside} | own


def _suggest(trial: optuna.Trial, name: str, span: Any) -> Any:
    if isinstance(span, list):
        return json.loads(trial.suggest_categorical(name, [json.dumps(choice) for choice in span]))
    value = trial.suggest_float(name, span["low"], span["high"], log=span.get("log", False))
    value = float(f"{value:.4g}")
    return f"lin_{value}" if span.get("schedule") == "lin" else value


def _as_params(hyperparams: dict[str, Any], ranges: dict[str, Any]) -> dict[str, Any]:
    """Those hyper-parameters of a preset that lie in the ranges, in Optuna's terms."""
    params: dict[str, Any] = {}
    for name, value in _searched(hyperparams, ranges).items():
        span = ranges[name]
        if isinstance(span, list):
            if value in span:
                params[name] = json.dumps(span[span.index(value)])  # 1 and 1.0 are equal, but not in JSON
            continue
        if span.get("schedule") == "lin":
            value = float(value.removeprefix("lin_")) if isinstance(value, str) else None
        if isinstance(value, int | float) and span["low"] <= value <= span["high"]:
            params[name] = value
    return params


def _searched(hyperparams: dict[str, Any], ranges: dict[str, Any]) -> dict[str, Any]:
    """Those hyper-parameters of a preset that are searched, by their names in the ranges."""
    found: dict[str, Any] = {}
    for name in ranges:
        outer, _, inner = name.partition(".")
        values = (hyperparams.get(outer) or {}) if inner else hyperparams
        if (key := inner or outer) in values:
            found[name] = values[key]
    return found


def _nested(flat: dict[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for name, value in flat.items():
        outer, _, inner = name.partition(".")
        if inner:
            nested.setdefault(outer, {})[inner] = value
        else:
            nested[outer] = value
    return nested


def _is_interval(span: Any) -> bool:
    if not isinstance(span, dict) or set(span) - {"low", "high", "log", "schedule"} or not {"low", "high"} <= set(span):
        return False
    if not all(isinstance(span[key], int | float) for key in ("low", "high")):
        return False
    good = (
        span["low"] < span["high"] and span.get("schedule", "lin") == "lin" and span.get("log", False) in (True, False)
    )
    return good and (span["low"] > 0 or not span.get("log"))


def _finished(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """The trials that have ended, in order; those that were killed are not among them."""
    states = _optuna().trial.TrialState
    return study.get_trials(deepcopy=False, states=(states.COMPLETE, states.PRUNED))


def _num_finished(study: optuna.Study) -> int:
    return len(_finished(study))


def best_value(study: optuna.Study) -> float:
    """The highest return of the trials that reached their end; NaN if none has."""
    complete = study.get_trials(deepcopy=False, states=(_optuna().trial.TrialState.COMPLETE,))
    return max((t.value for t in complete if t.value is not None), default=float("nan"))


def _write_results(study: optuna.Study, settings: TuneSettings, out: Path) -> None:
    """`best.yml`, which is a preset, and one row per trial."""
    columns = ("number", "state", "return", "accuracy", "macs_fraction", "seconds", "hyperparams")
    rows = io.StringIO()
    writer = csv.writer(rows, lineterminator="\n")
    writer.writerow(columns)
    for number, trial in enumerate(_finished(study)):
        attributes = trial.user_attrs
        if "accuracy" in attributes:
            seconds = "" if trial.duration is None else f"{trial.duration.total_seconds():.1f}"
            value = trial.intermediate_values[max(trial.intermediate_values)]
            judged = [f"{v:.5f}" for v in (value, attributes["accuracy"], attributes["macs_fraction"])]
            writer.writerow([number, trial.state.name, *judged, seconds, json.dumps(attributes["hyperparams"])])
    with staged(out) as folder:
        (folder / "trials.csv").write_text(rows.getvalue())
        if not np.isnan(best_value(study)):
            preset = read_preset(settings.algo, settings.conf_file, settings.env)
            n_envs, best = settings.n_envs or preset.n_envs, study.best_trial.user_attrs["hyperparams"]
            reward = {"reward": settings.env_arguments["reward"]}
            (folder / BEST).write_text(preset_text(Preset(best, n_envs, settings.total_timesteps), reward))


def _optuna() -> Any:
    try:
        import optuna
    except ModuleNotFoundError as e:
        raise ModuleNotFoundError(
            "The search needs Optuna, which is not installed: pip install -e '.[tune]'.", name="optuna"
        ) from e
    return optuna
