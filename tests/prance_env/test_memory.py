"""Nothing grows: neither Python's objects nor the process."""

from __future__ import annotations

import gc
import tracemalloc
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from helpers import ENV_ID
from noise_envs import IMAGES

from prance_env import PranceVectorEnv
from tools.soak import resident_megabytes

N, STEPS, MEGABYTE = 2, 500, 2**20
BYTES_PER_STEP = 2000  # less than one lane's tokens and what describes them


def run(envs: PranceVectorEnv, steps: int) -> None:
    """Random steps with partial resets and snapshots."""
    rng = np.random.default_rng(0)
    for number in range(steps):
        envs.step(rng.uniform(-1, 1, envs.action_space.shape or ()).astype(np.float32))
        if number % 50 == 7:
            envs.reset(options={"reset_mask": np.arange(N) % 2 == 0})
        if number % 500 == 9:
            envs.load_state_dict(envs.state_dict())


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self").exists(), reason="reads Linux' /proc")
def test_many_steps_with_resets_and_snapshots_do_not_grow_memory(tiny: dict[str, Any]) -> None:
    kwargs = {"autoreset_mode": "SAME_STEP", "split": "val", "cost_conditioning": (0.05, 0.5), **tiny}
    batches = [gym.make_vec(ENV_ID, N, output=output, **kwargs) for output in ("numpy", "torch")]
    for envs in batches:
        assert isinstance(envs, PranceVectorEnv)
        envs.reset(seed=0)
        envs.lanes.engine.start(np.arange(IMAGES))  # the cache is now as large as it can get
        run(envs, 400)
    before = resident_megabytes()
    for envs in batches:
        run(envs, STEPS)
    assert resident_megabytes() - before < len(batches) * STEPS * BYTES_PER_STEP / MEGABYTE
    tracemalloc.start()
    try:
        run(batches[0], 200)
        gc.collect()
        traced = tracemalloc.get_traced_memory()[0]
        run(batches[0], 200)
        gc.collect()
        assert tracemalloc.get_traced_memory()[0] - traced < 0.05 * MEGABYTE
    finally:
        tracemalloc.stop()
