"""Steps per second of CPU time through Gymnasium's faces: `python -m tools.steps --lanes 1 8 256`.

Digits, uniformly random actions, every lane going on where it stands, images as they are drawn. To compare two
versions, run it in their checkouts in turns.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import gymnasium as gym
import numpy as np
import torch
import tyro

import prance_env

WARM_UP = 1200


@dataclass(frozen=True)
class Steps:
    """What to measure."""

    lanes: tuple[int, ...] = (1, 8, 256)
    """Images at a time; one goes through `gym.make`, more through `gym.make_vec`."""
    seconds: float = 4.0
    """CPU time for each."""
    threads: int = 1
    """CPU threads of torch."""


def steps_per_second(lanes: int, seconds: float, warm_up: int = WARM_UP) -> float:
    """Steps of all lanes per second of this process's CPU time, resets included.

    Args:
        lanes: How many.
        seconds: CPU time.
        warm_up: Steps before.
    """
    env_id = prance_env.__name__ + ":Prance-Digits-v0"
    alone = lanes == 1
    env = gym.make(env_id) if alone else gym.make_vec(env_id, num_envs=lanes, autoreset_mode="SAME_STEP")
    shape = env.action_space.shape or ()
    actions = np.random.default_rng(0).uniform(-1, 1, (256, *shape)).astype(np.float32)
    env.reset(seed=0)
    taken, begun = 0, 0.0
    while taken * lanes < warm_up or time.process_time() < begun + seconds:
        if taken * lanes < warm_up:
            before, begun = taken + 1, time.process_time()
        ended = env.step(actions[taken % len(actions)])[2]
        if alone and ended:
            env.reset()
        taken += 1
    env.close()
    return (taken - before) * lanes / (time.process_time() - begun)


def main(steps: Steps) -> None:
    """Measures and prints a line for each number of lanes."""
    torch.set_num_threads(steps.threads)
    for lanes in steps.lanes:
        print(f"{lanes} lanes: {steps_per_second(lanes, steps.seconds):.0f} steps per second of CPU time", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Steps, description=__doc__))
