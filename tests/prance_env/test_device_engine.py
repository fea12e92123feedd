"""The engine where groups run by tiles: the same episodes as by segments, and nothing waits for the device."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from device_asks import NotingRecorder, nothing_asked_of_the_device
from helpers import FixedSettings, make_engine, random_net, unit_actions
from mode_nets import make_config

from prance_env import InferenceEngine, RewardConfig, device_episodes, register_observation, register_reward
from prance_env.device_episodes import NUMBERS, DeviceEpisodes, Observing
from prance_env.lanes import Lanes
from prance_env.observations import OBSERVATIONS
from prance_env.rewards.measuring import measure_latency_table
from prance_env.rewards.outcome import REWARDS as OWN_REWARDS
from prance_env.rewards.prices import CostConditioning
from prance_env.spaces import decode_actions
from supernet import runtime
from supernet.config import with_space
from supernet.runtime.memory import bytes_per_image

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
BATCH = 4
SHOWN = ("cls", "cls_only", "key_mean")
REWARDS = {
    "result_to_go": RewardConfig(token_weight=0.1),
    "terminal": RewardConfig(mode="terminal", accuracy="top1"),
    "potential": RewardConfig(mode="potential", accuracy="mixed"),
}


@pytest.fixture(autouse=True)
def _without_gradients() -> Iterator[None]:
    pytest.importorskip("triton")
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def engine() -> InferenceEngine:
    return make_engine(random_net(make_config("prune_merge", "class-token", False)).to(DEVICE), 12, key_mean=True)


def path_of(engine: InferenceEngine, reward: RewardConfig, way: str) -> list[Any]:
    actions = unit_actions(engine.config.space, BATCH)
    with runtime.use(way):
        path = [engine.start(np.arange(BATCH))]
        for decision in range(actions.shape[1]):
            path.append(engine.step(path[-1], actions[:, decision], reward))
    return path


@pytest.mark.parametrize("name", REWARDS)
def test_episodes_are_those_by_segments(name: str, engine: InferenceEngine) -> None:
    segments, tiles = (path_of(engine, REWARDS[name], way) for way in ("segments", "tiles"))
    for expected, found in zip(segments[1:], tiles[1:], strict=True):
        assert type(found) is DeviceEpisodes
        for field in NUMBERS:
            actual, wanted = getattr(found, field), getattr(expected, field)
            assert actual.dtype == wanted.dtype
            np.testing.assert_allclose(actual, wanted, atol=1e-5)
        np.testing.assert_array_equal(found.macs, expected.macs)
        np.testing.assert_array_equal(found.state.num_tokens, expected.state.num_tokens)
        for observation in ("cls", "key_mean"):
            np.testing.assert_allclose(
                engine.observe(found, observation).cpu(), engine.observe(expected, observation).cpu(), atol=1e-4
            )
    lanes = np.array([2, 0])
    assert found[lanes].reward.tolist() == found.reward[lanes].tolist()


def test_every_step_is_scored_by_the_reward_that_it_is_given(engine: InferenceEngine) -> None:
    actions = unit_actions(engine.config.space, BATCH)
    for way in ("segments", "tiles"):
        with runtime.use(way):
            episodes = engine.start(np.arange(BATCH))
            for decision, price in enumerate((0.2, 0.9)):
                episodes = engine.step(episodes, actions[:, decision], RewardConfig(macs_weight=price))
                expected = -price * episodes.macs / engine.full_macs
                np.testing.assert_allclose(episodes.reward_macs, expected, err_msg=way)


def lanes_on(engine: InferenceEngine, **settings: Any) -> Lanes:
    return Lanes(FixedSettings(split="val", fixed=engine, device=DEVICE, **settings), BATCH)


def test_lanes_hand_out_tensors_and_what_they_hold_is_that_of_segments(engine: InferenceEngine) -> None:
    actions = np.random.default_rng(0).uniform(-1, 1, (2, BATCH, engine.config.space.action_size))
    tiles, segments = (lanes_on(engine, cost_conditioning=(0.1, 0.5)) for _ in range(2))
    everything = np.arange(BATCH)
    for lanes in (tiles, segments):
        lanes.start(everything, seeds=list(range(BATCH)))
    for taken in actions:
        with runtime.use("segments"):
            segments.step(taken)
        with runtime.use("tiles"):
            tiles.step(torch.from_numpy(taken).to(DEVICE))
        assert isinstance(tiles.rewards(), torch.Tensor)
        np.testing.assert_allclose(torch.as_tensor(tiles.rewards()).cpu(), segments.rewards(), atol=1e-5)
        for key, value in segments.infos().items():
            np.testing.assert_allclose(torch.as_tensor(tiles.infos()[key]).cpu(), value, atol=1e-5)
        with runtime.use("tiles"):
            np.testing.assert_allclose(tiles.observations().cpu(), segments.observations().cpu(), atol=1e-4)
    half = np.array([1, 3])
    for lanes in (tiles, segments):
        lanes.start(half)
    with runtime.use("tiles"):
        tiles.step(actions[0])
    with runtime.use("segments"):
        segments.step(actions[0])
    np.testing.assert_allclose(torch.as_tensor(tiles.rewards()).cpu(), segments.rewards(), atol=1e-5)


def test_infos_of_lanes_that_stand_at_different_decisions_are_arrays(engine: InferenceEngine) -> None:
    actions = np.random.default_rng(0).uniform(-1, 1, (BATCH, engine.config.space.action_size))
    infos = {}
    for way in ("segments", "tiles"):
        lanes = lanes_on(engine, cost_conditioning=(0.1, 0.5))
        with runtime.use(way):
            lanes.start(np.arange(BATCH), seeds=list(range(BATCH)))
            lanes.step(actions)
            lanes.start(np.array([1, 3]))
            lanes.step(actions)
            infos[way] = lanes.infos()
    for key, value in infos["segments"].items():
        found = infos["tiles"][key]
        assert (type(found), found.dtype) == (np.ndarray, value.dtype)
        np.testing.assert_allclose(found, value, atol=1e-5)


def test_an_action_of_nan_on_the_device_is_a_reward_of_nan(engine: InferenceEngine) -> None:
    unit = torch.from_numpy(unit_actions(engine.config.space, BATCH)[:, 0]).to(DEVICE)
    unit[1, 0] = float("nan")
    with runtime.use("tiles"):
        reward = engine.step(engine.start(np.arange(BATCH)), decode_actions(unit, False), RewardConfig()).reward
    assert np.isnan(reward).tolist() == [False, True, False, False]


def test_recorded_steps_are_not_replayed_for_weights_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_episodes, "records_graphs", lambda device: True)
    engine = make_engine(random_net(make_config("prune", "class-token", False)).to(DEVICE), 4)
    recorder = engine._recorder = NotingRecorder()

    def asked() -> None:
        with pytest.raises(NotingRecorder.Asked):
            path_of(engine, RewardConfig(), "tiles")

    asked()
    asked()
    kept = [t.data for t in engine.net.parameters()]  # so that nothing new lies at their addresses
    with torch.inference_mode(False):
        engine.net.to(torch.bfloat16).to(torch.float32)
    asked()
    assert recorder.names[0] == recorder.names[1] != recorder.names[2]
    assert len(kept) > 0
    engine.net.run_by(with_space(engine.net.config, token_mode="prune_fused"))
    asked()
    assert recorder.names[3] not in recorder.names[:3]


def test_a_hook_is_refused_at_every_decision() -> None:
    engine = make_engine(random_net(make_config("prune", "class-token", False)).to(DEVICE), 4)
    unit, space = unit_actions(engine.config.space, BATCH), engine.config.space
    for way in ("segments", "tiles"):
        with runtime.use(way):
            episodes = engine.start(np.arange(BATCH))
            for decision in range(space.num_decisions):
                number = space.blocks(episodes.state.group)[0]
                hook = engine.net.blocks[number].fc1.register_forward_hook(lambda *given: None)
                with pytest.raises(ValueError, match=rf"The layer blocks\.{number}\.fc1 has hooks"):
                    engine.step(episodes, unit[:, decision], RewardConfig())
                hook.remove()
                episodes = engine.step(episodes, unit[:, decision], RewardConfig())


@pytest.mark.parametrize("conditioning", [None, CostConditioning(0.1, 0.5)])
def test_an_observation_comes_with_the_step_if_it_is_named(
    conditioning: CostConditioning | None, engine: InferenceEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    unit, prices = unit_actions(engine.config.space, BATCH)[:, 0], np.linspace(0.1, 0.5, BATCH)
    with runtime.use("tiles"):
        begun = replace(engine.start(np.arange(BATCH)), macs_weight=prices)
        expected = [engine.observe(engine.step(begun, unit, RewardConfig()), name, conditioning) for name in SHOWN]
        for name, wanted in zip(SHOWN, expected, strict=True):
            after = engine.step(begun, unit, RewardConfig(), Observing(name, conditioning))
            with monkeypatch.context() as patch:
                patch.setattr("prance_env.engine.observe", None)
                assert torch.equal(engine.observe(after, name, conditioning), wanted)
            assert torch.equal(engine.observe(after, "constant"), engine.observe(begun, "constant").roll(1, 1))


def test_what_a_user_observes_is_asked_after_the_step(engine: InferenceEngine) -> None:
    asked: list[str] = []

    @register_observation("mine_after_steps")
    def mine(seen: Any) -> torch.Tensor:
        asked.append("")
        return torch.zeros(len(seen.state), 1, device=DEVICE)

    try:
        with runtime.use("tiles"):
            begun, unit = engine.start(np.arange(BATCH)), unit_actions(engine.config.space, BATCH)[:, 0]
            after = engine.step(begun, unit, RewardConfig(), Observing("mine_after_steps"))
            assert not asked
            engine.observe(after, "mine_after_steps")
            assert len(asked) == 1
    finally:
        OBSERVATIONS.remove("mine_after_steps")


def test_an_observation_that_is_registered_anew_shows_its_new_parts(
    engine: InferenceEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, unit = engine.start(np.arange(BATCH)), unit_actions(engine.config.space, BATCH)[:, 0]
    recorder, seen = NotingRecorder(), Observing("lean")

    def recorded() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(device_episodes, "records_graphs", lambda device: True)
            patch.setattr(engine, "_recorder", recorder)
            with pytest.raises(NotingRecorder.Asked):
                engine.step(begun, unit, RewardConfig(), seen)

    try:
        with runtime.use("tiles"):
            register_observation("lean", ("max_prob", "decision"))
            after = engine.step(begun, unit, RewardConfig(), seen)
            recorded()
            OBSERVATIONS.remove("lean")
            register_observation("lean", ("entropy", "decision"))
            recorded()
            expected = engine.observe(engine.step(begun, unit, RewardConfig()), "lean")
            assert torch.equal(engine.observe(after, "lean"), expected)
    finally:
        OBSERVATIONS.remove("lean")
    assert recorder.names[0] != recorder.names[1]


def test_with_terminal_rewards_an_action_of_nan_spoils_the_last_reward(engine: InferenceEngine) -> None:
    unit = torch.from_numpy(unit_actions(engine.config.space, BATCH)).to(DEVICE)
    unit[1, 0, 0] = float("nan")
    with runtime.use("tiles"):
        episodes = engine.start(np.arange(BATCH))
        for decision in range(unit.shape[1]):
            episodes = engine.step(episodes, unit[:, decision], RewardConfig(mode="terminal"))
            assert np.isnan(episodes.reward).tolist() == [False, True, False, False]


@pytest.mark.parametrize("kind", ["function", "latency"])
def test_rewards_that_are_computed_on_the_host_step_as_by_segments(
    kind: str, engine: InferenceEngine, tmp_path: Path
) -> None:
    settings = FixedSettings(split="val", fixed=engine, device=DEVICE)
    if kind == "function":
        register_reward("of_the_host", lambda outcome: outcome.accuracy - outcome.macs / outcome.full_macs)
        reward = RewardConfig(function="of_the_host")
    else:
        table = measure_latency_table(engine.config, batch_size=1, num_token_counts=2, repeats=1)
        table.save(tmp_path / "table.json")
        reward = RewardConfig(cost="latency", latency_table=str(tmp_path / "table.json"))
    ways = {way: Lanes(settings, BATCH) for way in ("segments", "tiles")}
    try:
        for way, lanes in ways.items():
            with runtime.use(way):
                lanes.reward = reward
                lanes.start(np.arange(BATCH), seeds=list(range(BATCH)))
                for taken in unit_actions(engine.config.space, BATCH).swapaxes(0, 1):
                    lanes.step(2 * taken - 1)
                    lanes.infos()
    finally:
        OWN_REWARDS.remove("of_the_host")
    segments, tiles = ways.values()
    np.testing.assert_allclose(tiles.rewards(), segments.rewards(), atol=1e-5)
    for key, value in segments.infos().items():
        assert tiles.infos()[key].dtype == value.dtype, key
        np.testing.assert_allclose(tiles.infos()[key], value, atol=1e-5)


def test_what_infos_and_rewards_hold_is_the_callers(engine: InferenceEngine) -> None:
    lanes = lanes_on(engine, cost_conditioning=(0.1, 0.5))
    lanes.start(np.arange(BATCH), seeds=[0] * BATCH)
    with runtime.use("tiles"):
        lanes.step(np.zeros((BATCH, engine.config.space.action_size)))
    expected = {k: torch.as_tensor(v).cpu().numpy().copy() for k, v in lanes.infos().items()}
    rewards = torch.as_tensor(lanes.rewards()).cpu().numpy().copy()
    with torch.inference_mode(False):  # tensors of inference could not be written into
        for value in (*lanes.infos().values(), lanes.rewards()):
            value[:] = 0
    np.testing.assert_array_equal(torch.as_tensor(lanes.rewards()).cpu(), rewards)
    for key, value in lanes.infos().items():
        np.testing.assert_array_equal(torch.as_tensor(value).cpu(), expected[key], err_msg=key)


@pytest.mark.skipif(CUDA, reason="tried there with CUDA's own check of synchronisations")
def test_a_step_asks_nothing_of_the_device(engine: InferenceEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    lanes = lanes_on(engine)
    lanes.start(np.arange(BATCH), seeds=[0] * BATCH)
    actions = torch.rand(BATCH, engine.config.space.action_size)
    with runtime.use("tiles"), nothing_asked_of_the_device(monkeypatch):
        for _ in range(engine.config.space.num_decisions):
            lanes.step(actions)
            rewards, infos, observations = lanes.rewards(), lanes.infos(), lanes.observations()
    assert all(len(v) == BATCH for v in (rewards, observations, *infos.values()))


@pytest.mark.cuda
def test_steps_that_are_replayed_are_those_that_are_computed(engine: InferenceEngine) -> None:
    def played(graphs: bool) -> list[Any]:
        for _ in range(4):  # recorded on the way, and replayed in the end
            with runtime.use("tiles", graphs=graphs):
                path = [engine.start(np.arange(BATCH))]
                for actions in unit_actions(engine.config.space, BATCH).swapaxes(0, 1):
                    path.append(engine.step(path[-1], actions, RewardConfig()))
        return path

    for computed, replayed in zip(played(False)[1:], played(True)[1:], strict=True):
        for field in NUMBERS:
            np.testing.assert_array_equal(getattr(replayed, field), getattr(computed, field))
        assert torch.equal(replayed.state.host.tokens, computed.state.host.tokens)


@pytest.mark.cuda
def test_an_episode_waits_for_nothing_on_a_gpu(engine: InferenceEngine) -> None:
    lanes = lanes_on(engine)
    actions = torch.rand(BATCH, engine.config.space.action_size, device=DEVICE)
    for tried in range(4):  # the first time kernels are compiled, later steps are recorded and replayed
        lanes.start(np.arange(BATCH), seeds=[0] * BATCH)
        torch.cuda.set_sync_debug_mode("error" if tried else "default")
        try:
            for _ in range(engine.config.space.num_decisions):
                lanes.step(actions)
                rewards = torch.as_tensor(lanes.rewards()), lanes.observations()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert all(bool(r.isfinite().all()) for r in rewards)


def test_a_batch_too_large_for_the_gpu_says_how_many_images_fit(
    engine: InferenceEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[weakref.ref[torch.Tensor]] = []

    def exhausted(*args: Any, **kwargs: Any) -> None:
        held = torch.zeros(4)
        taken.append(weakref.ref(held))
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    begun, before = engine.start(np.arange(BATCH)), engine.observe(engine.start(np.arange(BATCH)), "cls")
    free = 5 * bytes_per_image(engine.config, torch.float32) + 1

    def info(device: torch.device) -> tuple[int, int]:
        return 0 if taken[-1]() is not None else free, 2**34  # as long as anything holds it, it counts as used

    monkeypatch.setattr(torch.cuda, "mem_get_info", info)
    with monkeypatch.context() as patch:
        patch.setattr(engine.net, "run_group", exhausted)
        with pytest.raises(RuntimeError, match=r"4 images at a time .* 16\.0 GiB are free: about 5 fit\. Take fewer"):
            engine.step(begun, unit_actions(engine.config.space, BATCH)[:, 0], RewardConfig(latency_table=None))
    assert torch.equal(engine.observe(begun, "cls"), before)
