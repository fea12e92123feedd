"""Pictures: dropped patches are dimmed, choices change the bars, text is one line."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from helpers import ENV_ID
from PIL import Image

from prance_env import PranceEnv, PranceVectorEnv
from prance_env.rendering import IMAGE_SIDE, PANEL_WIDTH, dim_dropped


def frames(**entries: float) -> tuple[PranceEnv, list[np.ndarray]]:
    """Frames of an episode on image 0 in which every action is 1 but for `keep` or `width`."""
    env = gym.make(ENV_ID, split="val", render_mode="rgb_array").unwrapped
    assert isinstance(env, PranceEnv)
    space = env.settings.config().space
    action = np.ones(space.action_size, dtype=np.float32)
    action[-1] = entries.get("keep", 1.0)
    action[space.blocks_per_decision : -1] = entries.get("width", 1.0)
    env.reset(seed=0, options={"index": 0})
    shown: list[Any] = [env.render()]
    for _ in range(space.num_decisions):
        env.step(action)
        shown.append(env.render())
    return env, shown


def test_every_phase_gives_a_frame_of_the_same_shape() -> None:
    for frame in frames(keep=0.0)[1]:
        assert frame.shape == (IMAGE_SIDE, IMAGE_SIDE + PANEL_WIDTH, 3)
        assert frame.dtype == np.uint8


def test_exactly_the_dropped_patches_change_and_they_get_darker() -> None:
    env, shown = frames(keep=-0.2)
    config, lanes = env.settings.config(), env._lanes
    assert lanes is not None
    kept = lanes.lane(0).state.kept()[0].numpy()
    assert 0 < kept.sum() < len(kept)
    grid = config.img_size // config.patch_size
    mask = np.asarray(Image.fromarray(kept.reshape(grid, grid)).resize((IMAGE_SIDE, IMAGE_SIDE), 0))
    first, last = (frame[:, :IMAGE_SIDE].astype(int) for frame in (shown[0], shown[-1]))
    np.testing.assert_array_equal((first != last).any(-1), ~mask)
    bright = ~mask & (first.min(-1) > 100)
    assert (last[bright].max(-1) < first[bright].max(-1)).all()


def test_a_full_network_keeps_its_picture_and_a_narrow_one_changes_only_the_panel() -> None:
    (_, full), (_, narrow) = frames(), frames(width=-1.0)
    np.testing.assert_array_equal(full[0][:, :IMAGE_SIDE], full[-1][:, :IMAGE_SIDE])
    np.testing.assert_array_equal(full[-1][:, :IMAGE_SIDE], narrow[-1][:, :IMAGE_SIDE])
    assert (full[-1][:, IMAGE_SIDE:] != narrow[-1][:, IMAGE_SIDE:]).any()


@pytest.mark.parametrize("channels", [1, 3])
def test_dimming_works_on_grey_and_coloured_images(channels: int) -> None:
    image = np.full((channels, 4, 4), 200, dtype=np.uint8)
    picture = dim_dropped(image, np.array([True, False, True, True]), side=4)
    dropped = picture[:2, 2:]
    assert (picture[:, :2] == 200).all()
    assert (picture[2:, 2:] == 200).all()
    assert (dropped[..., 1:] == 50).all()
    assert (dropped[..., 0] > 50).all()


@pytest.mark.parametrize("mode", ["result_to_go", "terminal"])
def test_text_is_one_line_that_names_image_decision_and_label(mode: str) -> None:
    env = gym.make(ENV_ID, render_mode="ansi", reward={"mode": mode})
    _, info = env.reset(seed=0)
    for _ in range(2):
        text: Any = env.render()
        assert len(text.splitlines()) == 1
        assert f"image {info['index']} " in text
        assert f"decision {info['decision']}/" in text
        assert f"label {info['label']}" in text
        info = env.step(env.action_space.sample())[4]


def test_a_vector_environment_shows_what_its_single_environments_show() -> None:
    envs = gym.make_vec(ENV_ID, 2, render_mode="rgb_array")
    assert isinstance(envs, PranceVectorEnv)
    actions = envs.action_space.sample()
    envs.reset(seed=3)
    envs.step(actions)
    together = envs.render()
    assert together is not None
    for lane, frame in enumerate(together):
        env = gym.make(ENV_ID, render_mode="rgb_array")
        env.reset(seed=3 + lane)
        env.step(actions[lane])
        np.testing.assert_array_equal(frame, env.render())


def test_rendering_without_a_mode_warns_and_before_a_reset_asks_for_one() -> None:
    for env in (gym.make(ENV_ID).unwrapped, gym.make_vec(ENV_ID, 2).unwrapped):
        with pytest.warns(UserWarning, match="rgb_array"):
            assert env.render() is None
    env = gym.make(ENV_ID, render_mode="rgb_array").unwrapped
    with pytest.raises(gym.error.ResetNeeded, match=r"reset\(\)"):
        env.render()
