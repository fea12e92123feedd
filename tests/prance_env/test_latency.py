"""Milliseconds as cost: the table's arithmetic, its file, and rewards that use it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from helpers import ENV_ID, INFO_KEYS, random_net

from prance_env import LatencyTable, PranceVectorEnv
from prance_env.rewards.costs import LatencyCost, MacsCost
from prance_env.rewards.latency import load_latency_table
from prance_env.rewards.measuring import measure_latency_table, seconds_of
from supernet import GroupChoice, SearchSpace, Supernet, SupernetConfig, supernet_config
from train.commands.main import main

CONFIG = supernet_config("digits")
GROUP_MS = np.random.default_rng(0).uniform(0.1, 1, (3, 4, 3, 3))
TABLE = LatencyTable(
    device="imagined",
    torch_version="0",
    threads=1,
    batch_size=2,
    groups=list(CONFIG.space.groups),
    embed_dims=list(CONFIG.space.embed_dims),
    mlp_ratios=list(CONFIG.space.mlp_ratios),
    num_tokens=[2, 5, 17],
    prefix_ms=0.25,
    head_ms=0.125,
    group_ms=GROUP_MS.tolist(),
)
N = 4


@pytest.fixture
def table_file(tmp_path: Path) -> str:
    """The imagined table as a file."""
    TABLE.save(tmp_path / "table.json")
    return str(tmp_path / "table.json")


def make_envs(**reward: Any) -> PranceVectorEnv:
    envs = gym.make_vec(ENV_ID, N, autoreset_mode="DISABLED", reward=reward)
    assert isinstance(envs, PranceVectorEnv)
    return envs


def milliseconds_by_hand(info: dict[str, Any], tokens: list[int], lane: int) -> float:
    """The whole inference of one lane, block by block, with numpy's interpolation."""
    space, total = CONFIG.space, TABLE.prefix_ms + TABLE.head_ms
    for group in range(1, 4):
        before, after = tokens[group - 1], tokens[group]
        for place, block in enumerate(space.blocks(group)):
            width = space.embed_dims.index(info["embed_dim"][lane, block])
            ratio = space.mlp_ratios.index(info["mlp_ratio"][lane, block])
            at = [np.interp(n, TABLE.num_tokens, GROUP_MS[group - 1, width, ratio]) for n in (before, after)]
            total += (np.mean(at) if place == 0 else at[1]) / 3
    return total


@pytest.mark.parametrize("cost", ["latency", "macs"])
def test_milliseconds_of_an_episode_equal_a_sum_over_blocks_done_by_hand(table_file: str, cost: str) -> None:
    envs = make_envs(cost=cost, latency_table=table_file, macs_weight=0.4)
    _, info = envs.reset(seed=0)
    full = milliseconds_by_hand(info, [17] * 4, 0)
    np.testing.assert_allclose(info["latency_ms"], full)
    tokens = np.full((N, 4), 17)
    rng = np.random.default_rng(3)
    for decision in range(1, 4):
        _, reward, _, _, info = envs.step(rng.uniform(-1, 1, envs.action_space.shape).astype(np.float32))
        tokens[:, decision:] = info["num_tokens"][:, None]
        expected = [milliseconds_by_hand(info, tokens[lane].tolist(), lane) for lane in range(N)]
        np.testing.assert_allclose(info["latency_ms"], expected)
        fraction = info["latency_ms"] / full if cost == "latency" else info["macs_fraction"]
        np.testing.assert_allclose(info["reward_macs"], -0.4 * fraction)
        np.testing.assert_allclose(reward, info["reward_accuracy"] + info["reward_macs"])
    assert len(set(info["latency_ms"])) == N


def test_milliseconds_are_in_the_info_only_with_a_table(table_file: str) -> None:
    single = gym.make(ENV_ID, reward={"latency_table": table_file})
    keys = [*INFO_KEYS, "latency_ms"]
    assert list(single.reset(seed=0)[1]) == keys
    assert list(single.step(single.action_space.sample())[4]) == keys
    assert list(gym.make(ENV_ID).reset(seed=0)[1]) == INFO_KEYS


def test_a_table_survives_its_file_and_damage_is_named(table_file: str) -> None:
    assert load_latency_table(table_file) == TABLE
    folder = Path(table_file).parent
    with pytest.raises(FileNotFoundError, match=r"nothing\.json.*prance profile"):
        make_envs(latency_table=str(folder / "nothing.json"))
    bad: dict[str, Any] = {
        "half": "{",
        "list": "[]",
        "key": json.dumps({**asdict(TABLE), "colour": 1}),
        "shape": json.dumps({**asdict(TABLE), "num_tokens": [2, 17]}),
        "negative": json.dumps({**asdict(TABLE), "head_ms": -1.0}),
        "nan": json.dumps({**asdict(TABLE), "prefix_ms": float("nan")}),
        "twice": json.dumps({**asdict(TABLE), "embed_dims": [*TABLE.embed_dims[:-1], TABLE.embed_dims[0]]}),
        "text": json.dumps({**asdict(TABLE), "num_tokens": "17"}),
        "ragged": json.dumps({**asdict(TABLE), "group_ms": [TABLE.group_ms[0][:-1], *TABLE.group_ms[1:]]}),
    }
    for name, text in bad.items():
        (folder / f"{name}.json").write_text(text)
        with pytest.raises(ValueError, match=rf"{name}\.json.*write it again with `prance profile`"):
            make_envs(latency_table=str(folder / f"{name}.json"))


def test_a_state_goes_on_with_the_same_table_wherever_it_lies_and_with_no_other(table_file: str) -> None:
    terms = {"cost": "latency", "latency_table": table_file}
    envs = make_envs(**terms)
    envs.reset(seed=0)
    state = envs.state_dict()
    actions = np.zeros(envs.action_space.shape or (), dtype=np.float32)
    expected = envs.step(actions)[1].tolist()
    earlier = {**state, "environment": {**state["environment"], "reward": asdict(envs.lanes.reward)}}
    copied = f"{table_file}-copied"
    TABLE.save(copied)
    for path, found in ((table_file, state), (copied, state), (table_file, earlier)):
        moved = make_envs(**{**terms, "latency_table": path})
        moved.load_state_dict(found)
        assert moved.step(actions)[1].tolist() == expected
    replace(TABLE, head_ms=50 * TABLE.head_ms).save(table_file)
    with pytest.raises(ValueError, match="another environment: reward="):
        make_envs(**terms).load_state_dict(state)


def test_latency_needs_a_table_and_one_of_this_supernet(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"latency_table='FILE'.*prance profile"):
        make_envs(cost="latency")
    replace(TABLE, mlp_ratios=[1, 2, 3]).save(tmp_path / "other.json")
    with pytest.raises(ValueError, match=r"table is for.*prance profile"):
        make_envs(latency_table=str(tmp_path / "other.json"))


def test_profile_writes_a_table_that_fits_and_in_which_less_takes_less(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "new" / "table.json"
    arguments = ["prance", "profile", "--out", str(out), "--batch-size", "32", "--token-counts", "2", "--repeats", "2"]
    monkeypatch.setattr("sys.argv", [*arguments, "--threads", "1"])
    # Other processes take time, but not time of this one.
    monkeypatch.setattr("prance_env.rewards.measuring.time", SimpleNamespace(perf_counter=time.process_time))
    main()
    table = load_latency_table(str(out))
    table.check(CONFIG)
    assert table.batch_size == 32
    assert table.num_tokens == [2, 17]
    assert f"{table.full_ms(CONFIG.space):.3f} ms" in capsys.readouterr().out
    times = np.array(table.group_ms)
    assert (times[:, -1, -1, -1] > times[:, 0, 0, 0]).all()
    assert make_envs(cost="latency", latency_table=str(out)).reset(seed=0)[1]["latency_ms"][0] > 0


def test_nonsensical_measurements_are_refused() -> None:
    for name in ("batch_size", "num_token_counts", "repeats"):
        with pytest.raises(ValueError, match=f"{name}=0"):
            measure_latency_table(CONFIG, **{name: 0})


def test_a_network_without_class_token_gets_a_table_that_fits_it() -> None:
    config = replace(CONFIG, class_token=False, global_pool="avg")
    table = measure_latency_table(config, batch_size=2, num_token_counts=2, repeats=1)
    assert table.num_tokens == [1, config.num_patches]
    table.check(config)


def test_the_last_group_is_timed_as_where_only_logits_follow(monkeypatch: pytest.MonkeyPatch) -> None:
    run_group, last = Supernet.run_group, len(CONFIG.space.groups) - 1
    timed: dict[int, set[bool]] = {}

    def noted(net: Supernet, state: Any, group: int, *args: Any, head_only: bool = False, **more: Any) -> Any:
        timed.setdefault(group, set()).add(head_only)
        return run_group(net, state, group, *args, head_only=head_only, **more)

    monkeypatch.setattr(Supernet, "run_group", noted)
    measure_latency_table(CONFIG, batch_size=2, num_token_counts=1, repeats=1)
    assert timed == {group: {group == last} for group in range(last + 1)}


@pytest.mark.parametrize("first", [False, True])
def test_both_costs_begin_and_end_where_the_inference_does(first: bool) -> None:
    space = SearchSpace((2, 2), (8, 16), (1, 2), (2,), 0.1, decide_first_group=first)
    net = random_net(SupernetConfig(space, img_size=16, patch_size=4, in_chans=3, num_classes=3, head_dim=8))
    table = measure_latency_table(net.config, batch_size=2, num_token_counts=2, repeats=1)
    before = net.begin(torch.rand(2, 3, 16, 16))
    for cost in (MacsCost(net, int(net.macs())), LatencyCost(table, space)):
        spent, state = cost.begin(2), before
        np.testing.assert_allclose(cost.finished(spent, state), cost.full, rtol=1e-9)
        for group in range(space.first_decided, 2):
            choice = GroupChoice.full(space, group, 2)
            after = net.run_group(state, group, choice)
            spent, state = cost.spent(spent, choice, state, after), after
            np.testing.assert_allclose(cost.finished(spent, state), cost.full, rtol=1e-9)
    assert (MacsCost(net, int(net.macs())).begin(2) == before.macs).all()


def test_seconds_on_a_gpu_are_those_of_its_events(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            done.append("recorded")

        def elapsed_time(self, end: Event) -> float:
            return 12.0

    monkeypatch.setattr(torch.cuda, "Event", Event)

    @contextmanager
    def current(device: torch.device) -> Iterator[None]:
        done.append(f"on {device}")
        yield
        done.append("left")

    monkeypatch.setattr(torch.cuda, "device", current)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: done.append("waited"))
    assert seconds_of(lambda: done.append("called"), torch.device("cuda", 1)) == 0.012
    assert done == ["waited", "on cuda:1", "recorded", "called", "recorded", "left", "waited"]
