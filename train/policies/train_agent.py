"""Stage 2: training an agent on a frozen supernet, with whichever algorithm, interruptible and resumable."""

from __future__ import annotations

from pathlib import Path

from agents.protocol import Agent

from ..runs.folder import open_run
from .algorithm import TrainingRun
from .registry import ALGORITHMS
from .settings import AgentTraining


def train_agent(settings: AgentTraining, out: Path, resume: bool = False, progress_bar: bool = True) -> Agent:
    """Trains an agent and writes it to `out`.

    Args:
        settings: What to train.
        out: Run folder: `model` and `last` (SB3: `.zip` files, PrancePPO: folders), `config.yml`, `command.txt`,
            `metrics.jsonl`, TensorBoard events.
        resume: Continue from `out`'s last checkpoint.
        progress_bar: Whether to show one.

    Returns:
        The SB3 model, the PrancePPO, or what else the algorithm trains.

    Raises:
        FileExistsError: If `out` holds a run and `resume` is False.
        FileNotFoundError: If `resume` is True and there is no checkpoint.
        ValueError: If the checkpoint was written with other settings.
    """
    last, model = (out / f"{name}{settings.algorithm.suffix}" for name in ("last", "model"))
    suffixes = sorted({ALGORITHMS[name].suffix for name in ALGORITHMS})
    held = [out / f"{name}{suffix}" for name in ("last", "model") for suffix in suffixes]
    open_run(out, settings, last, resume, held)
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
        resume=resume,
        progress_bar=progress_bar,
    )
    return settings.algorithm.train(run)
