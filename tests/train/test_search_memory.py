"""A search for yardsticks that was stopped goes on where it was, and ends with the same bits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from conftest import scenes
from helpers import make_engine, settings_for
from small_nets import small_net

from agents.baselines import StaticAgent
from prance_env import InferenceEngine
from supernet import SubnetConfig, Supernet
from tools.faults.folders import differences
from train.evaluate import evaluate
from train.networks.importance import full_network
from train.search import memory as module
from train.search.memory import FOLDER, Memory, digest_of
from train.search.shared_runs import SharedRuns
from train.search.static import evolve_static_front
from train.yardsticks import compute, static_designs
from train.yardsticks.compute import YardstickSettings, run_yardsticks, static_front

SMALL = {"num_subnets": 8, "oracle_subnets": 4, "copies": 1, "sweeps": 1, "designs": False}


def counting(monkeypatch: pytest.MonkeyPatch, stop_at: int | None = None) -> list[int]:
    """Counts judged subnets; after so many, somebody presses Ctrl-C."""
    judged, verdict = [0], SharedRuns.verdict

    def counted(self: SharedRuns, *args: Any) -> Any:
        if judged[0] == stop_at:
            raise KeyboardInterrupt
        judged[0] += 1
        return verdict(self, *args)

    monkeypatch.setattr(SharedRuns, "verdict", counted)
    return judged


def test_a_search_repeats_no_verdict(engine: InferenceEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = np.arange(40)
    whole = evolve_static_front(engine, index, 12, seed=1)
    with monkeypatch.context() as patch:
        counting(patch, stop_at=7)
        with pytest.raises(KeyboardInterrupt):
            evolve_static_front(engine, index, 12, seed=1, memory=Memory(tmp_path, {"seed": 1}))
    judged = counting(monkeypatch)
    again = Memory(tmp_path, {"seed": 1})
    assert again.goes_on
    resumed = evolve_static_front(engine, index, 12, seed=1, memory=again)
    assert judged == [12 - 7]
    for name in ("actions", "macs_fraction", "correct"):
        np.testing.assert_array_equal(getattr(resumed, name), getattr(whole, name))


def test_another_search_forgets(tmp_path: Path) -> None:
    first = Memory(tmp_path, {"seed": 1})
    assert first.step("a", lambda: {"x": np.arange(3)})["x"].tolist() == [0, 1, 2]
    assert Memory(tmp_path, {"seed": 1}).step("a", lambda: {"x": np.zeros(1)})["x"].tolist() == [0, 1, 2]
    other = Memory(tmp_path, {"seed": 2})
    assert not other.goes_on
    assert other.step("a", lambda: {"x": np.zeros(1)})["x"].tolist() == [0]
    other.forget()
    assert not any(tmp_path.iterdir())


def test_a_damaged_step_is_computed_again(tmp_path: Path) -> None:
    memory = Memory(tmp_path, {})
    memory.step("a", lambda: {"x": np.arange(3)})
    path = tmp_path / FOLDER / "a.npz"
    path.write_bytes(path.read_bytes()[:20])
    assert memory.step("a", lambda: {"x": np.ones(2)})["x"].tolist() == [1, 1]


def test_an_agent_that_was_trained_anew_is_judged_anew(
    digits_net: Supernet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(digits_net, 24)
    env, space = settings_for(engine), engine.config.space
    found = evolve_static_front(engine, np.arange(24), 4)
    monkeypatch.setattr(compute, "PRICES", np.array([0.1]))
    for subnet in (SubnetConfig.min(space), SubnetConfig.full(space)):
        learned = evaluate(StaticAgent(subnet, engine.config), env)
        front = static_front(found, env, tmp_path, {"learned": learned}, Memory(tmp_path, {}))
        assert front.agent[-1] == "learned"
        np.testing.assert_array_equal(front.macs_fraction[-1], learned.macs_fraction)
    monkeypatch.setattr(compute, "evaluate", Mock(side_effect=AssertionError("judged again")))
    static_front(found, env, tmp_path, {}, Memory(tmp_path, {}))


def test_networks_are_not_made_again(tmp_path: Path) -> None:
    net = small_net("prune", groups=(1, 1))
    made, images = full_network(net), torch.rand(2, 3, 24, 24)
    Memory(tmp_path, {}).networks("pruned", lambda: [made, made])
    kept = Memory(tmp_path, {}).networks("pruned", list)
    assert [network.block_sizes for network in kept] == 2 * [made.block_sizes]
    with torch.no_grad():
        assert torch.equal(kept[1](images), made.eval()(images))
    weights = next((tmp_path / FOLDER).rglob("1/*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-20])
    assert Memory(tmp_path, {}).networks("pruned", list) == []


def test_seconds_add_up_over_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 5.0, 100.0, 107.0, 108.0])
    monkeypatch.setattr(module.time, "perf_counter", lambda: next(clock))
    with pytest.raises(KeyboardInterrupt), Memory(tmp_path, {}).timed("all"):
        raise KeyboardInterrupt
    with Memory(tmp_path, {}).timed("all") as spent:
        assert spent()["seconds"] == 12.0


def test_weights_and_images_are_told_apart(digits_net: Supernet, engine: InferenceEngine) -> None:
    assert digest_of(engine) == digest_of(make_engine(digits_net, 60))
    assert digest_of(engine) != digest_of(make_engine(digits_net, 59))


@pytest.fixture
def few() -> Iterator[None]:
    with scenes(train=32, val=24, test=24), pytest.MonkeyPatch.context() as patch:
        patch.setattr(compute, "PRICES", np.array([0.03, 0.3]))
        patch.setattr(compute, "CONFIDENCE_PRICES", np.array([0.03, 0.1]))
        yield


@pytest.mark.slow
@pytest.mark.parametrize("part", ["evaluate", "evaluate_actions", "tune_confidence", "noisy_copy"])
def test_yardsticks_that_were_stopped_are_those_that_were_not(
    part: str, few: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = YardstickSettings(**SMALL)  # type: ignore[arg-type]
    run_yardsticks(settings, tmp_path / "whole")
    usual: Callable[..., Any] = getattr(compute, part)
    calls = [0]

    def stopped(*args: Any, **named: Any) -> Any:
        calls[0] += 1
        if calls[0] == 2:
            raise KeyboardInterrupt
        return usual(*args, **named)

    with monkeypatch.context() as patch:
        patch.setattr(compute, part, stopped)
        with pytest.raises(KeyboardInterrupt):
            run_yardsticks(settings, tmp_path / "out")
    judged = counting(monkeypatch)
    run_yardsticks(settings, tmp_path / "out")
    assert judged == [0]
    assert "Going on with what was begun" in capsys.readouterr().out
    assert differences(tmp_path / "whole", tmp_path / "out") == []


@pytest.mark.slow
def test_what_was_pruned_is_not_pruned_again(few: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(static_designs, "SHARES", (0.9,))
    settings = YardstickSettings(**{**SMALL, "designs": True})  # type: ignore[arg-type]
    run_yardsticks(settings, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(compute, "evolve_static_front", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run_yardsticks(settings, tmp_path / "out")
    monkeypatch.setattr(compute, "nvit_networks", Mock(side_effect=AssertionError("pruned again")))
    run_yardsticks(settings, tmp_path / "out")
    assert differences(tmp_path / "whole", tmp_path / "out") == []


@pytest.mark.parametrize("listed", ["[]", '["0"]', '["1", "0"]'])
def test_networks_that_a_damaged_list_leaves_out_are_made_again(listed: str, tmp_path: Path) -> None:
    static = full_network(small_net())
    memory = Memory(tmp_path, {"seed": 1})
    memory.networks("pruned", lambda: [static, static])
    (memory.folder / "pruned.json").write_text(listed)
    assert len(memory.networks("pruned", lambda: [static, static])) == 2


def test_damaged_notes_of_a_search_are_dropped(tmp_path: Path) -> None:
    memory = Memory(tmp_path, {"seed": 1})
    (memory.folder / "times.json").write_text('{"all": {"seconds": NaN}}')
    with memory.timed("all") as spent:
        assert np.isfinite(spent()["seconds"])
    (memory.folder / "of.json").write_bytes(b"\xff\xfe")
    assert not Memory(tmp_path, {"seed": 1}).goes_on
