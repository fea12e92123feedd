"""`prance bench-env`: what an episode costs, in full forward passes of the same network over the same images.

Everything is timed in one interleaved run with the same uniformly random actions, and the median counts. Three columns:
the environment; with PPO's `predict` at every decision; with PPO's learning as well. In the last two the actions that
are taken stay the random ones, so that the columns differ by what the policy and its training cost and by nothing else.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import timm
import torch
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray
from rich.console import Console
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecMonitor
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn
from tqdm import tqdm
from tyro.conf import arg

from agents import make_sb3
from agents.prance_ppo.algorithm import PrancePPO
from agents.prance_ppo.config import PrancePPOConfig
from prance_env import ImageDataset, PranceVecEnv, PranceVectorEnv, register_dataset
from prance_env.images.loading import DIGITS_SCENES, load_dataset
from prance_env.settings import EnvArguments
from prance_env.spaces import decode_actions
from prance_env.supernets import BUNDLED, DTYPES, checkpoint_folder
from supernet import SupernetConfig, create_supernet, runtime, save_pretrained
from supernet.checkpoint import load_config

from ..machine import machine, machine_in_words
from ..options import SupernetName, environment_options
from ..report.tables import Table, write_json
from ..runs.folder import plain
from .clock import check_rounds, time_interleaved

FULL, FIRST, UNCACHED = "full forward", "first visit", "prefix not cached"
CACHED, SB3, AUTHORS = "prefix cached", "prefix cached, SB3", "as PRANCE's authors"
TENSORS, LAUNCHED = "prefix cached, tensors", "prefix cached, tensors, no graphs"
ENGINE, LEARNING, TIMM = "engine alone", "tensors + PrancePPO", "timm"
POLICY, TRAINING = "SB3 + policy", "SB3 + training"
# Arguments of an environment that concern image files or the cache, which is what is measured.
OF_FILES = ("dataset", "num_workers", "on_error", "cache_mb", "cache_dir")
WithoutFiles = Annotated[EnvArguments, arg(constructor_factory=lambda: environment_options(OF_FILES))]


@dataclass(frozen=True)
class EnvBenchSettings:
    """What `prance bench-env` measures.

    Raises:
        ValueError: If a number is out of range.
    """

    supernet: SupernetName = "prance_vit_tiny"
    """Registered supernet. Only digits has weights and images; others get random ones, which take as long."""
    num_images: int = 256
    """Images at a time."""
    repeats: int = 3
    """Timed rounds, of which the median counts."""
    warmup: int = 1
    """Rounds before."""
    seed: int = 0
    """Fixes actions, images and weights."""
    timm: str | None = None
    """On a GPU, also time the forward pass of this model of timm, with random weights, on as many images."""
    environment: WithoutFiles = field(default_factory=EnvArguments)
    """What else the environment takes; images are random with a checkpoint, too. The policy is SB3's on the CPU."""

    def __post_init__(self) -> None:
        check_rounds(self.repeats, self.warmup)
        most = DIGITS_SCENES["train"] if self.bundled else None
        if self.num_images < 2 or (most is not None and self.num_images > most):
            raise ValueError(
                f"num_images={self.num_images} must be at least 2{f' and at most {most}' if most else ''}."
            )

    @property
    def bundled(self) -> bool:
        """Whether weights and images are those of the package."""
        return self.environment.get("checkpoint") is None and self.supernet in BUNDLED

    @property
    def device(self) -> str:
        """Torch device of the supernet."""
        return self.environment.get("device", "cpu")


class RandomActions(VecEnvWrapper):
    """Takes random actions instead of those it is given, so that every policy meets the same episodes.

    Args:
        venv: Inside.
        actions: (steps, N, A), taken in turn.
    """

    def __init__(self, venv: VecEnv, actions: NDArray[np.float32]) -> None:
        super().__init__(venv)
        self._actions, self._next = actions, 0

    def reset(self) -> Any:
        """Resets the environments inside."""
        return self.venv.reset()

    def step_async(self, actions: NDArray[Any]) -> None:
        """Announces the next of the random actions."""
        self.venv.step_async(self._actions[self._next])
        self._next = (self._next + 1) % len(self._actions)

    def step_wait(self) -> VecEnvStepReturn:
        """What the environments inside make of the random actions."""
        return self.venv.step_wait()


def make_task(settings: EnvBenchSettings, folder: Path) -> EnvArguments:
    """Arguments of an environment over exactly N images: digits' own, or random ones.

    Args:
        settings: Which supernet, and N.
        folder: Where random weights are written if there are none; its name becomes part of the data set's.

    Raises:
        ValueError: If the supernet is unknown.
        FileNotFoundError: If the checkpoint is missing.
    """
    torch.manual_seed(settings.seed)
    n, checkpoint = settings.num_images, settings.environment.get("checkpoint")
    if settings.bundled:
        digits, rows = load_dataset("digits", "train"), np.arange(n)
        images, labels = digits.fetch(rows), digits.labels[:n]
    else:
        if checkpoint is None:
            save_pretrained(create_supernet(settings.supernet), folder)
            checkpoint = str(folder)
        c = load_config(checkpoint_folder(settings.supernet, checkpoint))
        images = torch.randint(256, (n, c.in_chans, c.img_size, c.img_size), dtype=torch.uint8)
        labels = torch.randint(c.num_classes, (n,))
    name = f"bench-env-{folder.name}"
    dataset = ImageDataset.from_tensors(images, labels, name=name)
    register_dataset(name, lambda split: dataset)
    return {**settings.environment, "supernet": settings.supernet, "checkpoint": checkpoint, "dataset": name}


def contenders(settings: EnvBenchSettings, task: EnvArguments) -> dict[str, Callable[[], Any]]:
    """What is timed: every call plays one episode on each of N images, or runs the full network over them.

    Args:
        settings: The number of images, N, and the seed.
        task: From `make_task`.
    """
    n, index = settings.num_images, np.arange(settings.num_images)
    # Told which images, since those that are drawn twice would be computed once where the prefix is not cached.
    uncached: EnvArguments = {**task, "cache_mb": 0.0}
    fresh = PranceVectorEnv(n, AutoresetMode.DISABLED, **uncached)
    fresh.reset(seed=settings.seed, options={"index": index})
    engine, space = fresh.lanes.engine, fresh.config.space
    images = engine.dataset.fetch(index)
    shape = (space.num_decisions, n, space.action_size)
    actions = np.random.default_rng(settings.seed).uniform(-1, 1, shape).astype(np.float32)

    def forward(times: int) -> None:
        with torch.inference_mode():
            for _ in range(times):
                engine.net(images.to(settings.device)).argmax(1).cpu()

    def from_reset(forget: bool) -> None:
        if forget:
            engine.cache.known[:] = False
        fresh.reset(options={"index": index})
        for action in actions:
            fresh.step(action)

    def going_on(envs: PranceVectorEnv | VecEnv) -> None:
        for action in actions:
            envs.step(action)

    lasting, *inner = (PranceVectorEnv(n, AutoresetMode.SAME_STEP, **task) for _ in range(4))
    lasting.reset(seed=settings.seed, options={"index": index})  # all four share the cache that this fills
    plain, watched, learned = (VecMonitor(PranceVecEnv(envs)) for envs in inner)
    plain.seed(settings.seed)
    plain.reset()
    policy = make_sb3("ppo", watched, settings.seed)
    # Rollouts of one episode; mini-batches and passes over every sample stay the preset's.
    learner = make_sb3("ppo", RandomActions(learned, actions), settings.seed, n_steps=space.num_decisions)
    latest = [watched.reset()]

    def with_policy() -> None:
        for action in actions:
            policy.predict(latest[0])  # type: ignore[arg-type]
            latest[0] = watched.step(action)[0]

    on_gpu = as_tensors(settings, task, actions) if torch.device(settings.device).type == "cuda" else {}
    return on_gpu | {
        FULL: lambda: forward(1),
        FIRST: lambda: from_reset(True),
        UNCACHED: lambda: from_reset(False),
        CACHED: lambda: going_on(lasting),
        SB3: lambda: going_on(plain),
        POLICY: with_policy,
        TRAINING: lambda: learner.learn(n * space.num_decisions, reset_num_timesteps=False),
        AUTHORS: lambda: forward(space.num_decisions + 1),
    }


def as_tensors(
    settings: EnvBenchSettings, task: EnvArguments, actions: NDArray[np.float32]
) -> dict[str, Callable[[], Any]]:
    """What is timed on a GPU only: an episode on each of N images as tensors that stay there, and timm's model.

    Args:
        settings: The number of images, N, the seed and the device.
        task: From `make_task`.
        actions: (decisions, N, A) what is chosen, but for the agent that learns, which chooses itself.
    """
    n, index = settings.num_images, np.arange(settings.num_images)
    envs, learned = (PranceVectorEnv(n, AutoresetMode.SAME_STEP, "torch", **task) for _ in range(2))
    envs.reset(seed=settings.seed, options={"index": index})
    engine, reward, steps = envs.lanes.engine, envs.lanes.reward, len(actions)
    there = torch.from_numpy(actions).to(settings.device)
    config = replace(PrancePPOConfig.tuned(), n_envs=n, n_steps=steps)
    agent = PrancePPO(learned, config, settings.seed, settings.device)

    def going_on(graphs: bool) -> None:
        with runtime.use(graphs=graphs):
            for action in there:
                envs.step(action)

    def alone() -> None:
        episodes = engine.start(index)
        for action in there:
            episodes = engine.step(episodes, decode_actions(action, envs.settings.normalize_actions), reward)

    return _timm_forward(settings, envs.config) | {
        ENGINE: alone,
        TENSORS: lambda: going_on(True),
        LAUNCHED: lambda: going_on(False),
        LEARNING: lambda: agent.learn(n * steps, reset_num_timesteps=False),
    }


def _timm_forward(settings: EnvBenchSettings, config: SupernetConfig) -> dict[str, Callable[[], Any]]:
    if settings.timm is None:
        return {}
    dtype = DTYPES[settings.environment.get("dtype", "float32")]
    shape = (settings.num_images, config.in_chans, config.img_size, config.img_size)
    model = timm.create_model(settings.timm, in_chans=config.in_chans, img_size=config.img_size)
    model.eval().to(settings.device, dtype)
    images = torch.randn(shape, device=settings.device, dtype=dtype)

    def forward() -> None:
        with torch.inference_mode():
            model(images)

    return {TIMM: forward}


ROWS = (TIMM, FULL, FIRST, UNCACHED, ENGINE, TENSORS, LAUNCHED, LEARNING, CACHED, SB3, AUTHORS)
WITHOUT_POLICY = (TIMM, FULL, LEARNING)


def summarise(seconds: dict[str, list[float]], num_images: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows and targets.

    Args:
        seconds: Seconds of every round, by contender.
        num_images: N.

    Returns:
        One row per way to play an episode, and one per target. What policy and training add is measured on the SB3 face
        and added to every row; differences and ratios are medians over the rounds, of what was timed side by side.
    """
    policy, training = (_median(seconds[name], seconds[SB3], lambda a, b: a - b) for name in (POLICY, TRAINING))
    full = statistics.median(seconds[FULL])
    rows = []
    for name in (name for name in ROWS if name in seconds):
        middle = statistics.median(seconds[name])
        columns = {"environment": middle}
        if name not in WITHOUT_POLICY:
            columns |= {"with_policy": middle + policy, "with_training": middle + training}
        rows.append(
            {
                "contender": name,
                "ms_per_episode": {k: 1e3 * v / num_images for k, v in columns.items()},
                "full_forwards": {k: v / full for k, v in columns.items()},
                "episodes_per_second": {k: num_images / v for k, v in columns.items()},
                "episodes_per_second_vs_authors": _median(seconds[AUTHORS], seconds[name], lambda a, b: a / b),
                "seconds": seconds[name],
            }
        )
    ratio = {name: _median(seconds[name], seconds[FULL], lambda a, b: a / b) for name in (UNCACHED, CACHED)}
    sb3 = _median(seconds[SB3], seconds[CACHED], lambda a, b: a / b) - 1
    faster = _median(seconds[AUTHORS], seconds[CACHED], lambda a, b: a / b)
    targets: list[dict[str, Any]] = [
        {"what": f"{UNCACHED}, in full forwards", "value": ratio[UNCACHED], "at_most": 1.2},
        {"what": f"{CACHED}, in full forwards", "value": ratio[CACHED], "at_most": 1.0},
        {"what": "what the SB3 face adds", "value": sb3, "at_most": 0.05},
        {"what": f"{CACHED}, episodes/s over the authors'", "value": faster, "at_least": 5.0},
    ]
    for t in targets:
        t["met"] = t["value"] <= t["at_most"] if "at_most" in t else t["value"] >= t["at_least"]
    return rows, targets


def _median(a: list[float], b: list[float], combine: Callable[[float, float], float]) -> float:
    return statistics.median(combine(x, y) for x, y in zip(a, b, strict=True))


def run_bench_env(settings: EnvBenchSettings, out: Path | None) -> dict[str, Any]:
    """Measures, prints a table, and writes `out` (JSON).

    Returns:
        What is written: machine, settings, rows and targets.
    """
    rounds = settings.warmup + settings.repeats
    with tempfile.TemporaryDirectory(prefix="prance-") as folder:
        calls = contenders(settings, make_task(settings, Path(folder)))
        with tqdm(total=len(calls) * rounds, desc="bench-env", unit="call", mininterval=1) as bar:
            seconds = time_interleaved(calls, settings.device, settings.warmup, settings.repeats, bar)
    rows, targets = summarise(seconds, settings.num_images)
    result = {"machine": machine(settings.device), "settings": plain(settings), "rows": rows, "targets": targets}
    console = Console()
    _print(result, settings, console)
    if out is not None:
        write_json(out, result)
        console.print(f"Written to {out}")
    return result


def _print(result: dict[str, Any], settings: EnvBenchSettings, console: Console) -> None:
    info = result["machine"]
    console.print(
        f"{machine_in_words(info)}, {settings.supernet}, {settings.num_images} images at a time, uniformly random "
        f"actions, median of {settings.repeats}"
    )
    table = Table(title="An episode, in full forwards (milliseconds)")
    for column in ("", "environment", "+ policy", "+ training", "episodes/s", "/ authors"):
        table.add_column(column, justify="right" if column else "left")
    for row in result["rows"]:
        cells = [f"{value:.2f}" for value in row["full_forwards"].values()]
        cells[0] += f" ({row['ms_per_episode']['environment']:.2f})"
        speed = f"{row['episodes_per_second']['environment']:.0f}"
        table.add_row(row["contender"], *(cells + [""] * 2)[:3], speed, f"{row['episodes_per_second_vs_authors']:.1f}")
    console.print(table)
    for t in result["targets"]:
        wanted = f"<= {t['at_most']:g}" if "at_most" in t else f">= {t['at_least']:g}"
        console.print(f"{'met   ' if t['met'] else 'MISSED'}  {t['what']}: {t['value']:.3f} (wanted {wanted})")
