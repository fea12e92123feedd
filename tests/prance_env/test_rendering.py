"""Pictures: dropped patches are dimmed, merged ones outlined, choices change the bars, text is one line."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from helpers import ENV_ID, make_engine, played, unit_actions
from PIL import Image, ImageDraw
from small_nets import small_net

from prance_env import PranceEnv, PranceVectorEnv, RewardConfig
from prance_env.rendering import (
    BACKGROUND,
    COST_COLOUR,
    IMAGE_SIDE,
    KEEP_COLOUR,
    PANEL_WIDTH,
    RATIO_COLOUR,
    RIGHT,
    TO_GO,
    TRACK,
    WIDTH_COLOUR,
    WRONG,
    _Panel,
    class_name,
    draw_patches,
    image_name,
    render_ansi,
    render_episode,
)


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
    mask = np.asarray(Image.fromarray(kept.reshape(grid, grid)).resize((IMAGE_SIDE, IMAGE_SIDE), Image.Resampling(0)))
    first, last = (frame[:, :IMAGE_SIDE].astype(int) for frame in (shown[0], shown[-1]))
    cell = IMAGE_SIDE // grid
    inside = (np.arange(IMAGE_SIDE) % cell >= 2) & (np.arange(IMAGE_SIDE) % cell < cell - 2)  # not in the gaps
    inside = inside[:, None] & inside
    np.testing.assert_array_equal((first != last).any(-1)[inside], ~mask[inside])
    assert (first[~inside] == BACKGROUND).all()
    bright = ~mask & (first.min(-1) > 100)
    assert (last[bright].max(-1) < first[bright].max(-1)).all()


def test_a_full_network_keeps_its_picture_and_a_narrow_one_changes_only_the_panel() -> None:
    (_, full), (_, narrow) = frames(), frames(width=-1.0)
    np.testing.assert_array_equal(full[0][:, :IMAGE_SIDE], full[-1][:, :IMAGE_SIDE])
    np.testing.assert_array_equal(full[-1][:, :IMAGE_SIDE], narrow[-1][:, :IMAGE_SIDE])
    assert (full[-1][:, IMAGE_SIDE:] != narrow[-1][:, IMAGE_SIDE:]).any()


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_dimming_works_on_grey_and_coloured_images(channels: int) -> None:
    image = np.full((channels, 4, 4), 200, dtype=np.uint8)
    image[1 if channels == 2 else 3 :] = 7  # a mask, or infrared
    picture = draw_patches(image, np.array([1, -1, 2, 3]), side=4)
    dropped = picture[:2, 2:]
    assert (picture[:, :2] == 200).all()
    assert (picture[2:, 2:] == 200).all()
    assert (dropped[..., 1:] == 50).all()
    assert (dropped[..., 0] > 50).all()


@pytest.mark.parametrize(("size", "grid"), [(16, 4), (28, 14), (224, 14), (384, 24), (518, 37), (255, 5)])
def test_any_image_size_is_brought_to_the_side_of_the_frame(size: int, grid: int) -> None:
    image = np.zeros((3, size, size), dtype=np.uint8)
    image[:, :, size // 2 :] = 200
    kept = np.arange(grid * grid).reshape(grid, grid)
    kept[: grid // 2] = -1
    picture = draw_patches(image, kept.reshape(-1))
    assert picture.shape == (IMAGE_SIDE, IMAGE_SIDE, 3)
    third = IMAGE_SIDE // 3
    assert (picture[-third:, -third:] == 200).all()
    assert (picture[-third:, :third] == 0).all()
    assert (picture[:third, :third] == [40, 0, 0]).all()
    assert (picture[:third, -third:] == [90, 50, 50]).all()


def test_an_outline_goes_round_what_has_merged_and_nothing_else() -> None:
    image = np.full((3, 4, 4), 100, dtype=np.uint8)
    # Patches 0 and 1 are one token, 5 and 15 another; 3 and 7 are dropped, which is no group.
    tokens = np.array([1, 1, 2, -1, 3, 4, 5, -1, 6, 7, 8, 9, 10, 11, 12, 4])
    picture = draw_patches(image, tokens, side=40).reshape(4, 10, 4, 10, 3).swapaxes(1, 2)
    coloured = (picture != 100).any(-1) & (picture != [65, 25, 25]).any(-1)
    ring = np.ones((10, 10), dtype=bool)
    ring[1:-1, 1:-1] = False
    open_right, open_left = ring.copy(), ring.copy()
    open_right[1:-1, -1] = open_left[1:-1, 0] = False
    expected = {(0, 0): open_right, (0, 1): open_left, (1, 1): ring, (3, 3): ring}
    for row in range(4):
        for column in range(4):
            np.testing.assert_array_equal(
                coloured[row, column], expected.get((row, column), np.zeros((10, 10), dtype=bool)), f"{row}, {column}"
            )
    one, other = picture[0, 0, 0, 0], picture[1, 1, 0, 0]
    assert (one != other).any()
    np.testing.assert_array_equal(picture[3, 3, 0, 0], other)
    np.testing.assert_array_equal(picture[0, 1, 0, 0], one)


def test_a_group_keeps_its_colour_while_token_numbers_change() -> None:
    image = np.zeros((1, 4, 4), dtype=np.uint8)
    early, late = np.arange(16), np.arange(16)
    early[5], late[:], late[1], late[5] = 1, -1, 7, 7
    before, after = (draw_patches(image, tokens, side=40)[10, 10] for tokens in (early, late))
    np.testing.assert_array_equal(before, after)
    assert before.max() == 255


def test_patches_that_do_not_fill_a_square_are_refused() -> None:
    with pytest.raises(ValueError, match="12 entries"):
        draw_patches(np.zeros((1, 4, 4), dtype=np.uint8), np.arange(12))


@pytest.mark.parametrize("mode", ["prune", "prune_fused", "merge", "prune_merge", "tome"])
def test_every_token_mode_is_drawn_and_only_those_that_merge_have_outlines(mode: str) -> None:
    engine = make_engine(small_net(mode), 4)
    space = engine.config.space
    actions = unit_actions(space, 4)
    actions[2] = 1
    actions[2, :, 2 * space.blocks_per_decision :] = 0.6
    for reward in (RewardConfig(), RewardConfig(mode="terminal")):
        for decision, episodes in enumerate(played(engine, actions, reward)):
            one = episodes[np.array([2])]
            frame = render_episode(engine, one)
            assert frame.shape == (IMAGE_SIDE, IMAGE_SIDE + PANEL_WIDTH, 3)
            saturated = (frame[:, :IMAGE_SIDE].max(-1) == 255) & (frame[:, :IMAGE_SIDE].min(-1) == 64)
            tokens = one.state.patch_token[0].numpy()
            held = tokens[tokens >= 0]
            assert saturated.any() == (decision > 0 and mode != "prune") == (len(set(held)) < len(held))
            text = render_ansi(engine, one)
            assert len(text.splitlines()) == 1
            assert f"patches {len(set(held))}/{engine.config.num_patches}" in text


def test_kept_patches_have_gaps_between_them_and_dropped_ones_are_one_area() -> None:
    image = np.full((1, 4, 4), 200, dtype=np.uint8)
    picture = draw_patches(image, np.array([0, 1, -1, -1]), side=64, gap=4)[..., 1]
    assert set(picture[16, 30:34].tolist()) == {BACKGROUND[1]}
    assert set(picture[16, 2:30].tolist()) == {200}
    assert set(picture[48, 2:62].tolist()) == {50}
    whole = draw_patches(image, np.array([5, 5, -1, -1]), side=64, gap=4)
    assert (whole[16, 12:52] == 200).all()


def test_files_and_classes_are_called_by_their_names(folder: Path, checkpoint: str) -> None:
    env = PranceEnv(checkpoint=checkpoint, dataset=str(folder), split="val", render_mode="ansi")
    names = sorted(p.name for p in (folder / "val").iterdir())
    env.reset(seed=0, options={"index": 13})
    text: Any = env.render()
    assert f"label {names[1]}" in text
    assert text.startswith(f"{names[1]}/")
    source = env.settings.engine().dataset
    assert class_name(source, 2) == names[2]
    assert class_name(make_engine(small_net("prune"), 4).dataset, 2) == "2"
    assert (folder / "val" / image_name(source, 13)).is_file()
    assert text.split()[0] == image_name(source, 13)


@pytest.mark.parametrize("word", ["tench", "a_class_with_a_name_that_is_longer_than_the_panel_is_wide"])
def test_long_names_leave_out_their_middle(word: str) -> None:
    panel = _Panel(ImageDraw.Draw(Image.new("RGB", (300, 20))), 0, 232)
    shown = panel.shortened(f"label {word}", "reward +0.000")
    assert (shown == f"label {word}") == (word == "tench")
    assert shown.startswith("label ")
    assert shown[-3:] == word[-3:]
    assert panel._draw.textlength(shown, panel._font) <= 232 - panel._draw.textlength("  reward +0.000", panel._font)


def coloured(frame: np.ndarray, colour: tuple[int, int, int], rows: slice) -> np.ndarray:
    """(columns,) how many pixels of the panel have this colour."""
    return (frame[rows, IMAGE_SIDE:] == colour).all(-1).sum(0)


def test_bars_are_as_long_as_what_they_show() -> None:
    engine = make_engine(small_net("prune_merge"), 4)
    space = engine.config.space
    actions = unit_actions(space, 4)
    actions[2, 0, :2] = 0
    actions[2, 0, 2:] = [1.0, 0.5]
    before, after = played(engine, actions, RewardConfig())[:2]
    start, one = (render_episode(engine, e[np.array([2])]) for e in (before, after))
    widths, ratios, rates = slice(40, 67), slice(88, 115), slice(136, 163)
    slot = (PANEL_WIDTH - 24) / space.depth
    for rows, colour, share in (
        (widths, WIDTH_COLOUR, space.embed_dims[0] / space.embed_dims[-1]),
        (ratios, RATIO_COLOUR, space.mlp_ratios[0] / space.mlp_ratios[-1]),
    ):
        heights = coloured(one, colour, rows)
        assert heights[20] == pytest.approx(27, abs=1)
        assert heights[int(12 + 1.5 * slot)] == pytest.approx(1 + 26 * share, abs=1)
        assert heights[int(12 + 2.5 * slot)] == 0
        assert not coloured(start, colour, rows)[int(12 + 1.5 * slot) :].any()
        assert coloured(start, TRACK, rows)[int(12 + 1.5 * slot)] == 2  # an empty frame
    first, second = coloured(one, KEEP_COLOUR, rates)[[20, 12 + (PANEL_WIDTH - 24) // 2 - 20]]
    assert first == pytest.approx(27, abs=1)
    assert second == pytest.approx(1 + 13 * (1 + space.min_keep_rate), abs=1)
    assert not coloured(start, KEEP_COLOUR, rates).any()

    length = (PANEL_WIDTH - 24) - 104
    costs = slice(192, 206)
    spent, total = after.state.macs[2] / engine.full_macs, after.macs[2] / engine.full_macs
    done, rest = ((coloured(one, c, costs) > 0).sum() for c in (COST_COLOUR, TO_GO))
    assert done == pytest.approx(spent * length, abs=2)
    assert done + rest == pytest.approx(total * length, abs=2)


def test_what_the_network_says_is_green_if_right_and_as_sure_as_its_probability() -> None:
    engine = make_engine(small_net("prune"), 8)  # right about every other image
    (start,) = played(engine, unit_actions(engine.config.space, 8), RewardConfig())[:1]
    probs = engine.net.finish(start.state).softmax(-1).numpy()
    seen = set()
    for lane in range(8):
        one = start[np.array([lane])]
        colour = RIGHT if start.success[lane] else WRONG
        bar = (coloured(render_episode(engine, one), colour, slice(212, 226)) > 0).sum()
        assert bar == pytest.approx(probs[lane].max() * (PANEL_WIDTH - 24 - 104), abs=2)
        assert f"says {start.prediction[lane]} ({probs[lane].max():.0%})" in render_ansi(engine, one)
        seen.add(colour)
    assert seen == {RIGHT, WRONG}


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
        frame[:] = 0  # it is the caller's


def test_rendering_without_a_mode_warns_and_before_a_reset_asks_for_one() -> None:
    for env in (gym.make(ENV_ID).unwrapped, gym.make_vec(ENV_ID, 2).unwrapped):
        with pytest.warns(UserWarning, match="rgb_array"):
            assert env.render() is None
    env = gym.make(ENV_ID, render_mode="rgb_array").unwrapped
    with pytest.raises(gym.error.ResetNeeded, match=r"reset\(\)"):
        env.render()


def test_gymnasium_records_a_video_of_every_frame(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # moviepy's own
        env = gym.wrappers.RecordVideo(gym.make(ENV_ID, render_mode="rgb_array"), str(tmp_path), lambda _: True)
        env.reset(seed=0)
        over = False
        while not over:
            over = env.step(env.action_space.sample())[2]
        shown = len(env.recorded_frames)
        env.close()
    (video,) = tmp_path.glob("*.mp4")
    assert shown == 4
    assert video.stat().st_size > 1000
