"""The single environment: Gymnasium's contract, reproducibility, what it tells, how it refuses."""

from __future__ import annotations

import copy
import json
import math
import pickle
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.envs.registration import EnvSpec
from gymnasium.error import NameNotFound, ResetNeeded
from gymnasium.utils import seeding
from gymnasium.utils.env_checker import check_env
from helpers import ENV_ID, INFO_KEYS, comparable, transcript
from stable_baselines3.common.env_checker import check_env as check_env_sb3

from prance_env import PranceEnv, register_envs
from prance_env.observations import list_observations
from prance_env.supernets import warn_if_slow

pytestmark = pytest.mark.filterwarnings("error", "default::ResourceWarning")


def make_env(**kwargs: Any) -> PranceEnv:
    """The environment without wrappers."""
    env = gym.make(ENV_ID, **kwargs).unwrapped
    assert isinstance(env, PranceEnv)
    return env


@pytest.mark.slow
@pytest.mark.parametrize("observation", list_observations())
@pytest.mark.parametrize("normalize_actions", [True, False])
def test_gymnasiums_checker_has_nothing_to_say(observation: str, normalize_actions: bool) -> None:
    check_env(make_env(observation=observation, normalize_actions=normalize_actions))


@pytest.mark.parametrize("observation", list_observations())
def test_the_checker_of_stable_baselines3_has_nothing_to_say(observation: str) -> None:
    check_env_sb3(make_env(observation=observation))


def test_the_same_seed_gives_the_same_rollout_bit_for_bit_and_another_seed_another() -> None:
    first = transcript(gym.make(ENV_ID), seed=5)
    assert transcript(gym.make(ENV_ID), seed=5) == first
    assert transcript(gym.make(ENV_ID), seed=6) != first


def test_images_come_from_the_generator_that_only_a_seed_restarts() -> None:
    env = make_env()
    generator = seeding.np_random(3)[0]
    drawn = [env.reset(seed=seed)[1]["index"] for seed in (3, None, None)]
    total = len(env.settings.engine().dataset)
    assert drawn == [int(generator.integers(total)) for _ in range(3)]
    assert env.reset(seed=3)[1]["index"] == drawn[0]


def test_choosing_the_image_does_not_disturb_the_generator() -> None:
    env, other = make_env(), make_env()
    other.reset(seed=1)
    _, info = env.reset(seed=1, options={"index": 7})
    assert info["index"] == 7
    assert env.reset()[1]["index"] == make_env().reset(seed=1)[1]["index"]
    assert env.reset()[1]["index"] == other.reset()[1]["index"]


def test_an_environment_survives_pickling_after_steps_without_its_weights() -> None:
    env = make_env(observation="cls_only", reward={"mode": "potential"}, normalize_actions=False, split="val")
    rollout = transcript(env, seed=2)
    data = pickle.dumps(env)
    assert len(data) < 5000
    assert transcript(pickle.loads(data), seed=2) == rollout


def test_the_spec_is_json_and_rebuilds_the_environment() -> None:
    kwargs: dict[str, Any] = {
        "reward": {"mode": "terminal", "macs_weight": 0.5},
        "split": "val",
        "observation": "cls_only",
    }
    env = gym.make(ENV_ID, **kwargs)
    assert env.spec is not None
    text = env.spec.to_json()
    assert json.loads(text)["kwargs"].items() >= kwargs.items()
    assert copy.deepcopy(env.spec) == env.spec
    assert transcript(gym.make(EnvSpec.from_json(text)), seed=4) == transcript(env, seed=4)


def test_the_id_works_with_the_module_in_front() -> None:
    assert isinstance(gym.make(f"prance_env:{ENV_ID}").unwrapped, PranceEnv)


def test_registering_twice_changes_nothing() -> None:
    spec = gym.spec(ENV_ID)
    register_envs()
    assert gym.spec(ENV_ID) is spec


@pytest.mark.slow
def test_importing_is_light_and_making_opens_nothing() -> None:
    program = """
import sys
import prance_env
assert not {"torch", "sklearn", "stable_baselines3"} & set(sys.modules), "import prance_env is heavy"
import gymnasium, torch
env = gymnasium.make("Prance-Digits-v0")
from prance_env.images import digits
from prance_env.settings import shared_engine
assert shared_engine.cache_info().currsize == 0, "make loaded the supernet"
assert digits._tiles.cache_info().currsize == digits.source_splits.cache_info().currsize == 0, "make opened the data"
assert not torch.cuda.is_initialized(), "make touched the GPU"
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


@pytest.mark.parametrize("mode", ["result_to_go", "terminal", "potential"])
def test_every_return_has_the_same_keys_and_plain_python_types(mode: str) -> None:
    env = make_env(reward={"mode": mode})
    assert "torch" not in env.metadata
    obs, info = env.reset(seed=0)
    kinds = {key: type(value) for key, value in info.items()}
    assert list(kinds) == INFO_KEYS
    assert set(kinds.values()) <= {int, float, bool, np.ndarray}
    decisions = env.settings.config().space.num_decisions
    for decision in range(1, decisions + 1):
        assert type(obs) is np.ndarray
        assert obs.dtype == np.float32
        obs, reward, terminated, truncated, info = env.step(env.action_space.sample())
        assert {key: type(value) for key, value in info.items()} == kinds
        assert type(reward) is float
        assert info["decision"] == decision
        assert terminated is (decision == decisions)
        assert truncated is False


def test_what_was_returned_belongs_to_the_caller() -> None:
    class Vandal(gym.Wrapper[Any, Any, Any, Any]):
        """Passes copies on and overwrites the originals."""

        originals: tuple[np.ndarray, ...] = ()

        def owned(self, result: tuple[Any, ...]) -> Any:
            copies = copy.deepcopy(result)
            self.originals = (result[0], *(v for v in result[-1].values() if isinstance(v, np.ndarray)))
            for array in self.originals:
                array.fill(77)
            return copies

        def reset(self, **kwargs: Any) -> Any:
            return self.owned(self.env.reset(**kwargs))

        def step(self, action: np.ndarray) -> Any:
            before = self.originals
            copies = self.owned(self.env.step(action))
            assert all((array == 77).all() for array in before)
            return copies

    assert transcript(Vandal(make_env()), seed=8) == transcript(make_env(), seed=8)


@pytest.mark.parametrize("normalize_actions", [True, False])
def test_an_action_means_what_the_documentation_says(normalize_actions: bool) -> None:
    env = make_env(normalize_actions=normalize_actions)
    config = env.settings.config()
    space, n = config.space, config.space.blocks_per_decision
    rng = np.random.default_rng(0)
    _, info = env.reset(seed=0)
    widths, ratios, patches = [config.embed_dim] * space.depth, [space.mlp_ratios[-1]] * space.depth, config.num_patches
    for group in range(1, len(space.groups)):
        ratio, width = rng.integers(len(space.mlp_ratios), size=n), rng.integers(len(space.embed_dims), size=n)
        keep = rng.random()
        unit = np.array([*ratio / (len(space.mlp_ratios) - 1), *width / (len(space.embed_dims) - 1), keep])
        _, _, _, _, info = env.step((2 * unit - 1 if normalize_actions else unit).astype(np.float32))
        for i, block in enumerate(space.blocks(group)):
            widths[block], ratios[block] = space.embed_dims[width[i]], space.mlp_ratios[ratio[i]]
        patches = max(1, math.ceil((space.min_keep_rate + (1 - space.min_keep_rate) * keep) * patches))
        assert info["embed_dim"].tolist() == widths
        assert info["mlp_ratio"].tolist() == ratios
        assert info["num_tokens"] == patches + 1


def test_actions_beyond_the_box_are_clipped() -> None:
    env, infos = make_env(), []
    for size in (1.0, 5.0, np.inf):
        env.reset(seed=0)
        for sign in (1, -1):
            step = env.step(np.full(env.action_space.shape or (), sign * size, dtype=np.float32))
        infos.append(step[0].tolist())
    assert infos[0] == infos[1] == infos[2]


@pytest.mark.parametrize(
    ("kwargs", "error", "words"),
    [
        ({"frameskip": 1}, TypeError, ["frameskip"]),
        ({"supernet": "vit_huge"}, ValueError, ["vit_huge", "digits", "prance_vit_tiny"]),
        ({"supernet": "prance_vit_tiny"}, ValueError, ["prance_vit_tiny", "checkpoint=", "digits"]),
        ({"checkpoint": "/no/such/folder"}, FileNotFoundError, ["/no/such/folder", "config.json", "save_pretrained"]),
        ({"dataset": "imagenet"}, ValueError, ["imagenet", "digits"]),
        ({"split": "tset"}, ValueError, ["tset", "train", "val", "test"]),
        ({"observation": "pixels"}, ValueError, ["pixels", *list_observations()]),
        ({"token_mode": "drop"}, ValueError, ["drop", "prune", "prune_fused", "merge", "prune_merge", "tome", "None"]),
        ({"token_mode": "prance_prune"}, ValueError, ["prance_prune", "'prune'"]),
        ({"dtype": "float64"}, ValueError, ["float64", "float32", "bfloat16", "float16"]),
        ({"device": "gpu"}, ValueError, ["gpu", "cpu", "cuda"]),
        ({"render_mode": "human3d"}, ValueError, ["human3d", "rgb_array", "ansi"]),
        ({"reward": {"mode": "dense"}}, ValueError, ["dense", "result_to_go", "terminal", "potential"]),
        ({"reward": {"price": 1}}, ValueError, ["price", "macs_weight"]),
        ({"reward": 3}, ValueError, ["3", "dict"]),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
)
def test_a_wrong_argument_is_refused_at_once_with_what_is_allowed(
    kwargs: dict[str, Any], error: type[Exception], words: list[str]
) -> None:
    with pytest.raises(error) as caught:
        PranceEnv(**kwargs)
    assert [w for w in words if w not in str(caught.value)] == []


@pytest.mark.parametrize("there", [False, True])
def test_a_precision_that_the_cpu_only_imitates_is_said(there: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: there, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False, raising=False)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_if_slow(torch.device("cpu"), torch.bfloat16)
        warn_if_slow(torch.device("cpu"), torch.float32)
        warn_if_slow(torch.device("meta"), torch.bfloat16)
    assert ["about seven times slower" in str(w.message) for w in caught] == ([] if there else [True])


@pytest.mark.parametrize("num_envs", [1, 3])
def test_a_callers_autocast_changes_nothing(num_envs: int) -> None:
    played = []
    for autocast in (False, True):
        envs = gym.make_vec(ENV_ID, num_envs)
        envs.action_space.seed(0)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            seen = [envs.reset(seed=0)[0]]
            for _ in range(2):
                observations, rewards, *_ = envs.step(envs.action_space.sample())
                seen += [observations, rewards]
        played.append(np.concatenate([s.ravel() for s in seen]))
    assert np.array_equal(*played)


def test_gym_make_names_unknown_arguments_and_ids() -> None:
    with pytest.raises(TypeError, match="frameskip"):
        gym.make(ENV_ID, frameskip=1)
    with pytest.raises(NameNotFound, match=r"Prance-Digit\b.*Prance-Digits"):
        gym.make("Prance-Digit-v0")


def test_a_checkpoint_without_weights_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(make_env().settings.config().to_dict()))
    with pytest.raises(FileNotFoundError, match=str(tmp_path)):
        make_env(checkpoint=str(tmp_path)).reset()


@pytest.mark.parametrize("bad", ["nan", "short", "batched", "text"])
def test_a_bad_action_is_refused_and_the_episode_goes_on_as_if_nothing_had_happened(bad: str) -> None:
    env, untouched = make_env(), make_env()
    good = np.zeros(env.action_space.shape or (), dtype=np.float32)
    wrong, words = {
        "nan": (np.where(np.arange(len(good)) == 1, np.nan, good), "NaN"),
        "short": (good[:-1], rf"\({len(good) - 1},\).*\({len(good)},\)"),
        "batched": (good[None], rf"\(1, {len(good)}\).*\({len(good)},\)"),
        "text": (np.array(["a"] * len(good)), "expected numbers"),
    }[bad]
    for e in (env, untouched):
        e.reset(seed=0)
        e.step(good)
    with pytest.raises(ValueError, match=words):
        env.step(wrong)
    assert env.step(good)[0].tolist() == untouched.step(good)[0].tolist()


def test_steps_outside_an_episode_ask_for_a_reset() -> None:
    env = make_env()
    with pytest.raises(ResetNeeded, match=r"reset\(\)"):
        env.step(env.action_space.sample())
    env.reset(seed=0)
    while not env.step(env.action_space.sample())[2]:
        pass
    with pytest.raises(ResetNeeded, match=r"reset\(\)"):
        env.step(env.action_space.sample())
    env.close()
    env.close()
    with pytest.raises(ResetNeeded, match=r"reset\(\)"):
        env.step(env.action_space.sample())


@pytest.mark.parametrize("index", [-1, 10**9])
def test_an_image_that_does_not_exist_is_refused_and_the_episode_stays(index: int) -> None:
    env = make_env(split="val")
    _, before = env.reset(seed=0)
    with pytest.raises(IndexError, match=rf"index={index}\b.*0\.\.{len(env.settings.engine().dataset) - 1}"):
        env.reset(options={"index": index})
    assert env.step(env.action_space.sample())[4]["index"] == before["index"]


def test_an_image_index_must_be_whole() -> None:
    with pytest.raises(ValueError, match=r"3\.7.*whole"):
        make_env().reset(options={"index": 3.7})


def test_a_damaged_configuration_is_named_when_the_environment_is_made(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is no JSON file"):
        gym.make(ENV_ID, checkpoint=str(tmp_path))


@pytest.mark.parametrize("options", [{"Index": 3}, {"index": 3, "seed": 1}, {"reset_mask": np.ones(1, dtype=bool)}])
def test_unknown_options_are_refused_with_the_allowed_ones_and_nothing_changes(options: dict[str, Any]) -> None:
    env, untouched = make_env(), make_env()
    for e in (env, untouched):
        e.reset(seed=0)
    wrong = next(key for key in options if key != "index")
    with pytest.raises(ValueError, match=rf"{wrong}.*allowed are \['index'\]"):
        env.reset(seed=9, options=options)
    with pytest.raises(ValueError, match=r"options=\[3\] must be None or a dict"):
        env.reset(seed=9, options=[3])  # type: ignore[arg-type]
    assert comparable(env.reset()) == comparable(untouched.reset())


@pytest.mark.parametrize(
    "kwargs",
    [{"seed": -1}, {"seed": 1.5}, {"seed": 9, "options": {"index": -1}}, {"seed": 9, "options": {"index": 0.5}}],
)
def test_a_reset_that_is_refused_leaves_generator_and_episode_alone(kwargs: dict[str, Any]) -> None:
    env, untouched = make_env(), make_env()
    for e in (env, untouched):
        e.reset(seed=0)
    with pytest.raises((ValueError, IndexError, gym.error.Error)):
        env.reset(**kwargs)
    assert env.state_dict()["generators"] == untouched.state_dict()["generators"]
    action = np.zeros(env.action_space.shape or (), dtype=np.float32)
    assert comparable(env.step(action)) == comparable(untouched.step(action))
    assert env.np_random_seed == untouched.np_random_seed == 0
    assert comparable(env.reset()) == comparable(untouched.reset())
    fresh = make_env()
    with pytest.raises((ValueError, IndexError, gym.error.Error)):
        fresh.reset(**kwargs)
    with pytest.raises(ResetNeeded):
        fresh.step(action)
