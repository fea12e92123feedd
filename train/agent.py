"""Stage 2: training an agent with Stable-Baselines3, interruptible and resumable."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.utils import set_random_seed

from agents.baselines import BaselineAgent, FullAgent, RandomAgent
from agents.sb3 import ALGORITHMS, make_sb3
from prance_env import make_sb3_env
from prance_env.lanes import EnvSettings
from supernet.files import write_atomically, write_text

from .evaluate import Agent
from .run_folder import read_config, write_command

LAST, MODEL = "last.zip", "model.zip"
ROLLOUTS_PER_CHECKPOINT = 10


@dataclass(frozen=True)
class AgentTraining:
    """Settings of agent training.

    Attributes:
        env: Environment id.
        algo: Key of `agents.sb3.ALGORITHMS`.
        checkpoint: Folder with the supernet; None is the bundled one.
        observation: Observation mode.
        total_timesteps: Decisions.
        n_envs: Images at a time.
        macs_weight: Price of all MACs of the full network.
        seed: Fixes everything.
        device: Torch device of the supernet; the policy stays on the CPU.
    """

    env: str = "Prance-Digits-v0"
    algo: str = "ppo"
    checkpoint: str | None = None
    observation: str = "cls"
    total_timesteps: int = 400_000
    n_envs: int = 256
    macs_weight: float = 0.05
    seed: int = 0
    device: str = "cpu"

    @property
    def reward(self) -> dict[str, object]:
        """Potential-based Result-to-Go: dense, and with the same best policy as the terminal reward."""
        return {"mode": "potential", "accuracy": "mixed", "macs_weight": self.macs_weight}


class _Checkpoints(BaseCallback):
    """Saves at rollout boundaries and starts every stretch between two checkpoints from (seed, time step) alone.

    A resumed run therefore sees the same random numbers and images as an uninterrupted one, bit for bit on the CPU.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        super().__init__()
        self.folder, self.seed = folder, seed
        self.rollout = 0
        self._ends: list[tuple[float, float]] = []

    def _on_rollout_start(self) -> None:
        if self.rollout % ROLLOUTS_PER_CHECKPOINT == 0:
            if self.num_timesteps > 0:
                write_atomically(self.folder / LAST, lambda name: _save(self.model, Path(name)))
            seed = int(np.random.SeedSequence([self.seed, self.num_timesteps]).generate_state(1)[0] // 2)
            set_random_seed(seed)
            env = self.model.get_env()
            assert env is not None
            env.seed(seed)
            self.model._last_obs = env.reset()  # type: ignore[assignment]
            self.model._last_episode_starts = np.ones(env.num_envs, dtype=bool)
        self.rollout += 1

    def _on_step(self) -> bool:
        self._ends += [(i["is_success"], i["macs_fraction"]) for i in self.locals["infos"] if "macs_fraction" in i]
        return True

    def _on_rollout_end(self) -> None:
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


def _save(model: BaseAlgorithm, path: Path) -> None:
    with path.open("wb") as f:
        model.save(f)


def train_agent(settings: AgentTraining, out: Path, resume: bool = False, progress_bar: bool = True) -> BaseAlgorithm:
    """Trains an agent and writes it to `out`.

    Args:
        settings: What to train.
        out: Run folder: `model.zip`, `last.zip`, `config.yml`, `command.txt`, `metrics.jsonl`, TensorBoard events.
        resume: Continue from `out/last.zip`.
        progress_bar: Whether to show one.

    Returns:
        The SB3 model.

    Raises:
        FileExistsError: If `out` holds a run and `resume` is False.
        FileNotFoundError: If `resume` is True and there is no checkpoint.
        ValueError: If the checkpoint was written with other settings.
    """
    if not resume and ((out / LAST).exists() or (out / MODEL).exists()):
        raise FileExistsError(f"{out} holds a run already; pass --resume to continue it, or another --out.")
    if resume:
        if not (out / LAST).is_file():
            raise FileNotFoundError(f"{out / LAST} does not exist, so there is nothing to resume; drop --resume.")
        changed = sorted(k for k, v in asdict(settings).items() if read_config(out).get(k) != v)
        if changed:
            raise ValueError(f"{out} was trained with other values of {changed}; resume with the same settings.")
    if not resume:
        write_command(out, settings)
    env = make_sb3_env(
        settings.env,
        settings.n_envs,
        seed=settings.seed,
        checkpoint=settings.checkpoint,
        observation=settings.observation,
        reward=settings.reward,
        device=settings.device,
    )
    if resume:
        model = ALGORITHMS[settings.algo].load(out / LAST, env=env)
        _forget_after(out / "metrics.jsonl", model.num_timesteps)
    else:
        model = make_sb3(settings.algo, env, seed=settings.seed, tensorboard_log=str(out))
    callback = _Checkpoints(out, settings.seed)
    remaining = settings.total_timesteps - model.num_timesteps
    try:
        if remaining > 0:
            model.learn(
                remaining,
                callback=callback,
                progress_bar=progress_bar,
                tb_log_name=settings.algo,
                reset_num_timesteps=not resume,
            )
    except KeyboardInterrupt:
        print(f"\nStopped at {model.num_timesteps} of {settings.total_timesteps} steps; continue with --resume.")
        raise
    write_atomically(out / MODEL, lambda name: _save(model, Path(name)))
    return model


def load_agent(name: str, settings: EnvSettings, seed: int = 0) -> Agent:
    """An agent by name or path.

    Args:
        name: "full", "random", a run folder of `train_agent`, or a JSON file that a baseline saved. SB3's `model.zip`
            holds pickled objects: load only what you trust.
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
    if not (path / MODEL).is_file():
        raise FileNotFoundError(f"{name!r} is no agent: pass 'full', 'random', a .json file or a folder with {MODEL}.")
    model = ALGORITHMS[read_config(path)["algo"]].load(path / MODEL, device="cpu")
    observation_space, action_space = settings.spaces()
    if model.observation_space != observation_space or model.action_space != action_space:
        raise ValueError(
            f"{name} was trained for observations {model.observation_space} and actions {model.action_space}; this "
            f"environment has {observation_space} and {action_space}. Use the settings it was trained with."
        )
    return model
