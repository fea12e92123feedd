"""The native vector environment: N single environments, computed as one batch."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.wrappers.vector import RecordEpisodeStatistics
from helpers import ENV_ID, INFO_KEYS

from prance_env import PranceVectorEnv

pytestmark = pytest.mark.filterwarnings("error", "default::ResourceWarning")
MODES = list(AutoresetMode)
N = 5


def make_envs(mode: AutoresetMode | str = AutoresetMode.NEXT_STEP, num_envs: int = N, **kwargs: Any) -> PranceVectorEnv:
    """The native vector environment."""
    envs = gym.make_vec(ENV_ID, num_envs=num_envs, autoreset_mode=mode, **kwargs)
    assert isinstance(envs, PranceVectorEnv)
    return envs


def random_actions(seed: int = 0) -> Iterator[np.ndarray]:
    """Batches of actions, some of them beyond the Box."""
    rng = np.random.default_rng(seed)
    shape = make_envs().action_space.shape or ()
    while True:
        yield rng.uniform(-1.3, 1.3, shape).astype(np.float32)


def assert_same(a: Any, b: Any, mask: np.ndarray | None = None) -> None:
    """Equal structure and types; whole numbers and flags equal, floats within 1e-5; infos where their masks hold."""
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key, value in a.items():
            masked = a.get(f"_{key}")
            if masked is not None:
                np.testing.assert_array_equal(masked, b[f"_{key}"])
            assert_same(value, b[key], masked)
    elif isinstance(a, tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        if a.dtype == object:
            assert [x is None for x in a] == [y is None for y in b]
        a, b = (x if mask is None else x[mask] for x in (a, b))
        if a.dtype == object:
            a, b = np.stack(list(a)), np.stack(list(b))
        if np.issubdtype(a.dtype, np.floating):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)
        else:
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "reward",
    [
        {"mode": "potential"},
        pytest.param({"accuracy": "prob", "token_weight": 0.1}, marks=pytest.mark.slow),
        pytest.param({"mode": "terminal"}, marks=pytest.mark.slow),
    ],
)
def test_lanes_equal_single_environments_also_when_they_stand_at_different_decisions(
    mode: AutoresetMode, reward: dict[str, Any]
) -> None:
    both: list[VectorEnv[Any, Any, Any]] = [
        make_envs(mode, reward=reward),
        gym.make_vec(ENV_ID, N, vectorization_mode="sync", vector_kwargs={"autoreset_mode": mode}, reward=reward),
    ]
    first, last, middle = np.eye(N, dtype=bool)[[0, -1, N // 2]]
    seeds = [None, 3, None, 50, 8][:N]
    resets: dict[int, dict[str, Any]] = {
        4: {"options": {"reset_mask": first | middle}},
        8: {"options": {"reset_mask": last}, "seed": seeds},
        9: {"options": {"index": 11, "reset_mask": middle}},
        13: {"options": {"reset_mask": first}, "seed": 70},
        17: {},
    }
    ended = np.zeros(N, dtype=bool)
    phases: set[tuple[int, ...]] = set()
    assert_same(both[0].reset(seed=20), both[1].reset(seed=20))
    for number, actions in zip(range(22), random_actions(), strict=False):
        if number in resets:
            kwargs = resets[number]
            native = copy.deepcopy(kwargs)
            if "index" in native.get("options", {}):
                native["options"]["index"] = np.full(N, native["options"]["index"])
            assert_same(both[0].reset(**native), both[1].reset(**copy.deepcopy(kwargs)))
            ended &= ~kwargs.get("options", {}).get("reset_mask", np.ones(N, dtype=bool))
        if mode == AutoresetMode.DISABLED and ended.any():
            a, b = (envs.reset(options={"reset_mask": ended.copy()}) for envs in both)
            assert_same(a, b)
        results = [envs.step(actions) for envs in both]
        assert_same(results[0], results[1])
        ended = results[0][2]
        phases.add(tuple(results[0][4]["decision"]))
    assert any(len(set(p)) > 1 for p in phases)


def test_every_lane_is_the_single_environment_with_its_seed() -> None:
    envs = make_envs("SAME_STEP")
    observations, infos = envs.reset(seed=40)
    batches = [a for a, _ in zip(random_actions(1), range(7), strict=False)]
    rows = [envs.step(actions) for actions in batches]
    for lane in range(N):
        env = gym.make(ENV_ID)
        obs, info = env.reset(seed=40 + lane)
        np.testing.assert_allclose(observations[lane], obs, rtol=0, atol=1e-5)
        assert infos["index"][lane] == info["index"]
        for actions, (batch, rewards, terminations, _, step_infos) in zip(batches, rows, strict=True):
            obs, reward, terminated, _, info = env.step(actions[lane])
            assert abs(reward - rewards[lane]) <= 1e-5
            assert terminated == terminations[lane]
            if terminated:
                np.testing.assert_allclose(step_infos["final_obs"][lane], obs, rtol=0, atol=1e-5)
                assert {k: v[lane] for k, v in step_infos["final_info"].items() if k == "macs"} == {
                    "macs": info["macs"]
                }
                obs, info = env.reset()
            np.testing.assert_allclose(batch[lane], obs, rtol=0, atol=1e-5)
            assert step_infos["macs"][lane] == info["macs"]


@pytest.mark.parametrize("mode", MODES)
def test_a_reset_can_choose_the_images(mode: AutoresetMode) -> None:
    envs = make_envs(mode)
    chosen = np.array([3, 1, 4, 1, 5])
    _, infos = envs.reset(seed=0, options={"index": chosen})
    np.testing.assert_array_equal(infos["index"], chosen)
    _, infos = envs.reset(options={"index": (chosen + 100).tolist(), "reset_mask": (chosen == 1).tolist()})
    np.testing.assert_array_equal(infos["index"], np.where(chosen == 1, 101, chosen))
    np.testing.assert_array_equal(infos["_index"], chosen == 1)


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_gymnasiums_episode_statistics_count_every_decision_of_every_episode(mode: AutoresetMode) -> None:
    if mode == AutoresetMode.SAME_STEP and tuple(map(int, gym.__version__.split(".")[:2])) < (1, 4):
        pytest.skip("Gymnasium before 1.4 counts SAME_STEP episodes wrongly (its PR #1624)")
    envs = make_envs(mode)
    length = envs.config.space.num_decisions
    recorder = RecordEpisodeStatistics(envs)
    recorder.reset(seed=0)
    returns, expected = np.zeros(N), []
    actions = random_actions()
    for number in range(20):
        _, rewards, terminations, _, _ = recorder.step(next(actions))
        returns += rewards
        expected += returns[terminations].tolist()
        returns[terminations] = 0
        if mode == AutoresetMode.DISABLED and terminations.any():
            recorder.reset(options={"reset_mask": terminations.copy()})
        elif number == 6:
            mask = np.arange(N) == 1
            recorder.reset(options={"reset_mask": mask.copy()})
            returns[mask] = 0
    assert len(expected) > 2 * N
    assert list(recorder.length_queue) == [length] * len(expected)
    np.testing.assert_allclose(recorder.return_queue, expected)


@pytest.mark.parametrize("mode", MODES)
def test_everything_returned_is_fresh_and_belongs_to_the_caller(mode: AutoresetMode) -> None:
    def arrays(value: Any) -> list[np.ndarray]:
        if isinstance(value, dict | tuple):
            return [a for v in (value.values() if isinstance(value, dict) else value) for a in arrays(v)]
        return [value, *(v for v in value if isinstance(v, np.ndarray))] if value.dtype == object else [value]

    envs, untouched = make_envs(mode), make_envs(mode)
    kept: list[np.ndarray] = []
    terminated = np.zeros(N, dtype=bool)
    for number, actions in zip(range(2 * envs.config.space.num_decisions), random_actions(), strict=False):
        if number == 0 or (mode == AutoresetMode.DISABLED and terminated.any()):
            results = [e.reset(seed=0) for e in (envs, untouched)]
        else:
            results = [e.step(actions.copy()) for e in (envs, untouched)]
            terminated = results[1][2]
        assert_same(*results)
        for array in arrays(results[0]):
            array.fill(None if array.dtype == object else 77)
            kept.append(array)
    assert all((array == (None if array.dtype == object else array.dtype.type(77))).all() for array in kept)


@pytest.mark.parametrize("mode", MODES)
def test_the_autoreset_mode_is_told_in_an_own_metadata_dict_and_as_an_attribute(mode: AutoresetMode) -> None:
    for spelling in (mode, mode.name, mode.value):
        envs, other = make_envs(spelling), make_envs(MODES[0])
        assert envs.metadata["autoreset_mode"] is envs.autoreset_mode is mode
        assert envs.metadata is not other.metadata
        assert envs.metadata["render_modes"] is not other.metadata["render_modes"]
        assert "autoreset_mode" not in type(envs).metadata
        assert "torch" not in envs.metadata


def test_infos_have_the_same_keys_at_every_call_and_a_mask_beside_each() -> None:
    envs = make_envs("SAME_STEP")
    keys = {k for key in INFO_KEYS for k in (key, f"_{key}")}
    assert set(envs.reset(seed=0)[1]) == keys
    for actions, decision in zip(random_actions(), range(1, envs.config.space.num_decisions + 1), strict=False):
        infos = envs.step(actions)[4]
        last = decision == envs.config.space.num_decisions
        assert set(infos) == keys | ({"final_obs", "_final_obs", "final_info", "_final_info"} if last else set())
    assert set(infos["final_info"]) == keys


def test_it_survives_pickling_and_gives_the_same_numbers_for_the_same_seed() -> None:
    envs = make_envs("SAME_STEP", observation="cls_only", split="val")
    actions = next(random_actions())
    results = [envs.reset(seed=9), envs.step(actions)]
    clone = pickle.loads(pickle.dumps(envs))
    for expected, result in zip(results, [clone.reset(seed=9), clone.step(actions)], strict=True):
        np.testing.assert_array_equal(expected[0], result[0])


def test_unseeded_resets_go_on_with_the_generators() -> None:
    envs = make_envs()
    indices = [envs.reset(seed=seed)[1]["index"].tolist() for seed in (1, None, 1, None)]
    assert indices[:2] == indices[2:]
    assert indices[0] != indices[1]
    assert make_envs().reset()[1]["index"].tolist() != make_envs().reset()[1]["index"].tolist()


def test_an_action_for_a_lane_that_has_ended_is_ignored_with_next_step() -> None:
    envs = make_envs("NEXT_STEP")
    envs.reset(seed=0)
    actions = next(random_actions())
    while not envs.step(actions)[2].all():
        pass
    _, rewards, terminations, _, infos = envs.step(np.full_like(actions, np.nan))
    assert not rewards.any()
    assert not terminations.any()
    assert not infos["decision"].any()


def test_a_bad_action_names_its_lane_and_changes_nothing() -> None:
    envs, untouched = make_envs("NEXT_STEP"), make_envs("NEXT_STEP")
    actions = next(random_actions())
    bad = actions.copy()
    bad[N - 1, 0] = np.nan
    for e in (envs, untouched):
        e.reset(seed=0)
        for _ in range(e.config.space.num_decisions - 1):
            e.step(actions)
        e.reset(options={"reset_mask": np.arange(N) == N - 1})
        e.step(actions)
    with pytest.raises(ValueError, match=f"environment {N - 1} holds NaN"):
        envs.step(bad)
    with pytest.raises(ValueError, match=rf"\({N - 1}, .*\({N}, "):
        envs.step(actions[1:])
    assert_same(envs.step(actions), untouched.step(actions))


def test_it_must_be_reset_before_it_is_stepped_or_rendered_and_after_it_is_closed() -> None:
    envs = make_envs(render_mode="ansi")
    for call in (lambda: envs.step(next(random_actions())), envs.render):
        with pytest.raises(ResetNeeded, match=r"reset\(\)"):
            call()
    with pytest.raises(ResetNeeded, match="reset_mask"):
        envs.reset(options={"reset_mask": np.arange(N) == 0})
    envs.reset(seed=0)
    envs.close()
    envs.close()
    with pytest.raises(ResetNeeded, match=r"reset\(\)"):
        envs.step(next(random_actions()))


def test_with_disabled_autoreset_a_step_after_the_end_says_which_lanes_to_reset() -> None:
    envs = make_envs("DISABLED")
    envs.reset(seed=0)
    actions = next(random_actions())
    envs.step(actions)
    envs.reset(options={"reset_mask": np.arange(N) >= 2})
    while not (terminations := envs.step(actions)[2]).any():
        pass
    np.testing.assert_array_equal(terminations, np.arange(N) < 2)
    with pytest.raises(ResetNeeded, match=r"\[0, 1\].*reset_mask"):
        envs.step(actions)


@pytest.mark.parametrize(
    ("mask", "error"),
    [
        ([1] * N, TypeError),
        (np.ones(N, dtype=int), TypeError),
        (np.ones(N + 1, dtype=bool), ValueError),
        (np.ones((N, 1), dtype=bool), ValueError),
        (np.zeros(N, dtype=bool), ValueError),
    ],
    ids=["list of integers", "integers", "long", "column", "nothing"],
)
def test_a_bad_reset_mask_is_refused(mask: Any, error: type[Exception]) -> None:
    envs = make_envs()
    envs.reset(seed=0)
    with pytest.raises(error, match="reset_mask"):
        envs.reset(options={"reset_mask": mask})


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"seed": [1, 2]}, ValueError, rf"2 seeds .*num_envs={N}"),
        ({"options": {"index": 3}}, ValueError, rf"index.*3.*\({N},\)"),
        ({"options": {"index": np.arange(N) + 0.5}}, ValueError, r"0\.5.*whole"),
        ({"options": {"index": np.arange(N) - 2}}, IndexError, r"index=-2 .*0\.\."),
        ({"options": {"index": np.arange(N) + 10**9}}, IndexError, r"index=1000000000 .*0\.\."),
    ],
    ids=["seeds", "one index", "fractions", "negative", "large"],
)
def test_a_bad_reset_is_refused_with_what_is_expected(
    kwargs: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        make_envs().reset(**kwargs)


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"mode": "same"}, ValueError, "'same'.*NEXT_STEP.*SAME_STEP.*DISABLED"),
        ({"num_envs": 0}, ValueError, "num_envs=0"),
        ({"frameskip": 1}, TypeError, "frameskip"),
        ({"split": "tset"}, ValueError, "tset.*train"),
        ({"render_mode": "human3d"}, ValueError, "human3d.*rgb_array"),
    ],
    ids=["mode", "num_envs", "unknown", "split", "render_mode"],
)
def test_a_wrong_argument_is_refused(kwargs: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make_envs(**kwargs)


@pytest.mark.slow
def test_forked_workers_run_even_after_their_parent_has_used_threads() -> None:
    code = (
        "import gymnasium as gym, prance_env, torch\n"
        "torch.set_num_threads(2)\n"
        f"env = gym.make({ENV_ID!r}); env.reset(seed=0); env.step(env.action_space.sample())\n"
        "torch.rand(512, 512) @ torch.rand(512, 512)\n"
        f"envs = gym.make_vec({ENV_ID!r}, num_envs=2, vectorization_mode='async')\n"
        "envs.reset(seed=0); envs.step(envs.action_space.sample()); envs.close(); print('closed')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["closed"]


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_a_step_whose_restart_fails_is_undone_and_can_be_repeated(
    mode: AutoresetMode, monkeypatch: pytest.MonkeyPatch
) -> None:
    envs, untouched = make_envs(mode), make_envs(mode)
    steps = envs.config.space.num_decisions - (mode == AutoresetMode.SAME_STEP)
    batches = [a for a, _ in zip(random_actions(), range(steps + 2), strict=False)]
    for e in (envs, untouched):
        e.reset(seed=0)
        for actions in batches[:steps]:
            e.step(actions)
    engine = envs.lanes.engine

    def broken(*args: object) -> None:
        raise OSError("image is broken")

    with monkeypatch.context() as patched:
        patched.setattr(engine, "start", broken)
        for call in (lambda: envs.step(batches[steps]), lambda: envs.reset(seed=7)):
            with pytest.raises(OSError, match="broken"):
                call()
    for actions in batches[steps:]:
        assert_same(envs.step(actions), untouched.step(actions))


def test_unknown_options_are_refused_with_the_allowed_ones() -> None:
    envs, untouched = make_envs(), make_envs()
    for e in (envs, untouched):
        e.reset(seed=0)
    with pytest.raises(ValueError, match=r"\['resetmask'\].*\['index', 'reset_mask'\]"):
        envs.reset(seed=1, options={"resetmask": np.ones(N, dtype=bool)})
    for seed in ("one", 1.5, {}):
        with pytest.raises(ValueError, match="seed="):
            envs.reset(seed=seed)  # type: ignore[arg-type]
    assert_same(envs.reset(), untouched.reset())
