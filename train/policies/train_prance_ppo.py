"""Training with PRANCE's own PPO, interruptible and resumable."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from gymnasium.vector import AutoresetMode

from agents.prance_ppo.algorithm import PrancePPO
from agents.prance_ppo.config import PrancePPOConfig
from agents.protocol import Agent
from prance_env import PranceVectorEnv

from ..runs.interrupt import deferred_interrupt
from .algorithm import ROLLOUTS_PER_CHECKPOINT, Algorithm, TrainingRun

NAME = "prance_ppo"
TIMESTEPS = 400_000
PRESETS = {"tuned": PrancePPOConfig.tuned, "paper": PrancePPOConfig.paper}


class PrancePPOAlgorithm(Algorithm):
    """PRANCE's own PPO, which acts on whole batches on the device of the supernet, and is saved without pickles."""

    presets = tuple(PRESETS)

    def timesteps(self, conf_file: str | None, env: str) -> int:
        """Decisions after which the tuned settings have learned."""
        return TIMESTEPS

    def train(self, run: TrainingRun) -> Agent:
        """Trains on the device of the supernet; `metrics.jsonl` gets a row per update.

        Ctrl-C is heeded at the next checkpoint, so that nothing is lost.
        """
        config = fitted_config(run.preset, run.n_envs, run.env_settings().config().space.num_decisions)
        env = PranceVectorEnv(config.n_envs, AutoresetMode.SAME_STEP, **run.env_kwargs())
        if run.resume:
            agent = PrancePPO.load(run.last, env, run.device, tensorboard_log=str(run.out))
            run.forget_after(agent.num_timesteps)
        else:
            agent = PrancePPO(env, config, run.seed, run.device, tensorboard_log=str(run.out))
        with deferred_interrupt() as pressed:
            announced = stopped = False

            def after_update(agent: PrancePPO) -> bool:
                nonlocal announced, stopped
                run.write_row(
                    agent.num_timesteps, **{k: agent.metrics[f"rollout/{k}"] for k in ("accuracy", "macs_fraction")}
                )
                if agent.n_updates % agent.config.restart_every == 0:
                    agent.save(run.last)
                    stopped = pressed()
                elif pressed() and not announced:
                    announced = True
                    print("\nStopping at the next checkpoint, in a moment; Ctrl-C again stops now.")
                return not stopped

            remaining = run.total_timesteps - agent.num_timesteps
            if remaining > 0:
                agent.learn(remaining, after_update, run.progress_bar, not run.resume, tb_log_name=NAME)
        if stopped and agent.num_timesteps < run.total_timesteps:
            run.say_stopped(agent.num_timesteps)
            raise KeyboardInterrupt
        agent.save(run.model)
        return agent

    def load(self, path: Path) -> Agent:
        """The agent in a folder that `PrancePPO.save` wrote."""
        return PrancePPO.load(path)


def fitted_config(preset: str, n_envs: int | None, num_decisions: int) -> PrancePPOConfig:
    """A preset with rollouts of as many whole episodes as make up its number of transitions.

    Args:
        preset: Key of `PRESETS`.
        n_envs: Images at a time; None is the preset's number.
        num_decisions: Decisions of an episode.
    """
    config = PRESETS[preset](restart_every=ROLLOUTS_PER_CHECKPOINT)
    n_envs = n_envs or config.n_envs
    episodes = max(1, round(config.n_envs * config.n_steps / (n_envs * num_decisions)))
    return replace(config, n_envs=n_envs, n_steps=episodes * num_decisions)
