"""Nothing grows: neither Python's objects nor the process."""

from __future__ import annotations

import gc
import os
import tracemalloc
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from helpers import ENV_ID

from prance_env.datasets import DIGITS_SCENES

STATM = Path("/proc/self/statm")
STEPS = 10_000
MEGABYTE = 2**20


def resident() -> float:
    """Megabytes of this process in memory."""
    return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / MEGABYTE


@pytest.mark.slow
@pytest.mark.skipif(not STATM.exists(), reason="reads Linux' /proc")
@pytest.mark.parametrize("output", ["numpy", "torch"])
def test_ten_thousand_steps_with_resets_and_snapshots_do_not_grow_memory(output: str) -> None:
    envs = gym.make_vec(
        ENV_ID, 4, autoreset_mode="SAME_STEP", split="val", output=output, cost_conditioning=(0.05, 0.5)
    )
    rng = np.random.default_rng(0)
    pool = rng.uniform(-1, 1, (64, *(envs.action_space.shape or ()))).astype(np.float32)
    images = DIGITS_SCENES["val"]

    def run(steps: int) -> None:
        for number in range(steps):
            envs.step(pool[rng.integers(len(pool))])
            if number % 50 == 7:
                envs.reset(options={"reset_mask": np.array([True, False, True, False])})
            if number % 500 == 9:
                envs.unwrapped.load_state_dict(envs.unwrapped.state_dict())  # type: ignore[attr-defined]

    envs.reset(seed=0)
    for begin in range(0, images, 4):  # afterwards the cache is as large as it can get
        envs.reset(options={"index": np.arange(begin, begin + 4)})
    run(1000)
    gc.collect()
    tracemalloc.start()
    try:
        run(STEPS // 2)
        gc.collect()
        middle, before = tracemalloc.get_traced_memory()[0], resident()
        run(STEPS // 2)
        gc.collect()
        end, after = tracemalloc.get_traced_memory()[0], resident()
    finally:
        tracemalloc.stop()
    assert end - middle < 0.1 * MEGABYTE
    assert after - before < 8
