"""Numbers that there cannot be are refused by name: in observations, rewards, snapshots and streams."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from helpers import ENV_ID
from image_files import CONFIG, everything, shards

from prance_env import PranceVecEnv
from prance_env.images.loading import load_dataset
from prance_env.rewards.outcome import REWARDS, register_reward

N = 4


def make_envs(**arguments: Any) -> Any:
    """A few environments on validation images."""
    return gym.make_vec(ENV_ID, N, autoreset_mode="SAME_STEP", split="val", **arguments)


def test_an_observation_that_is_not_finite_names_its_image(monkeypatch: pytest.MonkeyPatch) -> None:
    envs: Any = make_envs()
    envs.reset(seed=0, options={"index": np.arange(7, 7 + N)})
    before, actions = envs.state_dict(), np.zeros(envs.action_space.shape or (), dtype=np.float32)
    run_group = type(envs.lanes.engine.net).run_group

    def overflowing(self: Any, *args: Any, **named: Any) -> Any:
        after = run_group(self, *args, **named)
        after.tokens[int(after.num_tokens[0])] = float("nan")  # the class token of the second image
        return after

    monkeypatch.setattr(type(envs.lanes.engine.net), "run_group", overflowing)
    with pytest.raises(ValueError, match=r"of image 8 after 1 decisions is not finite.*dtype='float32'"):
        envs.step(actions)
    monkeypatch.undo()
    envs.step(actions)
    envs.load_state_dict(before)


@pytest.mark.parametrize("value", [1j, [1 + 1j] * N, np.full(N, 2j)])
def test_complex_rewards_are_refused(value: Any) -> None:
    register_reward("complex", lambda outcome: value)
    try:
        envs = make_envs(reward={"function": "complex"})
        envs.reset(seed=0)
        with pytest.raises(ValueError, match=r"'complex' returned .*complex numbers"):
            envs.step(np.zeros(envs.action_space.shape or (), dtype=np.float32))
    finally:
        REWARDS.remove("complex")


def test_sb3_steps_with_no_actions_are_refused_by_name() -> None:
    venv = PranceVecEnv(make_envs())
    venv.reset()
    with pytest.raises(ValueError, match=r"actions are None; expected numbers of shape"):
        venv.step(None)  # type: ignore[arg-type]


def leaves(data: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths to everything in a snapshot."""
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    return (
        [path, *(found for key, value in items for found in leaves(value, (*path, key)))]
        if path
        else [found for key, value in items for found in leaves(value, (key,))]
    )


def damaged(value: Any, rng: random.Random) -> Any:
    """Something else."""
    kinds: list[Any] = [
        None,
        "text",
        [],
        {},
        -1,
        10**30,
        float("nan"),
        torch.zeros(0),
        torch.full((3, 3), float("nan")),
    ]
    if isinstance(value, torch.Tensor) and value.numel():
        other = value.clone()
        other.view(-1)[rng.randrange(value.numel())] = -7 if not value.is_floating_point() else float("inf")
        kinds = [*kinds, other, value[:-1], value.double() if value.dtype != torch.float64 else value.float()]
    return rng.choice(kinds)


def test_damaged_snapshots_are_refused_before_anything_changes_or_go_on() -> None:
    envs, untouched, rng = make_envs(), make_envs(), random.Random(0)
    actions = np.zeros(envs.action_space.shape or (), dtype=np.float32)
    for e in (envs, untouched):
        e.reset(seed=0)
        e.step(actions)
    good, refused = envs.state_dict(), 0
    paths = leaves(good)
    for _ in range(80):
        bad: Any = copy.deepcopy(good)
        path = rng.choice(paths)
        inner = bad
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = damaged(inner[path[-1]], rng)
        try:
            envs.load_state_dict(bad)
        except ValueError:
            refused += 1
        else:
            observations, rewards, *_ = envs.step(actions)
            assert np.isfinite(observations).all()
            assert np.isfinite(rewards).all()
            envs.load_state_dict(good)
    assert refused > 40
    for a, b in zip(envs.step(actions)[:3], untouched.step(actions)[:3], strict=True):
        np.testing.assert_array_equal(a, b)


def test_flipped_pixels_and_labels_of_a_stream_are_noticed(tmp_path: Path) -> None:
    shards(tmp_path)
    name, cache = f"wds/{tmp_path / 'shards'}", tmp_path / "cache"
    expected = everything(load_dataset(name, "val", CONFIG, cache_dir=cache))
    made = next(cache.iterdir())

    def flip(file: str) -> None:
        content = bytearray((made / file).read_bytes())
        content[len(content) // 2] ^= 1
        (made / file).write_bytes(content)

    flip("labels")
    with pytest.warns(UserWarning, match="is damaged and is made again"):
        assert torch.equal(everything(load_dataset(name, "val", CONFIG, cache_dir=cache)), expected)
    flip("pixels")
    with pytest.raises(OSError, match=rf"{made} is damaged at image 9; delete the folder"):
        everything(load_dataset(name, "val", CONFIG, cache_dir=cache))
