"""Training with PRANCE's own PPO, interruptible and resumable."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from gymnasium.vector import AutoresetMode

from agents.prance_ppo.algorithm import PrancePPO
from agents.prance_ppo.config import PrancePPOConfig
from agents.protocol import Agent
from prance_env import PranceVectorEnv
from supernet.archives import load_state

from ..runs.curves import forget_curves_after
from ..runs.interrupt import deferred_interrupt
from ..runs.pace import Pace
from .algorithm import ROLLOUTS_PER_STRETCH, Algorithm, TrainingRun

NAME, PLACE = "prance_ppo", "place.pt"
TIMESTEPS = 400_000
PRESETS = {"tuned": PrancePPOConfig.tuned, "paper": PrancePPOConfig.paper}


class PrancePPOAlgorithm(Algorithm):
    """PRANCE's own PPO, which acts on whole batches on the device of the supernet, and is saved without pickles."""

    presets = tuple(PRESETS)

    def timesteps(self, conf_file: str | None, env: str) -> int:
        """Decisions after which the tuned settings have learned."""
        return TIMESTEPS

    def train(self, run: TrainingRun) -> Agent:
        """Trains on the device of the supernet; `metrics.jsonl` gets a row per update."""
        config = fitted_config(run.preset, run.n_envs, run.env_settings().config().space.num_decisions)
        env = PranceVectorEnv(config.n_envs, AutoresetMode.SAME_STEP, output_on(run.device), **run.env_kwargs())
        if run.resume:
            agent = load_last(run.last, env, run.device, str(run.out))
            run.forget_after(agent.num_timesteps)
            forget_curves_after(run.out, NAME, agent.num_timesteps)
        else:
            agent = PrancePPO(env, config, run.seed, run.device, tensorboard_log=str(run.out))
        remaining = run.total_timesteps - agent.num_timesteps
        if remaining <= 0:
            run.say_done(agent.num_timesteps)
            if not run.model.exists():
                agent.save(run.model)
            return agent
        pace, best = Pace(run.save_freq), False

        def save_best(folder: Path) -> None:
            agent.save(folder / run.model.name)

        def save(agent: PrancePPO, also: Path | None = None) -> None:
            with run.saving(agent.num_timesteps, save_best if best else None) as folder:
                save_last(agent, folder / run.last.name)
                if also is not None:
                    agent.save(folder / also.name)

        with deferred_interrupt() as interrupted:

            def after_update(agent: PrancePPO) -> bool:
                nonlocal best
                if agent.n_updates == 1:
                    run.describe(agent.logger, **config.to_dict())
                run.write_row(
                    agent.num_timesteps, **{k: agent.metrics[f"rollout/{k}"] for k in ("accuracy", "macs_fraction")}
                )
                at_end = agent.num_timesteps >= run.total_timesteps
                best = run.is_best(agent, agent.num_timesteps, agent.logger, at_end)
                if not at_end and (best or interrupted() or pace.due()):
                    save(agent)
                return not interrupted()

            agent.learn(remaining, after_update, run.progress_bar, not run.resume, tb_log_name=NAME)
            if interrupted() and agent.num_timesteps < run.total_timesteps:
                run.say_stopped(agent.num_timesteps)
            else:
                save(agent, run.model)
            interrupted.heed()
        return agent

    def load(self, path: Path) -> Agent:
        """The agent in a folder that `PrancePPO.save` wrote."""
        return PrancePPO.load(path)


def output_on(device: str) -> str:
    """How an environment answers on a device: on a GPU nothing leaves it before a rollout is over."""
    return "numpy" if torch.device(device).type == "cpu" else "torch"


def save_last(agent: PrancePPO, last: Path) -> None:
    """Writes a checkpoint between two updates: the agent, and where its environment stands."""
    agent.save(last)
    torch.save(agent.place(), last / PLACE)


def load_last(last: Path, env: PranceVectorEnv, device: str = "cpu", tensorboard_log: str | None = None) -> PrancePPO:
    """The agent of a checkpoint, from which `learn(reset_num_timesteps=False)` goes on bit for bit on the CPU.

    Args:
        last: What `save_last` wrote, or a saved agent, which goes on from a reset.
        env: The environment.
        device: Torch device of the agent.
        tensorboard_log: Folder for TensorBoard; None: no events.

    Raises:
        FileNotFoundError: If there is no agent.
        ValueError: If a file is damaged, or the environment is another one.
    """
    agent = PrancePPO.load(last, env, device, tensorboard_log)
    if (place := last / PLACE).is_file():
        agent.go_to(load_state(place))
    return agent


def fitted_config(preset: str, n_envs: int | None, num_decisions: int) -> PrancePPOConfig:
    """A preset with rollouts of as many whole episodes as make up its number of transitions.

    Args:
        preset: Key of `PRESETS`.
        n_envs: Images at a time; None is the preset's number.
        num_decisions: Decisions of an episode.
    """
    config = PRESETS[preset](restart_every=ROLLOUTS_PER_STRETCH)
    n_envs = n_envs or config.n_envs
    episodes = max(1, round(config.n_envs * config.n_steps / (n_envs * num_decisions)))
    return replace(config, n_envs=n_envs, n_steps=episodes * num_decisions)
