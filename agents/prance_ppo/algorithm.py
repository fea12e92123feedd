"""PRANCE's selector: proximal policy optimisation, on the device, without anything that cannot be read in one go."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from numpy.typing import NDArray
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.utils import configure_logger
from torch import Tensor, nn
from tqdm import tqdm

from prance_env.supernets import usable_device
from supernet import SupernetConfig

from ..episode_means import NEEDED, choices_of
from ..protocol import BatchAgent
from . import files
from .config import PrancePPOConfig
from .policy import GaussianPolicy
from .rollout import Rollout, advantages_of, collect

LEAST_SEEN = 1024
Callback = Callable[["PrancePPO"], bool | None]


class PrancePPO(BatchAgent):
    """Proximal policy optimisation (arXiv 1707.06347) of the selector of PRANCE (arXiv 2407.05010).

    It differs from the authors' code where that is not PPO: advantages come from the action's own episode only, actions
    are scored as they were sampled, before the environment clips them, the ratio is that of whole actions, and every
    transition is used in one update only.

    Args:
        env: A Gymnasium `VectorEnv` with flat Box spaces in autoreset mode SAME_STEP; or the id of an environment, of
            which `config.n_envs` are made; or None, to predict only.
        config: Settings; None: `PrancePPOConfig.tuned()`.
        seed: Of weights, actions, mini-batches and episodes.
        device: Torch device of networks and rollouts.
        tensorboard_log: Folder for TensorBoard; None: no events.
        verbose: 1 prints what TensorBoard gets.
        spaces: Observation and action space of one environment, if `env` is None.

    Raises:
        ValueError: If the environment does not fit.
        gymnasium.error.Error: If nobody has registered its id.
    """

    def __init__(
        self,
        env: VectorEnv[Any, Any, Any] | str | None,
        config: PrancePPOConfig | None = None,
        seed: int = 0,
        device: str = "cpu",
        tensorboard_log: str | None = None,
        verbose: int = 0,
        spaces: tuple[gym.Space[Any], gym.Space[Any]] | None = None,
    ) -> None:
        self.config = PrancePPOConfig.tuned() if config is None else config
        if not isinstance(seed, int) or not 0 <= seed < 2**63:
            raise ValueError(f"seed={seed!r} must be a whole number in [0, 2**63).")
        self.seed, self.device = seed, usable_device(device)
        self.tensorboard_log, self.verbose = tensorboard_log, verbose
        if isinstance(env, str):
            env = make_env(env, self.config.n_envs)
        if env is not None:
            _check_kind(env)
            spaces = env.single_observation_space, env.single_action_space
        if spaces is None:
            raise ValueError("PrancePPO needs an environment, an environment's id, or spaces=(observation, action).")
        self.observation_space, self.action_space = _check_spaces(*spaces)
        (self.observation_size,) = self.observation_space.shape
        self.env: VectorEnv[Any, Any, Any] | None = None
        self.price_range: tuple[float, float] | None = None
        if env is not None:
            self.set_env(env)
        c = self.config
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            # Not torch.manual_seed, which reseeds all GPUs as well.
            torch.default_generator.manual_seed(seed)
            self.policy = GaussianPolicy(
                self.observation_space.shape[0],
                self.action_space,
                c.hidden,
                c.activation,
                c.initial_std,
                c.learn_std,
                c.initial_action,
            ).to(self.device)
        self._actor_parameters = [*self.policy.actor.parameters(), *([self.policy.log_std] if c.learn_std else [])]
        self._critic_parameters = [*self.policy.critic.parameters()]
        self.optimizer = torch.optim.Adam(
            [
                {"params": self._actor_parameters, "lr": c.actor_lr},
                {"params": self._critic_parameters, "lr": c.critic_lr},
            ],
            eps=1e-5,
            fused=True,
        )
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self._predict_generator = torch.Generator(self.device).manual_seed(seed)
        self.num_timesteps = self.n_updates = 0
        self.metrics: dict[str, float] = {}
        self.logger: Logger | None = None
        self._observation: Any = None
        self._running = torch.zeros(0)

    def set_env(self, env: VectorEnv[Any, Any, Any]) -> None:
        """The environment to train on.

        Raises:
            ValueError: If it has other spaces than this agent, or another autoreset mode than SAME_STEP.
        """
        _check_kind(env)
        spaces = env.single_observation_space, env.single_action_space
        if spaces != (self.observation_space, self.action_space):
            raise ValueError(
                f"The agent is for observations {self.observation_space} and actions {self.action_space}; this "
                f"environment has {spaces[0]} and {spaces[1]}. Use the settings it was trained with."
            )
        mode = env.metadata.get("autoreset_mode")
        if mode != AutoresetMode.SAME_STEP:
            raise ValueError(f"The environment has autoreset_mode={mode}; make it with AutoresetMode.SAME_STEP.")
        if env.num_envs * self.config.n_steps < 2:
            raise ValueError(f"A rollout of {env.num_envs} environment and n_steps=1 is too short; raise n_steps.")
        self.env, self._observation, self.price_range = env, None, files.price_range_in(env, self.price_range)

    def get_env(self) -> VectorEnv[Any, Any, Any] | None:
        """The environment to train on, if there is one."""
        return self.env

    def learn(
        self,
        total_timesteps: int,
        callback: Callback | None = None,
        progress_bar: bool = False,
        reset_num_timesteps: bool = True,
        log_interval: int = 1,
        tb_log_name: str = "PrancePPO",
    ) -> PrancePPO:
        """Trains for whole rollouts until at least `total_timesteps` more steps are done.

        Args:
            total_timesteps: Steps, counted over all environments.
            callback: Called with this agent after every update; False stops.
            progress_bar: Whether to show one.
            reset_num_timesteps: Whether to count from zero; False continues, also the schedules, where the environment
                stands.
            log_interval: Updates between entries of the log.
            tb_log_name: Name of the run in TensorBoard.

        Returns:
            This agent.

        Raises:
            ValueError: If there is no environment, or the numbers in training are no longer finite.
        """
        env = self._env()
        if reset_num_timesteps:
            self.num_timesteps, self.n_updates, self._observation = 0, 0, None
        first, last = self.num_timesteps, self.num_timesteps + total_timesteps
        log_to = configure_logger(self.verbose, self.tensorboard_log, tb_log_name, reset_num_timesteps)
        self.logger = log_to
        if self.config.standardise_observations and not self.policy.standardised:
            self._standardise(env)
        begun = time.perf_counter()
        with tqdm(total=total_timesteps, unit="step", disable=not progress_bar) as bar, closing(log_to):
            while self.num_timesteps < last:
                self._anneal(self.num_timesteps / last)
                rollout = self._collect(env)
                metrics = {**self._describe(rollout), **self._update(rollout)}
                if self.n_updates % log_interval == 0:
                    metrics["time/fps"] = int((self.num_timesteps - first) / (time.perf_counter() - begun))
                    metrics["time/total_timesteps"] = self.num_timesteps
                    for name, value in metrics.items():
                        log_to.record(name, value)
                    log_to.dump(self.num_timesteps)
                bar.update(min(self.num_timesteps, last) - first - bar.n)
                self.metrics = metrics
                if callback is not None and callback(self) is False:
                    break
        return self

    def actions(self, observations: NDArray[np.float32], deterministic: bool) -> NDArray[np.float32]:
        """Actions (B, A) of the environment's Box for observations (B, O)."""
        return self.policy.act(observations, None if deterministic else self._predict_generator)

    def save(self, path: str | Path) -> None:
        """Writes a folder with `config.json` and `model.safetensors`, see `agents.prance_ppo.files`."""
        files.save(self, Path(path))

    @classmethod
    def load(
        cls,
        path: str | Path,
        env: VectorEnv[Any, Any, Any] | str | None = None,
        device: str = "cpu",
        tensorboard_log: str | None = None,
        verbose: int = 0,
    ) -> PrancePPO:
        """Loads what `save` wrote.

        With `go_to(place)` and `learn(reset_num_timesteps=False)` training goes on as if it had not stopped; without a
        place, it goes on from a reset.

        Raises:
            FileNotFoundError: If the folder or a file in it is missing.
            ValueError: If a file is damaged, or the environment has other spaces.
        """
        folder = Path(path)
        saved = files.read(folder)
        try:
            agent = cls(None, saved.config, saved.seed, device, tensorboard_log, verbose, saved.spaces)
        except (AssertionError, AttributeError, TypeError, ValueError) as e:
            raise files.damaged(folder, e) from e
        files.restore(agent, folder, saved.digest)
        agent.price_range = saved.price_range
        if env is not None:
            agent.set_env(make_env(env, saved.config.n_envs) if isinstance(env, str) else env)
        return agent

    def place(self) -> dict[str, Any]:
        """Where the environment stands after an update; with it and what `save` wrote, training goes on bit for bit.

        Before the first rollout, and after one that was interrupted, there is no such moment: who goes to that place
        begins with a reset, as this agent does.

        Returns:
            Plain data and tensors, for `torch.save` and `torch.load(weights_only=True)`.
        """
        env: Any = self._env()
        running = torch.zeros(0) if self._observation is None else self._running.cpu()
        return {"environment": env.state_dict(), "running": running}

    def go_to(self, place: dict[str, Any]) -> None:
        """Puts the environment, one of this package, where it was; `learn(reset_num_timesteps=False)` then goes on.

        Raises:
            ValueError: If the place is in another environment.
        """
        env: Any = self._env()
        observation, _ = env.load_state_dict(place["environment"])
        self._running = place["running"].to(self.device)
        self._observation = observation if len(self._running) else None

    def _env(self) -> VectorEnv[Any, Any, Any]:
        if self.env is None:
            raise ValueError("The agent has no environment to learn in; pass env= to load(), or call set_env(env).")
        return self.env

    def _anneal(self, progress: float) -> None:
        """Learning rates and standard deviation at `progress` in [0, 1] of the training."""
        c = self.config
        for group, rate in zip(self.optimizer.param_groups, (c.actor_lr, c.critic_lr), strict=True):
            group["lr"] = rate * (1 + (c.final_lr - 1) * progress)
        if not c.learn_std:
            self.policy.set_std(c.initial_std + (c.final_std - c.initial_std) * progress)

    def _standardise(self, env: VectorEnv[Any, Any, Any]) -> None:
        """Plays as the untrained policy does, only to see what observations look like."""
        observation, _ = env.reset(seed=_seed_of(self.seed, 0, 1))
        steps = max(self.config.n_steps, -(-LEAST_SEEN // env.num_envs))
        seen = collect(env, self.policy, observation, steps, self.generator).observations
        self.policy.standardise(seen.flatten(0, 1))

    def _collect(self, env: VectorEnv[Any, Any, Any]) -> Rollout:
        c = self.config
        restart = c.restart_every and self.n_updates % c.restart_every == 0
        # None until the rollout is whole: one that is interrupted leaves the environment at no known moment.
        observation, self._observation = self._observation, None
        if restart or observation is None:
            observation, _ = env.reset(seed=_seed_of(self.seed, self.num_timesteps))
            self._running = torch.zeros(env.num_envs, 2, device=self.device)
        rollout = collect(env, self.policy, observation, c.n_steps, self.generator)
        self._observation = rollout.observation
        self.num_timesteps += c.n_steps * env.num_envs
        return rollout

    def _update(self, rollout: Rollout) -> dict[str, float]:
        """Improves policy and value on one rollout, which is not used again."""
        c, policy = self.config, self.policy
        advantages, values = advantages_of(rollout, policy, c.gamma, c.gae_lambda)
        returns = (advantages + values).flatten()
        observations, actions = rollout.observations[:-1].flatten(0, 1), rollout.actions.flatten(0, 1)
        with torch.no_grad():
            old_log_prob = policy.log_prob(observations, actions)
        scaled = ((advantages - advantages.mean()) / (advantages.std() + 1e-8)).flatten()
        size = len(observations)
        seen: list[Tensor] = []
        for _ in range(c.n_epochs):
            order = torch.randperm(size, generator=self.generator, device=self.device)
            shuffled = [
                x[order].split(c.batch_size or size) for x in (observations, actions, old_log_prob, scaled, returns)
            ]
            for batch in zip(*shuffled, strict=True):
                seen.append(self._step(*batch))
        self.n_updates += 1
        names = ("policy_gradient_loss", "value_loss", "loss", "approx_kl", "clip_fraction")
        means = torch.stack(seen).mean(0).tolist()
        metrics = {f"train/{name}": value for name, value in zip(names, means, strict=True)}
        if not np.isfinite(means).all():
            raise ValueError(f"Training has diverged ({metrics}); lower actor_lr and critic_lr.")
        spread = returns.var()
        return {
            **metrics,
            "train/entropy_loss": -policy.entropy().item(),
            "train/explained_variance": float("nan") if spread == 0 else (1 - advantages.var() / spread).item(),
            "train/std": policy.log_std.exp().mean().item(),
            "train/clip_range": c.clip_range,
            "train/learning_rate": self.optimizer.param_groups[0]["lr"],
            "train/n_updates": self.n_updates * c.n_epochs,
        }

    def _step(
        self, observations: Tensor, actions: Tensor, old_log_prob: Tensor, advantages: Tensor, returns: Tensor
    ) -> Tensor:
        """One step of the optimiser on a mini-batch; what there is to log about it."""
        c, policy = self.config, self.policy
        log_ratio = policy.log_prob(observations, actions) - old_log_prob
        ratio = log_ratio.exp()
        clipped = ratio.clamp(1 - c.clip_range, 1 + c.clip_range)
        policy_loss = -torch.min(ratio * advantages, clipped * advantages).mean()
        value_loss = nn.functional.mse_loss(policy.value(observations), returns)
        loss = policy_loss + value_loss - c.ent_coef * policy.entropy()
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self._actor_parameters, c.max_grad_norm)
        nn.utils.clip_grad_norm_(self._critic_parameters, c.max_grad_norm)
        self.optimizer.step()
        with torch.no_grad():
            approx_kl = (ratio - 1 - log_ratio).mean()
            clip_fraction = ((ratio - 1).abs() > c.clip_range).float().mean()
            return torch.stack([policy_loss, value_loss, loss, approx_kl, clip_fraction])

    def _describe(self, rollout: Rollout) -> dict[str, float]:
        """Means over the episodes that ended in a rollout."""
        ends = rollout.terminated | rollout.truncated
        metrics: dict[str, float] = {}
        finished = []
        for reward, end in zip(rollout.rewards, ends, strict=True):
            self._running = self._running + torch.stack([reward, torch.ones_like(reward)], dim=1)
            finished.append(self._running[end])
            self._running = self._running.masked_fill(end[:, None], 0)
        if ends.any():
            metrics["rollout/ep_rew_mean"], metrics["rollout/ep_len_mean"] = torch.cat(finished).mean(0).tolist()
        infos, config = rollout.final_infos, getattr(self._env().unwrapped, "config", None)
        if "is_success" in infos:
            metrics["rollout/success_rate"] = metrics["rollout/accuracy"] = float(infos["is_success"].mean())
        if "macs_fraction" in infos:
            metrics["rollout/macs_fraction"] = float(infos["macs_fraction"].mean())
        if "num_tokens" in infos:
            prefix = config.num_prefix_tokens if isinstance(config, SupernetConfig) else 1
            metrics["rollout/patches"] = float(infos["num_tokens"].mean() - prefix)
        if isinstance(config, SupernetConfig) and all(name in infos for name in NEEDED):
            metrics |= {tag: float(values.mean()) for tag, values in choices_of(infos, config.space).items()}
        return metrics


def _seed_of(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1)[0] // 2)


def make_env(env_id: str, n_envs: int) -> VectorEnv[Any, Any, Any]:
    """`n_envs` environments in autoreset mode SAME_STEP: one native batch if the id is this project's.

    Raises:
        gymnasium.error.Error: If the id is unknown.
    """
    same_step: dict[str, Any] = {"autoreset_mode": AutoresetMode.SAME_STEP}
    if str(gym.spec(env_id).vector_entry_point).startswith("prance_env."):
        return gym.make_vec(env_id, n_envs, vectorization_mode="vector_entry_point", **same_step)
    return gym.make_vec(env_id, n_envs, vectorization_mode="sync", vector_kwargs=same_step)


def _check_kind(env: Any) -> None:
    if not isinstance(env, VectorEnv):
        raise ValueError(
            f"PrancePPO takes a Gymnasium VectorEnv, not {type(env).__name__}; PranceVectorEnv(9, 'SAME_STEP') is one."
        )


def _check_spaces(observation: gym.Space[Any], action: gym.Space[Any]) -> tuple[gym.spaces.Box, gym.spaces.Box]:
    for name, space in (("observation", observation), ("action", action)):
        if not isinstance(space, gym.spaces.Box) or len(space.shape) != 1:
            raise ValueError(f"The {name} space is {space}; PrancePPO needs a Box of one dimension.")
    assert isinstance(observation, gym.spaces.Box)
    assert isinstance(action, gym.spaces.Box)
    if not action.is_bounded():
        raise ValueError(f"The action space is {action}; PrancePPO needs finite bounds, which its mean is mapped to.")
    return observation, action
