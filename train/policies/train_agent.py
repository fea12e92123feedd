"""Stage 2: training an agent on a frozen supernet, with whichever algorithm, interruptible and resumable."""

from __future__ import annotations

from pathlib import Path

from agents.deployed.runs import Deployed
from agents.protocol import Agent
from prance_env.settings import EnvSettings

from ..runs.folder import open_run, plain
from ..runs.pace import SAVE_FREQ, Pace
from ..runs.progress import Progress
from ..runs.trained import OF_THE_MACHINE
from ..runs.trust import check_trusted
from .algorithm import HYPERPARAMS, TrainingRun
from .registry import ALGORITHMS
from .settings import AgentTraining
from .validation import Validation

NAMES = ("last", "model")


def train_agent(
    settings: AgentTraining,
    out: Path,
    resume: bool = False,
    progress_bar: bool = True,
    save_freq: float = SAVE_FREQ,
    advice: str = "",
    trust: bool = False,
) -> Agent:
    """Trains an agent and writes it to `out`.

    Args:
        settings: What to train.
        out: Run folder: `model` and `last` (SB3: `.zip` files, PrancePPO: folders), `config.yml`, `class_names.txt`,
            `metrics.jsonl`, TensorBoard events and more; with `eval_freq` also `best`, a run folder of the best agent.
        resume: Continue from the last checkpoint, also to more `total_timesteps`; a run that has none starts over.
        progress_bar: Whether to show one.
        save_freq: Seconds between two checkpoints; what is trained does not depend on it.
        advice: What else to tell whoever stops the training.
        trust: Whether to go on from a checkpoint that can run code, though this user has not written it here.

    Returns:
        The SB3 model, the PrancePPO, or what else the algorithm trains.

    Raises:
        FileExistsError: If `out` holds a run and `resume` is False, or another process writes to it.
        FileNotFoundError: If `resume` is True and there is no run.
        ValueError: If the run was begun with other settings, or is another user's and would be unpickled.
        KeyboardInterrupt: After Ctrl-C or SIGTERM, when the checkpoint is written.
    """
    Pace(save_freq)  # which checks it
    last, model = (out / f"{name}{settings.algorithm.suffix}" for name in NAMES)
    held = [out / f"{name}{suffix}" for name in NAMES for suffix in {ALGORITHMS[a].suffix for a in ALGORITHMS}]
    env = EnvSettings.from_id(settings.env, **settings.env_arguments)
    may_change, validation = _may_change(settings, out), Validation(env, out, settings.eval_freq, settings.eval_images)
    if resume and settings.algorithm.pickles:
        check_trusted(last, trust)
    with open_run(out, settings, last, resume, held, may_change=may_change) as going_on:
        Deployed(env, env.dataset_config).note_class_names(out)
        run = TrainingRun(
            env=settings.env,
            env_arguments=settings.env_arguments,
            total_timesteps=settings.timesteps,
            n_envs=settings.n_envs,
            preset=settings.preset,
            conf_file=settings.conf_file,
            seed=settings.seed,
            device=settings.environment.get("device", "cpu"),
            out=out,
            last=last,
            model=model,
            resume=going_on,
            progress_bar=progress_bar,
            save_freq=save_freq,
            advice=advice,
            progress=Progress(out),
            validation=validation,
            described=plain(settings),
        )
        return settings.algorithm.train(run)


def _may_change(settings: AgentTraining, out: Path) -> list[str]:
    """Settings that a run may go on with other values of."""
    own = settings.conf_file is not None and Path(settings.conf_file).absolute() == (out / HYPERPARAMS).absolute()
    return ["total_timesteps", "eval_freq", "eval_images", *OF_THE_MACHINE, *(["conf_file"] if own else [])]
