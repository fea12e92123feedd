"""Stage 2: training an agent with Stable-Baselines3 or PRANCE's own PPO, interruptible and resumable."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from agents.authors_selector import WIDTHS_PER_ACTION, PranceSelector, load_prance_selector
from agents.baselines import BaselineAgent, FullAgent, RandomAgent
from agents.prance_ppo.algorithm import PrancePPO
from agents.prance_ppo.config import PrancePPOConfig
from agents.prance_ppo.files import WEIGHTS
from agents.sb3.checkpoint import load_checkpoint, save_checkpoint, save_model
from agents.sb3.hyperparams import ALGORITHMS, algorithm_class, read_preset
from agents.sb3.make import make_sb3
from prance_env import PranceVectorEnv, make_sb3_env
from prance_env.rewards.prices import CostConditioning
from prance_env.settings import EnvSettings
from supernet.files import write_atomically, write_text

from ..evaluate.evaluation import Agent
from ..runs.folder import changed_settings, read_config, write_command
from ..runs.interrupt import deferred_interrupt

PRANCE_PPO = "prance_ppo"
PRANCE_PPO_TIMESTEPS = 400_000
ROLLOUTS_PER_CHECKPOINT = 10
# Off-policy algorithms have no rollouts: this many steps of all environments, a multiple of whole episodes, stand in.
OFF_POLICY_STEPS = 60
PRESETS = {"tuned": PrancePPOConfig.tuned, "paper": PrancePPOConfig.paper}


@dataclass(frozen=True)
class AgentTraining:
    """Settings of agent training.

    Attributes:
        env: Environment id.
        algo: Key of `agents.sb3.hyperparams.ALGORITHMS`, or "prance_ppo".
        preset: Settings of prance_ppo: "tuned" or "paper".
        conf_file: Hyper-parameters of an SB3 algorithm, a YAML file in rl-zoo's format; None is this package's preset.
        checkpoint: Folder with the supernet; None is the bundled one.
        observation: Observation mode.
        total_timesteps: Decisions; None: what suits the algorithm.
        n_envs: Images at a time; None: what suits the algorithm.
        macs_weight: Price of all MACs of the full network; (low, high): a price for every episode, drawn log-uniformly
            and observed, so that one agent serves every budget.
        seed: Fixes everything.
        device: Torch device of the supernet and of prance_ppo's policy; that of SB3 stays on the CPU.
        dataset: Images, see `PranceEnv`; None: those of the environment id.
        token_mode: How patches leave, see `PranceEnv`; None: as the checkpoint says.
        dtype: Precision of the supernet.

    Raises:
        ValueError: If the algorithm or the preset is unknown, or the range of prices is not 0 < low < high.
        FileNotFoundError: If there is no such file of hyper-parameters.
        ModuleNotFoundError: If the algorithm needs sb3-contrib, and that is missing.
    """

    env: str = "Prance-Digits-v0"
    algo: str = "ppo"
    preset: str = "tuned"
    checkpoint: str | None = None
    observation: str = "cls"
    total_timesteps: int | None = None
    n_envs: int | None = None
    macs_weight: float | tuple[float, float] = 0.05
    seed: int = 0
    device: str = "cpu"
    conf_file: str | None = None
    dataset: str | dict[str, Any] | None = None
    token_mode: str | None = None
    dtype: str = "float32"

    def __post_init__(self) -> None:
        known = sorted([*ALGORITHMS, PRANCE_PPO])
        if self.algo not in known:
            raise ValueError(f"algo={self.algo!r} is unknown; choose one of {known}.")
        if self.preset not in PRESETS or (self.preset != "tuned" and self.algo != PRANCE_PPO):
            raise ValueError(
                f"preset={self.preset!r} is unknown to {self.algo}; {PRANCE_PPO} has {sorted(PRESETS)}, others 'tuned'."
            )
        CostConditioning.from_plain(self.cost_conditioning)
        if self.algo == PRANCE_PPO:
            if self.conf_file is not None:
                raise ValueError(f"conf_file={self.conf_file!r} is for SB3's algorithms; {PRANCE_PPO} takes preset=.")
            return
        read_preset(self.algo, self.conf_file, self.env)

    @property
    def timesteps(self) -> int:
        """Decisions, also if none are given."""
        if self.total_timesteps is not None:
            return self.total_timesteps
        if self.algo == PRANCE_PPO:
            return PRANCE_PPO_TIMESTEPS
        return read_preset(self.algo, self.conf_file, self.env).n_timesteps

    @property
    def file(self) -> str:
        """Suffix of saved agents: SB3 writes zip files, PrancePPO folders."""
        return "" if self.algo == PRANCE_PPO else ".zip"

    @property
    def cost_conditioning(self) -> tuple[float, float] | None:
        """The range of prices, None if there is but one."""
        return None if isinstance(self.macs_weight, int | float) else self.macs_weight

    @property
    def reward(self) -> dict[str, object]:
        """Potential-based Result-to-Go: dense, and with the same best policy as the terminal reward."""
        price = {"macs_weight": self.macs_weight} if self.cost_conditioning is None else {}
        return {"mode": "potential", "accuracy": "mixed", **price}


class _Checkpoints(BaseCallback):
    """Saves at rollout boundaries and starts every stretch between two checkpoints from (seed, time step) alone.

    A resumed run therefore sees the same random numbers and images as an uninterrupted one, bit for bit on the CPU.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        super().__init__()
        self.folder, self.seed = folder, seed
        self.rollout = 0
        self._ends: list[tuple[float, float]] = []

    def _init_callback(self) -> None:
        # SB3 calls every training step of an off-policy algorithm a rollout.
        frequency = getattr(getattr(self.model, "train_freq", None), "frequency", OFF_POLICY_STEPS)
        self.rollouts_per_row = max(1, OFF_POLICY_STEPS // frequency)

    def _on_rollout_start(self) -> None:
        if self.rollout % (self.rollouts_per_row * ROLLOUTS_PER_CHECKPOINT) == 0:
            if self.num_timesteps > 0:
                write_atomically(self.folder / "last.zip", lambda name: save_checkpoint(self.model, Path(name)))
            seed = int(np.random.SeedSequence([self.seed, self.num_timesteps]).generate_state(1)[0] // 2)
            self.model.set_random_seed(seed)
            env = self.model.get_env()
            assert env is not None
            self.model._last_obs = env.reset()  # type: ignore[assignment]
            self.model._last_episode_starts = np.ones(env.num_envs, dtype=bool)
        self.rollout += 1

    def _on_step(self) -> bool:
        self._ends += [(i["is_success"], i["macs_fraction"]) for i in self.locals["infos"] if "macs_fraction" in i]
        return True

    def _on_rollout_end(self) -> None:
        if self.rollout % self.rollouts_per_row or not self._ends:
            return
        accuracy, macs_fraction = np.mean(self._ends, axis=0)
        self._ends.clear()
        self.logger.record("rollout/accuracy", accuracy)
        self.logger.record("rollout/macs_fraction", macs_fraction)
        row = {"timesteps": self.num_timesteps, "accuracy": accuracy, "macs_fraction": macs_fraction}
        with (self.folder / "metrics.jsonl").open("a") as f:
            f.write(json.dumps(row) + "\n")


def _forget_after(metrics: Path, timesteps: int) -> None:
    """Drops the rows of the stretch that a resumed run repeats."""
    rows = metrics.read_text().splitlines(keepends=True)
    write_text(metrics, "".join(r for r in rows if json.loads(r)["timesteps"] <= timesteps))


def train_agent(settings: AgentTraining, out: Path, resume: bool = False, progress_bar: bool = True) -> Agent:
    """Trains an agent and writes it to `out`.

    Args:
        settings: What to train.
        out: Run folder: `model` and `last` (SB3: `.zip` files, PrancePPO: folders), `config.yml`, `command.txt`,
            `metrics.jsonl`, TensorBoard events.
        resume: Continue from `out`'s last checkpoint.
        progress_bar: Whether to show one.

    Returns:
        The SB3 model or the PrancePPO.

    Raises:
        FileExistsError: If `out` holds a run and `resume` is False.
        FileNotFoundError: If `resume` is True and there is no checkpoint.
        ValueError: If the checkpoint was written with other settings.
    """
    last = out / f"last{settings.file}"
    held = [out / f"{name}{suffix}" for name in ("last", "model") for suffix in ("", ".zip")]
    if not resume and any(path.exists() for path in held):
        raise FileExistsError(f"{out} holds a run already; pass --resume to continue it, or another --out.")
    if resume:
        if not any(path.exists() for path in held):
            raise FileNotFoundError(f"{last} does not exist, so there is nothing to resume; drop --resume.")
        if changed := changed_settings(out, settings):
            raise ValueError(f"{out} was trained with other values of {changed}; resume with the same settings.")
        if not last.exists():
            raise FileNotFoundError(f"{last} does not exist, so there is nothing to resume; drop --resume.")
    else:
        write_command(out, settings)
    train = _train_prance_ppo if settings.algo == PRANCE_PPO else _train_sb3
    return train(settings, out, last, resume, progress_bar)


def env_arguments(settings: AgentTraining) -> dict[str, Any]:
    """Arguments of the environment of a training."""
    return {
        "checkpoint": settings.checkpoint,
        "observation": settings.observation,
        "reward": settings.reward,
        "device": settings.device,
        "token_mode": settings.token_mode,
        "dtype": settings.dtype,
        **({} if settings.dataset is None else {"dataset": settings.dataset}),
        "cost_conditioning": settings.cost_conditioning,
    }


def _train_sb3(settings: AgentTraining, out: Path, last: Path, resume: bool, progress_bar: bool) -> Agent:
    n_envs = settings.n_envs or read_preset(settings.algo, settings.conf_file, settings.env).n_envs
    env = make_sb3_env(settings.env, n_envs, seed=settings.seed, **env_arguments(settings))
    if resume:
        model = load_checkpoint(algorithm_class(settings.algo), last, env)
        _forget_after(out / "metrics.jsonl", model.num_timesteps)
    else:
        model = make_sb3(settings.algo, env, settings.seed, preset=settings.conf_file, tensorboard_log=str(out))
    callback = _Checkpoints(out, settings.seed)
    remaining = settings.timesteps - model.num_timesteps
    # Off-policy algorithms count episodes, and would otherwise log at every fourth.
    log_interval = OFF_POLICY_STEPS // 3 * n_envs if isinstance(model, OffPolicyAlgorithm) else 1
    try:
        if remaining > 0:
            model.learn(
                remaining,
                callback=callback,
                log_interval=log_interval,
                progress_bar=progress_bar,
                tb_log_name=settings.algo,
                reset_num_timesteps=not resume,
            )
    except KeyboardInterrupt:
        print(f"\nStopped at {model.num_timesteps} of {settings.timesteps} steps; continue with --resume.")
        raise
    write_atomically(out / "model.zip", lambda name: save_model(model, Path(name)))
    return model


def _train_prance_ppo(settings: AgentTraining, out: Path, last: Path, resume: bool, progress_bar: bool) -> Agent:
    env_settings = EnvSettings.from_id(
        settings.env,
        checkpoint=settings.checkpoint,
        device=settings.device,
        token_mode=settings.token_mode,
        dataset=settings.dataset,
    )
    config = prance_ppo_config(settings, env_settings.config().space.num_decisions)
    kwargs = {**gym.spec(settings.env.removeprefix("prance_env:")).kwargs, **env_arguments(settings)}
    env = PranceVectorEnv(config.n_envs, AutoresetMode.SAME_STEP, **kwargs)
    if resume:
        agent = PrancePPO.load(last, env, settings.device, tensorboard_log=str(out))
        _forget_after(out / "metrics.jsonl", agent.num_timesteps)
    else:
        agent = PrancePPO(env, config, settings.seed, settings.device, tensorboard_log=str(out))
    with deferred_interrupt() as pressed:
        announced = stopped = False

        def after_update(agent: PrancePPO) -> bool:
            nonlocal announced, stopped
            named = {k: agent.metrics[f"rollout/{k}"] for k in ("accuracy", "macs_fraction")}
            with (out / "metrics.jsonl").open("a") as f:
                f.write(json.dumps({"timesteps": agent.num_timesteps, **named}) + "\n")
            if agent.n_updates % agent.config.restart_every == 0:
                agent.save(last)
                stopped = pressed()
            elif pressed() and not announced:
                announced = True
                print("\nStopping at the next checkpoint, in a moment; Ctrl-C again stops now.")
            return not stopped

        remaining = settings.timesteps - agent.num_timesteps
        if remaining > 0:
            agent.learn(remaining, after_update, progress_bar, not resume, tb_log_name=settings.algo)
    if stopped and agent.num_timesteps < settings.timesteps:
        print(f"\nStopped at {agent.num_timesteps} of {settings.timesteps} steps; continue with --resume.")
        raise KeyboardInterrupt
    agent.save(out / "model")
    return agent


def prance_ppo_config(settings: AgentTraining, num_decisions: int) -> PrancePPOConfig:
    """The preset, with rollouts of as many whole episodes as make up its number of transitions."""
    config = PRESETS[settings.preset](restart_every=ROLLOUTS_PER_CHECKPOINT)
    n_envs = settings.n_envs or config.n_envs
    episodes = max(1, round(config.n_envs * config.n_steps / (n_envs * num_decisions)))
    return replace(config, n_envs=n_envs, n_steps=episodes * num_decisions)


def load_agent(name: str, settings: EnvSettings, seed: int = 0) -> Agent:
    """An agent by name or path.

    Args:
        name: "full", "random", a run folder of `train_agent`, a JSON file that a baseline saved, a folder that
            `PrancePPO.save` wrote, a file that `PranceSelector.save` wrote, or the authors' selector as a `.pth` file.
            SB3's `model.zip` holds pickled objects: load only what you trust.
        settings: Environment that the agent is to act in.
        seed: Of the random agent.

    Raises:
        FileNotFoundError: If there is nothing at that path.
        ValueError: If the agent was made for other spaces.
    """
    config = settings.config()
    if name in ("full", "random"):
        if name == "full":
            return FullAgent(config, settings.observation, settings.normalize_actions)
        return RandomAgent(config, settings.observation, settings.normalize_actions, seed)
    path = Path(name)
    if path.suffix == ".json":
        agent = BaselineAgent.load(path)
        if agent.config != config:
            raise ValueError(f"{name} was made for another supernet than this environment's.")
        return agent
    model = _load_trained(path, settings)
    observation_space, action_space = settings.spaces()
    sizes = (model.observation_space.shape, observation_space.shape)
    fits = sizes[0] == sizes[1] if isinstance(model, PranceSelector) else model.observation_space == observation_space
    if not fits or model.action_space != action_space:
        raise ValueError(
            f"{name} was trained for observations {model.observation_space} and actions {model.action_space}; this "
            f"environment has {observation_space} and {action_space}. Use the settings it was trained with."
        )
    return model


def _load_trained(path: Path, settings: EnvSettings) -> PrancePPO | PranceSelector | BaseAlgorithm:
    """An agent with weights, by what is at `path`."""
    if path.suffix == ".safetensors":
        return PranceSelector.load(path)
    if path.suffix in (".pth", ".pt"):
        num_rates = settings.config().space.action_size - WIDTHS_PER_ACTION
        return load_prance_selector(path, num_rates, settings.normalize_actions)
    if (path / WEIGHTS).is_file():
        return PrancePPO.load(path)
    if (path / "model").is_dir():
        return PrancePPO.load(path / "model")
    if (path / "model.zip").is_file():
        return algorithm_class(read_config(path)["algo"]).load(path / "model.zip", device="cpu")
    raise FileNotFoundError(
        f"{str(path)!r} is no agent: pass 'full', 'random', a .json file, a run folder with a model, a folder that "
        "PrancePPO.save has written, a selector's .safetensors, or the .pth file of PRANCE's authors."
    )
