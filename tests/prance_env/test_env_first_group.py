"""`decide_first_group=`: one decision more, everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import refusal
from gymnasium.utils.env_checker import check_env
from helpers import random_net
from noise_envs import IMAGES, chosen_subnets, noise_kwargs, played_envs
from small_nets import small_net

from agents.baselines import RandomAgent, StaticAgent
from prance_env import LatencyTable, PranceEnv, PranceVectorEnv
from prance_env.rewards.latency import load_latency_table
from supernet import SearchSpace, SubnetConfig, SupernetConfig, from_pretrained, save_pretrained
from supernet.config import with_space
from train.commands.main import main
from train.evaluate import evaluate
from train.report.episodes import plot_episodes
from train.search.static import correct_of_static, evolve_static_front


@pytest.fixture(scope="module", params=["prune", "prune_merge", "tome"])
def decided(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Arguments for noise before a supernet of three groups whose checkpoint decides the last two."""
    folder = tmp_path_factory.mktemp("first")
    return {**noise_kwargs(small_net(request.param), folder), "decide_first_group": True}


def test_an_episode_is_the_inference_of_the_chosen_subnet(decided: dict[str, Any]) -> None:
    envs, actions, steps = played_envs(**decided)
    net, dataset = from_pretrained(decided["checkpoint"]), envs.lanes.engine.dataset
    net.config = with_space(net.config, decide_first_group=True)
    subnets = chosen_subnets(envs.settings, actions)
    infos = steps[-1][-1]
    with torch.inference_mode():
        images = dataset.fetch(np.arange(IMAGES))
        state = net.begin(images)
        for group, step in enumerate(steps):
            state = net.run_group(state, group, subnets.group(net.space, group))
            np.testing.assert_array_equal(step[-1]["num_tokens"], state.num_tokens)
            np.testing.assert_array_equal(step[-1]["macs"], net.macs_to_go(state))
            np.testing.assert_array_equal(step[-1]["prediction"], net.finish(state).argmax(1))
            assert (step[-1]["decision"] == group + 1).all()
            assert step[2].all() == (group == 2)
        np.testing.assert_array_equal(infos["prediction"], net(images, subnets).argmax(1))
    np.testing.assert_array_equal(infos["embed_dim"], subnets.embed_dim)
    np.testing.assert_array_equal(infos["mlp_ratio"], subnets.mlp_ratio)
    assert len(np.unique(infos["embed_dim"][:, 0])) > 1
    assert len(steps) == 3


def test_the_decision_is_one_of_three_and_nothing_is_spent_but_the_patches_embedding(decided: dict[str, Any]) -> None:
    env = PranceEnv(**decided)
    layout, terminated, seen = env.settings.layout(), False, []
    observation, info = env.reset(seed=0)
    assert info["decision"] == 0
    first = observation[layout["macs_spent"]].item()
    while not terminated:
        seen.append(observation[layout["decision"]].tolist())
        observation, _, terminated, _, info = env.step(env.action_space.sample())
    assert seen == np.eye(3).tolist()
    assert not observation[layout["decision"]].any()
    usual = PranceEnv(**{**decided, "decide_first_group": None})
    later, _ = usual.reset(seed=0)
    assert 0 < first < later[usual.settings.layout()["macs_spent"]].item()
    assert len(usual.settings.layout()) == len(layout)
    assert usual.observation_space.shape[0] == env.observation_space.shape[0] - 1


def test_gymnasiums_checker_passes(decided: dict[str, Any]) -> None:
    check_env(PranceEnv(**decided), skip_render_check=True)


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_a_snapshot_goes_on_bit_for_bit_and_fits_no_usual_environment(decided: dict[str, Any], steps: int) -> None:
    def rest(envs: PranceVectorEnv) -> list[Any]:
        actions = np.random.default_rng(1).uniform(-1, 1, (5, *envs.action_space.shape)).astype(np.float32)
        return [(s[0].tolist(), s[1].tolist(), s[4]["index"].tolist()) for s in map(envs.step, actions)]

    envs, fresh = (PranceVectorEnv(3, "SAME_STEP", **decided) for _ in range(2))
    envs.reset(seed=0)
    for _ in range(steps):
        envs.step(np.zeros(envs.action_space.shape or (), dtype=np.float32))
    state = envs.state_dict()
    fresh.load_state_dict(state)
    assert rest(fresh) == rest(envs)
    with pytest.raises(ValueError, match="decide_first_group=True instead of False"):
        PranceVectorEnv(3, "SAME_STEP", **{**decided, "decide_first_group": False}).load_state_dict(state)


def test_the_picture_starts_with_no_block_decided(decided: dict[str, Any]) -> None:
    env = PranceEnv(**decided, render_mode="rgb_array")
    usual = PranceEnv(**{**decided, "decide_first_group": False}, render_mode="rgb_array")
    text = PranceEnv(**decided, render_mode="ansi")
    for e in (env, usual, text):
        e.reset(seed=0)
    assert (env.render() != usual.render()).any()
    assert "decision 0/3" in text.render()
    action = np.ones(env.action_space.shape or (), dtype=np.float32)
    env.step(action)
    text.step(action)
    np.testing.assert_array_equal(env.render()[24:116], usual.render()[24:116])
    assert "decision 1/3" in text.render()


@pytest.mark.slow
def test_static_search_evaluation_and_plots_take_three_decisions(decided: dict[str, Any], tmp_path: Path) -> None:
    settings = PranceEnv(**decided).settings
    engine, index, space = settings.engine(), np.arange(IMAGES), settings.config().space
    found = evolve_static_front(engine, index, num_subnets=20, seed=0)
    assert found.actions.shape == (20, 3, space.action_size)
    subnet = SubnetConfig.from_actions(space, torch.from_numpy(found.actions[12:13]))
    images = engine.dataset.fetch(index)
    with torch.inference_mode():
        prediction = engine.net(images, subnet).argmax(1)
    right = (prediction == engine.dataset.labels).numpy()
    np.testing.assert_array_equal(correct_of_static(engine, index, found.actions[12]), right)
    result = evaluate(StaticAgent(subnet, settings.config()), settings)
    np.testing.assert_array_equal(result.prediction, prediction)
    assert evaluate(RandomAgent(settings.config()), settings).patches.shape == (IMAGES, 3)
    plot_episodes(RandomAgent(settings.config()), engine, settings, np.arange(2), tmp_path / "episodes.png")
    assert (tmp_path / "episodes.png").stat().st_size > 1000


def test_it_is_refused_where_groups_differ() -> None:
    with pytest.raises(ValueError, match=r"decide_first_group=True needs groups of equally many.*\(1, 3, 3, 3\)"):
        PranceEnv(decide_first_group=True)
    with pytest.raises(ValueError, match=r"decide_first_group='yes' must be True or False"):
        PranceEnv(decide_first_group="yes")  # type: ignore[arg-type]


TWO_GROUPS = SupernetConfig(
    SearchSpace((1, 1), (8, 16), (1,), (1,), decide_first_group=True),
    img_size=8,
    patch_size=4,
    num_classes=3,
    head_dim=8,
)
FIRST_MS, SECOND_MS = [[[1.0]], [[2.0]]], [[[4.0]], [[8.0]]]


def two_groups(tmp_path: Path, group_ms: list[Any]) -> dict[str, Any]:
    """Arguments for noise before a supernet of two blocks and a latency table."""
    table = LatencyTable("imagined", "0", 1, 1, [1, 1], [8, 16], [1.0], [5], 0.5, 0.25, group_ms)
    table.save(tmp_path / "table.json")
    kwargs = noise_kwargs(random_net(TWO_GROUPS), tmp_path / "net")
    return {**kwargs, "reward": {"cost": "latency", "latency_table": str(tmp_path / "table.json"), "macs_weight": 1.0}}


def test_a_table_with_times_of_the_first_group_counts_what_deciding_it_saves(tmp_path: Path) -> None:
    kwargs = two_groups(tmp_path, [FIRST_MS, SECOND_MS])
    env = PranceEnv(**kwargs)
    _, info = env.reset(seed=0)
    assert info["latency_ms"] == 0.5 + 2 + 8 + 0.25
    narrow = np.array([1, -1, 1], dtype=np.float32)
    _, _, _, _, info = env.step(narrow)
    assert info["latency_ms"] == 0.5 + 1 + 8 + 0.25
    assert info["reward_macs"] == pytest.approx(-9.75 / 10.75)
    _, _, terminated, _, info = env.step(narrow)
    assert terminated
    assert info["latency_ms"] == 0.5 + 1 + 4 + 0.25
    undecided = PranceEnv(**kwargs, decide_first_group=False)
    assert undecided.reset(seed=0)[1]["latency_ms"] == 10.75
    assert undecided.step(narrow)[4]["latency_ms"] == 0.5 + 2 + 4 + 0.25


def test_a_table_with_one_time_for_the_first_group_says_how_to_measure_more(tmp_path: Path) -> None:
    kwargs = two_groups(tmp_path, [SECOND_MS])
    with pytest.raises(ValueError, match=r"latency table.*prance profile --decide-first-group.*first_group=False"):
        PranceEnv(**kwargs)
    assert PranceEnv(**kwargs, decide_first_group=False).reset(seed=0)[1]["latency_ms"] == 0.5 + 8 + 0.25


def test_profile_measures_the_first_group_if_it_is_to_be_decided(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = with_space(TWO_GROUPS, decide_first_group=False)
    save_pretrained(random_net(small), tmp_path / "net")
    arguments = ["--batch-size", "8", "--token-counts", "2", "--repeats", "1", "--threads", "1", "--checkpoint"]
    for flags, first in (((), 1), (("--decide-first-group",), 0)):
        out = tmp_path / f"{first}.json"
        monkeypatch.setattr(
            "sys.argv", ["prance", "profile", "--out", str(out), *arguments, str(tmp_path / "net"), *flags]
        )
        main()
        table = load_latency_table(str(out))
        assert table.first_group == first
        table.check(small)
        assert 0 < table.begin_ms(small.space) < table.full_ms(small.space)
    table.check(TWO_GROUPS)
    assert table.begin_ms(TWO_GROUPS.space) == pytest.approx(table.prefix_ms)
    assert table.begin_ms(small.space) > table.prefix_ms
    assert "groups" in refusal(monkeypatch, "profile", "--out", tmp_path / "x.json", "--decide-first-group")
