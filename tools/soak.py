"""Environments under random use for hours, and an error if anything grows: `python -m tools.soak --minutes 30`.

A round makes every face anew (single, native in three autoreset modes, tensors, Stable-Baselines3, and one over files
that worker processes decode), calls it at random and closes it. After a round the process should hold what it held
after any other.
"""

from __future__ import annotations

import ctypes
import gc
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import tyro
from gymnasium.vector import AutoresetMode
from PIL import Image
from tqdm import tqdm

from prance_env import PranceEnv, PranceVectorEnv, make_sb3_env
from prance_env.settings import shared_engine
from supernet.files import write_text
from train.options import set_threads

ENV_ID = "Prance-Digits-v0"
LEAST_ROUNDS = 8  # four quarters of two
WAIT = 60.0  # seconds for workers that are ending


@dataclass(frozen=True)
class Held:
    """What the process holds.

    Attributes:
        megabytes: Resident memory.
        file_descriptors: Open ones.
        threads: Of the operating system, not only Python's.
        children: Processes.
    """

    megabytes: float
    file_descriptors: int
    threads: int
    children: int


@dataclass
class Soak:
    """Use environments at random for a while and fail if memory, file descriptors, threads or processes grow.

    For example:

        python -m tools.soak --minutes 30
        python -m tools.soak --minutes 1 --calls 100 --out soak.json
    """

    minutes: float = 30.0
    """How long; at least eight rounds are run."""
    calls: int = 300
    """Random calls to every environment of a round."""
    num_envs: int = 8
    """Images at a time."""
    max_megabytes: float = 16.0
    """Growth of resident memory that is still noise of the allocator."""
    out: Path | None = None
    """JSON file for what was held after every round."""
    seed: int = 0
    """Of the calls."""
    threads: int = 1
    """CPU threads of torch; 0 leaves torch's choice."""

    def run(self) -> None:
        set_threads(self.threads)
        held = run_rounds(self.minutes, self.calls, self.num_envs, self.seed)
        if self.out is not None:
            self.out.parent.mkdir(parents=True, exist_ok=True)
            write_text(self.out, json.dumps([asdict(h) for h in held], indent=1) + "\n")
        print(f"{len(held)} rounds; first {held[0]}, last {held[-1]}")
        check_growth(held, self.max_megabytes)


def check_growth(held: Sequence[Held], max_megabytes: float = 16.0) -> None:
    """Compares the last quarter of the rounds with the second one; the first warms up.

    Descriptors, threads and processes are counted exactly: the least of the last quarter may not exceed the most of the
    second. Memory is compared by medians.

    Args:
        held: After every round.
        max_megabytes: Growth of memory that is allowed.

    Raises:
        RuntimeError: If something has grown; the message says what and by how much.
        ValueError: If there are fewer than eight rounds.
    """
    if len(held) < LEAST_ROUNDS:
        raise ValueError(f"{len(held)} rounds are too few to tell; run at least {LEAST_ROUNDS}.")
    quarter = len(held) // 4
    early, late = held[quarter : 2 * quarter], held[-quarter:]
    grown = []
    for name in ("file_descriptors", "threads", "children"):
        before, after = max(getattr(h, name) for h in early), min(getattr(h, name) for h in late)
        if after > before:
            grown.append(f"{name} {before} -> {after}")
    memory = [float(np.median([h.megabytes for h in part])) for part in (early, late)]
    if memory[1] - memory[0] > max_megabytes:
        grown.append(f"megabytes {memory[0]:.1f} -> {memory[1]:.1f}")
    if grown:
        raise RuntimeError(f"Over {len(held)} rounds grew: {'; '.join(grown)}.")


def held_now() -> Held:
    """What this process holds, once its children have ended; needs Linux' /proc.

    Raises:
        RuntimeError: Elsewhere.
    """
    process = Path("/proc/self")
    if not process.is_dir():
        raise RuntimeError("The soak reads Linux' /proc/self, which this system does not have.")
    gc.collect()
    end = time.monotonic() + WAIT
    while multiprocessing.active_children() and time.monotonic() < end:
        time.sleep(0.01)  # a dropped pool tells its workers to end and does not wait for them
    return Held(
        megabytes=resident_megabytes(),
        file_descriptors=len(list((process / "fd").iterdir())),
        threads=len(list((process / "task").iterdir())),
        children=len(multiprocessing.active_children()),
    )


def resident_megabytes() -> float:
    """Memory of this process, after what nothing uses was given back; needs Linux' /proc."""
    gc.collect()
    # So that what the allocator has in pieces does not look like a leak; only glibc can be asked to.
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def run_rounds(minutes: float, calls: int, num_envs: int, seed: int, progress_bar: bool = True) -> list[Held]:
    """Rounds until the time is up, but at least eight.

    Args:
        minutes: How long.
        calls: To every environment of a round.
        num_envs: Images at a time.
        seed: Fixes the calls.
        progress_bar: Whether to show one.

    Returns:
        What was held after every round.

    Raises:
        ValueError: If a number is not positive.
    """
    for name, value in (("minutes", minutes), ("calls", calls), ("num_envs", num_envs)):
        if not 0 < value < float("inf"):
            raise ValueError(f"{name}={value} must be positive.")
    rng = np.random.default_rng(seed)
    seconds = round(60 * minutes)
    begin, held = time.monotonic(), list[Held]()
    with (
        tempfile.TemporaryDirectory(prefix="prance-soak-") as folder,
        tqdm(total=seconds, unit="s", desc="soak", disable=not progress_bar) as bar,
    ):
        _write_images(Path(folder))
        while len(held) < LEAST_ROUNDS or time.monotonic() - begin < 60 * minutes:
            _round(rng, calls, num_envs, folder)
            held.append(held_now())
            bar.set_postfix(rounds=len(held), MB=round(held[-1].megabytes), fds=held[-1].file_descriptors)
            bar.update(min(round(time.monotonic() - begin), seconds) - int(bar.n))
    return held


def _round(rng: np.random.Generator, calls: int, num_envs: int, folder: str) -> None:
    """Every face once, in random order, and then all shared engines are dropped."""
    uses: list[Callable[[], None]] = [
        lambda: _use_single(gym.make(ENV_ID, split="val", render_mode="rgb_array"), rng, calls),
        lambda: _use_single(gym.make(ENV_ID, split="val", render_mode="ansi", observation="key_mean"), rng, calls),
        lambda: _use_vector(rng, calls, num_envs, "NEXT_STEP", token_mode="prune_merge"),
        lambda: _use_vector(rng, calls, num_envs, "SAME_STEP", output="torch", cost_conditioning=(0.05, 0.5)),
        lambda: _use_vector(rng, calls, num_envs, "DISABLED", render_mode="rgb_array"),
        lambda: _use_vector(rng, calls // 4 + 1, num_envs, "SAME_STEP", dataset=folder, num_workers=2, cache_mb=0),
        lambda: _use_sb3(rng, calls, num_envs),
    ]
    for i in rng.permutation(len(uses)):
        uses[i]()
    shared_engine.cache_clear()


def _use_single(env: gym.Env[Any, Any], rng: np.random.Generator, calls: int) -> None:
    inner = env.unwrapped
    assert isinstance(inner, PranceEnv)
    over = True
    for _ in range(calls):
        kind = rng.random()
        if over or kind < 0.1:
            env.reset(seed=int(rng.integers(1000)) if rng.random() < 0.3 else None)
            over = False
        elif kind < 0.15:
            env.render()
        elif kind < 0.2:
            inner.load_state_dict(inner.state_dict())
        else:
            over = bool(env.step(_actions(env.action_space, rng))[2])
    env.close()


def _use_vector(rng: np.random.Generator, calls: int, num_envs: int, mode: str, **kwargs: Any) -> None:
    envs = PranceVectorEnv(num_envs, mode, split="val", **kwargs)
    envs.reset(seed=int(rng.integers(1000)))
    ended = np.zeros(num_envs, dtype=bool)
    for _ in range(calls):
        kind = rng.random()
        if kind < 0.1 or (envs.autoreset_mode == AutoresetMode.DISABLED and ended.any()):
            mask = ended | (rng.random(num_envs) < 0.5)
            envs.reset(options={"reset_mask": mask if mask.any() else ~mask})
            ended = ended & ~mask
        elif kind < 0.12 and envs.render_mode is not None:
            envs.render()
        elif kind < 0.17:
            envs.load_state_dict(envs.state_dict())
        elif kind < 0.2:
            envs.reset()
            ended[:] = False
        else:
            ended = np.asarray(envs.step(_actions(envs.action_space, rng))[2])
    envs.close()


def _use_sb3(rng: np.random.Generator, calls: int, num_envs: int) -> None:
    envs = make_sb3_env(ENV_ID, num_envs, seed=int(rng.integers(1000)), split="val", render_mode="rgb_array")
    envs.reset()
    for _ in range(calls):
        kind = rng.random()
        if kind < 0.05:
            envs.reset()
        elif kind < 0.07:
            envs.get_images()
        else:
            envs.step(_actions(envs.action_space, rng, num_envs))
    envs.close()


def _actions(space: Any, rng: np.random.Generator, *batch: int) -> Any:
    """Uniform in the Box, from the generator of the soak instead of the space's own."""
    return rng.uniform(-1, 1, (*batch, *space.shape)).astype(np.float32)


def _write_images(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for label in range(10):
        (folder / str(label)).mkdir()
        for i in range(6):
            noise = rng.integers(0, 256, (40, 44, 3)).astype(np.uint8)
            Image.fromarray(noise).save(folder / str(label) / f"{i}.jpg")


if __name__ == "__main__":
    try:
        tyro.cli(Soak, prog="python -m tools.soak").run()
    except (RuntimeError, ValueError) as e:
        sys.exit(f"soak: {e}")
