"""`prance bench-env` times episodes as they are said to be, and judges them by what was timed side by side."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3.common.vec_env import VecMonitor

from prance_env import InferenceEngine, PranceVecEnv, PranceVectorEnv
from supernet import Supernet
from supernet.checkpoint import load_config
from train.commands.main import main
from train.timing.episodes import (
    AUTHORS,
    CACHED,
    ENGINE,
    FIRST,
    FULL,
    LAUNCHED,
    LEARNING,
    POLICY,
    SB3,
    TENSORS,
    TIMM,
    TRAINING,
    UNCACHED,
    EnvBenchSettings,
    RandomActions,
    as_tensors,
    contenders,
    make_task,
    run_bench_env,
    summarise,
)

QUICK = EnvBenchSettings("digits", num_images=4, repeats=2, warmup=1)


@pytest.mark.parametrize("supernet", ["digits", pytest.param("prance_vit_tiny", marks=pytest.mark.slow)])
def test_rows_targets_machine_and_settings_are_written(
    supernet: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = run_bench_env(replace(QUICK, supernet=supernet), tmp_path / "bench.json")
    assert json.loads((tmp_path / "bench.json").read_text()) == json.loads(json.dumps(result))
    assert [r["contender"] for r in result["rows"]] == [FULL, FIRST, UNCACHED, CACHED, SB3, AUTHORS]
    assert result["machine"]["threads"] == torch.get_num_threads()
    assert result["settings"]["num_images"] == 4
    assert all(len(r["seconds"]) == 2 for r in result["rows"])
    out = capsys.readouterr().out
    for word in ("environment", "+ policy", "+ training", "wanted <= 1.2", "wanted >= 5"):
        assert word in out


def test_the_command_takes_a_checkpoint_and_any_supernet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[EnvBenchSettings] = []
    monkeypatch.setattr("train.commands.bench_env.run_bench_env", lambda settings, out: seen.append(settings))
    arguments = ["--supernet", "prance_vit_small", "--checkpoint", "a/folder", "--num-images", "64", "--threads", "1"]
    monkeypatch.setattr("sys.argv", ["prance", "bench-env", *arguments])
    main()
    assert seen == [EnvBenchSettings("prance_vit_small", 64, environment={"checkpoint": "a/folder"})]


class Counted:
    """How many images go through which part of the network."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.images: dict[str, int] = {}
        for name in ("embed", "run_group"):
            self._count(monkeypatch, name)

    def _count(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        real = getattr(Supernet, name)

        def counting(net: Supernet, batch: Any, *rest: Any, **named: Any) -> Any:
            self.images[name] = self.images.get(name, 0) + len(batch)
            return real(net, batch, *rest, **named)

        monkeypatch.setattr(Supernet, name, counting)

    def of(self, call: Any) -> tuple[int, int]:
        """Images embedded, and images times groups after the first, by one call."""
        self.images.clear()
        call()
        return self.images.get("embed", 0), self.images.get("run_group", 0)


def test_contenders_run_the_network_as_often_as_their_names_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = contenders(QUICK, make_task(QUICK, tmp_path))
    calls[TRAINING]()  # the first one also resets
    counted, n = Counted(monkeypatch), QUICK.num_images
    # Three decisions: 1 + 2, 1 + 1 and 1 groups with Result-to-Go; the full verdict of a new image takes 3 more.
    whole, episode, verdict = counted.of(calls[FULL]), 6 * n, 3 * n
    assert whole[0] == n
    prefix = whole[1] - 3 * n
    assert counted.of(calls[AUTHORS]) == (4 * n, 4 * whole[1])
    assert counted.of(calls[UNCACHED]) == (n, prefix + episode)
    assert counted.of(calls[FIRST]) == (n, prefix + episode + verdict)
    for name in (CACHED, SB3, POLICY, TRAINING):
        assert counted.of(calls[name]) == (0, episode), name


@pytest.mark.slow
def test_what_is_timed_on_a_gpu_plays_episodes_as_tensors(
    tmp_path: Path, checkpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = EnvBenchSettings("digits", num_images=3, timm="test_vit", environment={"checkpoint": checkpoint})
    space = load_config(Path(checkpoint)).space
    actions = np.random.default_rng(0).uniform(-1, 1, (space.num_decisions, 3, space.action_size)).astype(np.float32)
    calls = as_tensors(given, make_task(given, tmp_path), actions)
    assert list(calls) == [TIMM, ENGINE, TENSORS, LAUNCHED, LEARNING]
    for call in calls.values():  # the first time the agent resets, and prefixes are computed
        call()
    counted, episode = Counted(monkeypatch), 3 * 3  # two decisions: 1 + 1 and 1 groups
    for name, call in calls.items():
        assert counted.of(call) == (0, 0 if name == TIMM else episode), name


def test_random_tasks_need_no_weights_and_exist_for_any_registered_supernet(tmp_path: Path, checkpoint: str) -> None:
    tiny = EnvBenchSettings("prance_vit_tiny", num_images=2)
    envs = PranceVectorEnv(2, **make_task(tiny, tmp_path / "weights"))
    assert envs.config.img_size == 224
    given = EnvBenchSettings("digits", num_images=3, environment={"checkpoint": checkpoint})
    task = make_task(given, tmp_path)
    envs = PranceVectorEnv(3, **task)
    envs.reset(seed=0)
    engine = envs.lanes.engine
    assert isinstance(engine, InferenceEngine)
    assert task["checkpoint"] == checkpoint
    assert len(engine.dataset) == 3
    assert engine.config.num_classes == 3


def test_the_policys_actions_are_replaced_in_turn() -> None:
    venv = VecMonitor(PranceVecEnv(PranceVectorEnv(2, "SAME_STEP")))
    other = VecMonitor(PranceVecEnv(PranceVectorEnv(2, "SAME_STEP")))
    actions = np.random.default_rng(0).uniform(-1, 1, (3, *(2, venv.action_space.shape[0]))).astype(np.float32)  # type: ignore[index]
    replaced = RandomActions(venv, actions)
    for v in (replaced, other):
        v.seed(0)
        v.reset()
    for step in range(6):
        given, expected = replaced.step(np.zeros_like(actions[0])), other.step(actions[step % 3])
        for mine, theirs in zip(given[:3], expected[:3], strict=True):
            np.testing.assert_array_equal(mine, theirs)


def test_targets_and_columns_come_from_rounds_timed_side_by_side() -> None:
    slow = [1.0, 2.0, 10.0]  # the machine got slower and slower
    share = {FULL: 1.0, FIRST: 1.6, UNCACHED: 0.8, CACHED: 0.5, SB3: 0.6, POLICY: 0.7, TRAINING: 1.1, AUTHORS: 4.0}
    rows, targets = summarise({name: [s * part for s in slow] for name, part in share.items()}, 2)
    by_name = {r["contender"]: r for r in rows}
    assert by_name[UNCACHED]["full_forwards"] == pytest.approx(
        {"environment": 0.8, "with_policy": 0.9, "with_training": 1.3}
    )
    assert by_name[CACHED]["ms_per_episode"]["environment"] == pytest.approx(1e3 * 2 * 0.5 / 2)
    assert by_name[CACHED]["episodes_per_second"]["environment"] == pytest.approx(2 / (2 * 0.5))
    assert by_name[CACHED]["episodes_per_second_vs_authors"] == pytest.approx(8)
    assert list(by_name[FULL]["full_forwards"]) == ["environment"]
    assert [t["value"] for t in targets] == pytest.approx([0.8, 0.5, 0.2, 8])
    assert [t["met"] for t in targets] == [True, True, False, True]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_images": 1}, "num_images=1"),
        ({"num_images": 10**6}, "num_images=1000000 must be at least 2 and at most 16384"),
        ({"repeats": 0}, "repeats=0"),
    ],
)
def test_impossible_settings_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EnvBenchSettings("digits", **changes)
