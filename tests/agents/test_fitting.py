"""An agent is judged as it plays in its own environment, behind its wrappers, or it is refused with the remedy."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from command_line import prance, refusal
from gymnasium.wrappers import NormalizeObservation, RescaleAction, TransformObservation
from gymnasium.wrappers.vector import TransformAction
from stable_baselines3 import A2C, PPO, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnvWrapper, VecFrameStack, VecMonitor, VecNormalize
from wrapped_agents import (
    CASES,
    IMAGES,
    Settings,
    case,
    native,
    one_by_one,
    played_at_home,
    ppo,
    prance_ppo,
    saved_and_loaded,
    sync_priced,
    sync_rescaled,
)

from agents import AdaptiveViT, FullAgent, RandomAgent, StaticAgent
from agents.confidence import ConfidenceAgent, ConfidenceRule
from prance_env import EnvSettings
from supernet import SubnetConfig
from train.evaluate import evaluate
from train.play import mean_return
from train.policies.load_agent import load_agent


def adaptive(settings: EnvSettings, agent: Any) -> tuple[list[int], list[int]]:
    found = AdaptiveViT.from_settings(settings, agent)(settings.engine().dataset.fetch(np.arange(IMAGES)))
    return found.logits.argmax(1).tolist(), found.macs.tolist()


def judged(settings: EnvSettings, agent: Any) -> tuple[list[int], list[int]]:
    found = evaluate(agent, settings)
    return found.prediction.tolist(), found.macs.tolist()


@pytest.mark.parametrize("name", CASES)
def test_an_agent_is_judged_as_it_plays_at_home(name: str, tiny: Settings) -> None:
    model, env = CASES[name](tiny)
    settings = EnvSettings(**tiny)
    expected = played_at_home(model, env)
    assert judged(settings, model) == expected
    assert adaptive(settings, model) == expected
    assert mean_return(model, settings)[2] == pytest.approx(np.mean(expected[1]) / settings.engine().full_macs)
    assert expected != judged(settings, FullAgent(settings.config()))


def test_a_baseline_does_the_same_whatever_it_was_saved_for(tiny: Settings, tmp_path: Path) -> None:
    config = EnvSettings(**tiny).config()
    space = config.space
    subnet = SubnetConfig.random(space, 1)
    low, high = ((size,) * space.action_size for size in (0.1, 0.9))
    rules = [ConfidenceRule("entropy", (0.97,), (low, high))] * space.num_decisions
    kwargs: list[dict[str, Any]] = [
        {"observation": observation, "normalize_actions": normalize}
        for observation in ("cls", "constant", "cls_only")
        for normalize in (True, False)
    ]
    results = []
    for made_for in kwargs[:2]:
        StaticAgent(subnet, config, **made_for).save(tmp_path / "static.json")
        for played_in in kwargs:
            settings = EnvSettings(**tiny, **played_in)
            for agent in (load_agent(str(tmp_path / "static.json"), settings), StaticAgent(subnet, config, **made_for)):
                results += [judged(settings, agent), adaptive(settings, agent)]
    assert all(result == results[0] for result in results)
    assert results[0][1] == [int(EnvSettings(**tiny).engine().net.macs(subnet))] * IMAGES

    sure = ConfidenceAgent(rules, config)
    paper = evaluate(sure, EnvSettings(**tiny, normalize_actions=False))
    assert paper.macs.tolist() == evaluate(sure, EnvSettings(**tiny)).macs.tolist()
    with pytest.raises(ValueError, match=r"observation='constant' does not show \['max_prob', 'entropy'\].*use 'cls'"):
        evaluate(sure, EnvSettings(**tiny, observation="constant"))
    drawn = [evaluate(RandomAgent(config, seed=3), EnvSettings(**tiny, normalize_actions=n), 5) for n in (True, False)]
    np.testing.assert_allclose(drawn[0].actions, drawn[1].actions, atol=1e-6)


# ---- files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bare", "multi-discrete", "normalised", "rewards-normalised", "dict"])
def test_a_saved_agent_is_judged_as_it_plays_at_home(name: str, tiny: Settings, tmp_path: Path) -> None:
    model, env = CASES[name](tiny)
    settings = EnvSettings(**tiny)
    model.save(tmp_path / "agent.zip")
    if name == "normalised":
        with pytest.raises(ValueError, match=r"agent\.zip: .*trained behind a normaliser.*vecnormalize\.pkl"):
            load_agent(str(tmp_path / "agent.zip"), settings, trust=True)
        assert isinstance(env, VecNormalize)
        env.save(str(tmp_path / "vecnormalize.pkl"))
    loaded = load_agent(str(tmp_path / "agent.zip"), settings, trust=True)
    expected = played_at_home(model, env)
    assert judged(settings, loaded) == expected
    assert adaptive(settings, loaded) == expected


def test_files_of_sb3_are_known_by_their_algorithm_and_others_are_refused(tiny: Settings, tmp_path: Path) -> None:
    env, settings = native()(tiny), EnvSettings(**tiny)
    for cls in (PPO, A2C, SAC, TD3):
        model = cls("MlpPolicy", env, seed=0, device="cpu")
        model.save(tmp_path / "agent.zip")
        loaded = load_agent(str(tmp_path / "agent.zip"), settings, trust=True)
        assert type(loaded) is cls
        assert judged(settings, loaded) == judged(settings, model)
    CASES["presets"](tiny)[0].save(tmp_path / "dqn.zip")
    with pytest.raises(ValueError, match=r"dqn\.zip is a model whose actions are single integers.*env=make_sb3_env"):
        load_agent(str(tmp_path / "dqn.zip"), settings, trust=True)
    (tmp_path / "text.zip").write_text("text")
    with pytest.raises(ValueError, match=r"text\.zip is not a model of Stable-Baselines3"):
        load_agent(str(tmp_path / "text.zip"), settings, trust=True)
    (tmp_path / "vecnormalize.pkl").write_text("text")
    with pytest.raises(ValueError, match=r"vecnormalize\.pkl is not what VecNormalize\.save wrote"):
        load_agent(str(tmp_path / "agent.zip"), settings, trust=True)


@pytest.mark.slow
def test_the_command_line_judges_files_as_python_does(
    tiny: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = EnvSettings(**tiny)
    chosen = [f"--{key}={tiny[key]}" for key in ("checkpoint", "dataset")]
    for name in ("bare", "multi-discrete", "normalised"):
        model, env = CASES[name](tiny)
        (tmp_path / name).mkdir()
        model.save(tmp_path / name / "agent.zip")
        if isinstance(env, VecNormalize):
            env.save(str(tmp_path / name / "vecnormalize.pkl"))
        prance(
            monkeypatch, "eval", "--agent", tmp_path / name / "agent.zip", "--trust", *chosen, "--out", tmp_path / name
        )
        (found,) = json.loads((tmp_path / name / "metrics.json").read_text()).values()
        assert found["macs_fraction"] == pytest.approx(evaluate(model, settings).summary()["macs_fraction"])
    paper = case(native(normalize_actions=False))(tiny)[0]
    paper.save(tmp_path / "paper.zip")
    words = refusal(monkeypatch, "eval", "--agent", tmp_path / "paper.zip", "--trust", *chosen)
    assert "paper.zip: The agent was trained for" in words
    assert "normalize_actions=False" in words
    assert len(words) < 300
    out = ("--no-normalize-actions", *chosen, "--out", tmp_path / "paper")
    prance(monkeypatch, "eval", "--agent", tmp_path / "paper.zip", "full", "random", "--trust", *out)
    found = json.loads((tmp_path / "paper" / "metrics.json").read_text())
    expected = evaluate(paper, replace(settings, normalize_actions=False)).summary()
    assert found[str(tmp_path / "paper.zip")]["accuracy"] == expected["accuracy"]
    for name in ("paper.zip", "full", "random"):
        prance(monkeypatch, "validate", tmp_path / "paper" / f"{name}.csv")
    constant = case(native(observation="constant"))(tiny)[0]
    constant.save(tmp_path / "constant.zip")
    prance(monkeypatch, "eval", "--agent", tmp_path / "constant.zip", "--trust", "--observation", "constant", *chosen)


# ---- refusals -------------------------------------------------------------------------------------------------------


class Own:
    """Gives always the same."""

    def __init__(self, actions: Callable[[int], Any]) -> None:
        self.actions = actions

    def predict(self, observation: Any, deterministic: bool = False) -> tuple[Any, Any]:
        return self.actions(len(observation)), None


REFUSED: dict[str, tuple[Callable[[Settings], Any], Settings, str]] = {
    "the paper's box": (lambda t: ppo(native(normalize_actions=False)(t)), {}, r"normalize_actions=False"),
    "its file": (lambda t: without_env(ppo(native(normalize_actions=False)(t))), {}, r"pass normalize_actions=False"),
    "not the paper's box": (lambda t: ppo(native()(t)), {"normalize_actions": False}, r"normalize_actions=True inst"),
    "observation": (lambda t: ppo(native(observation="constant")(t)), {}, r"observation='constant' instead of 'cls'"),
    "its observation's file": (
        lambda t: without_env(ppo(native(observation="constant")(t))),
        {},
        r"pass observation='constant'",
    ),
    "a range of prices": (
        lambda t: ppo(native(cost_conditioning=(0.1, 1))(t)),
        {},
        r"cost_conditioning=\(0\.1, 1\.0\) instead of None",
    ),
    "another range": (
        lambda t: ppo(native(cost_conditioning=(0.1, 1))(t)),
        {"cost_conditioning": (0.2, 1, 0.5)},
        r"cost_conditioning=\(0\.1, 1\.?0?\) instead of \(0\.2, 1\.?0?\)",
    ),
    "PrancePPO of another range": (
        prance_ppo(range_=(0.1, 1)),
        {"cost_conditioning": (0.2, 1, 0.5)},
        r"brings an environment with cost_conditioning=\(0\.1, 1\.0\) instead of \(0\.2, 1\.0\)",
    ),
    "its folder's range": (
        lambda t: saved_and_loaded(prance_ppo(range_=(0.1, 1))(t)),
        {"cost_conditioning": (0.2, 1, 0.5)},
        r"was trained with cost_conditioning=\(0\.1, 1\.0\) instead of \(0\.2, 1\.0\)",
    ),
    "its folder's range, of single environments": (
        lambda t: saved_and_loaded(sync_priced(t)),
        {"cost_conditioning": (0.2, 1, 0.5)},
        r"was trained with cost_conditioning=\(0\.1, 1\.0\) instead of \(0\.2, 1\.0\)",
    ),
    "PrancePPO behind a wrapper": (
        prance_ppo(lambda e: TransformAction(e, np.negative)),
        {},
        r"behind TransformAction",
    ),
    "PrancePPO of single environments": (sync_rescaled, {}, r"behind RescaleAction"),
    "frames": (lambda t: ppo(VecFrameStack(native()(t), 2)), {}, r"trained behind VecFrameStack.*predict"),
    "gymnasium's normaliser": (lambda t: ppo(one_by_one(NormalizeObservation)(t)), {}, r"behind NormalizeObservation"),
    "a wrapper that keeps the space": (
        lambda t: ppo(one_by_one(lambda e: TransformObservation(e, lambda o: -o, e.observation_space))(t)),
        {},
        r"behind TransformObservation",
    ),
    "rescaled": (lambda t: ppo(one_by_one(lambda e: RescaleAction(e, -1, 1))(t)), {}, r"behind RescaleAction"),
    "integers without environment": (
        lambda t: without_env(CASES["presets"](t)[0]),
        {},
        r"actions are Discrete\(5\).*agent\.set_env\(make_sb3_env",
    ),
    "a file behind a normaliser": (lambda t: without_env(CASES["normalised"](t)[0]), {}, r"behind a normaliser"),
    "another supernet": (
        lambda t: FullAgent(EnvSettings().config()),
        {},
        r"FullAgent was made for another supernet.*img_size=48 instead of 16",
    ),
    "integers": (lambda t: Own(lambda n: np.ones((n, 3), np.int64)), {}, r"int64 of the shape \(12, 3\).*set_env\("),
    "a number less": (lambda t: Own(lambda n: np.ones((n, 2))), {}, r"\(12, 2\); expected .*\(12, 3\).*observation\.$"),
    "one more axis": (lambda t: Own(lambda n: torch.ones(n, 1, 3)), {}, r"\(12, 1, 3\); expected .*observation\.$"),
    "nothing": (lambda t: Own(lambda n: None), {}, r"gave an object of type NoneType; expected .*observation\.$"),
    "a dict": (lambda t: Own(lambda n: {"a": 1}), {}, r"gave an object of type dict; expected .*\(12, 3\), one row"),
    "one number": (lambda t: Own(lambda n: np.ones(n)), {}, r"gave float64 of the shape \(12,\); expected .*\(12, 3\)"),
}


def without_env(model: BaseAlgorithm) -> BaseAlgorithm:
    """As it comes out of a file."""
    model.env = None
    return model


@pytest.mark.parametrize("name", REFUSED)
def test_an_agent_for_something_else_is_refused_with_the_remedy(name: str, tiny: Settings) -> None:
    make, changes, words = REFUSED[name]
    settings, agent = EnvSettings(**tiny, **changes), make(tiny)
    with pytest.raises(ValueError, match=words):
        evaluate(agent, settings)
    with pytest.raises(ValueError, match=words):
        AdaptiveViT.from_settings(settings, agent)(settings.engine().dataset.fetch(np.arange(IMAGES)))


class Negating(gym.Wrapper[Any, Any, Any, Any]):
    """Changes what an agent sees, and shows it neither by its class nor by its spaces."""

    def step(self, action: Any) -> Any:
        observation, *rest = self.env.step(action)
        return -observation, *rest


class Rewarding(gym.RewardWrapper[Any, Any]):
    """Changes no observation and no action."""

    def reward(self, reward: Any) -> float:
        return 2 * float(reward)


class Passing(VecEnvWrapper):
    """Does nothing, which nobody can know."""

    def reset(self) -> Any:
        return self.venv.reset()

    def step_wait(self) -> Any:
        return self.venv.step_wait()


def test_a_wrapper_of_ones_own_that_may_change_something_is_a_warning(tiny: Settings) -> None:
    settings = EnvSettings(**tiny)
    for env in (one_by_one(Negating)(tiny), Passing(native()(tiny))):
        with pytest.warns(UserWarning, match="trained behind (Negating|Passing); whether .* as if it did not"):
            evaluate(ppo(env), settings)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evaluate(ppo(one_by_one(Rewarding)(tiny)), settings)


def test_wrappers_that_change_neither_are_nothing(tiny: Settings) -> None:
    env = VecMonitor(DummyVecEnv([lambda: gym.make("Prance-Digits-v0", max_episode_steps=7, **tiny)] * IMAGES))
    model, settings = ppo(env), EnvSettings(**tiny)
    assert judged(settings, model) == played_at_home(model, env)
    agent = Own(lambda n: np.zeros((n, settings.config().space.action_size)))
    assert judged(settings, agent) == adaptive(settings, agent)


class Alone:
    """An agent without memory whose `predict` returns the actions alone."""

    def predict(self, observation: Any, deterministic: bool) -> Any:
        return np.tanh(observation[:, :3])


class Without:
    """Has no argument `deterministic`."""

    def predict(self, observation: Any) -> Any:
        return np.ones((len(observation), 3)), None


def test_an_agent_may_return_actions_alone(tiny: Settings) -> None:
    agent: Any = Alone()
    both = Own(lambda n: None)
    both.predict = lambda observation, deterministic=False: (agent.predict(observation, deterministic), None)  # type: ignore[method-assign]
    settings = EnvSettings(**tiny)
    assert judged(settings, agent) == judged(settings, both) == adaptive(settings, agent)
    as_list = Own(lambda n: None)
    as_list.predict = lambda observation, deterministic=False: [agent.predict(observation, deterministic), None]  # type: ignore[method-assign]
    assert judged(settings, as_list) == judged(settings, both)
    agent.predict = lambda observation, deterministic: (observation, None, None)
    with pytest.raises(ValueError, match=r"tuple of 3; expected \(actions, state\), or the actions alone"):
        evaluate(agent, settings)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_agent_may_be_a_network_whose_actions_require_gradients(dtype: torch.dtype, tiny: Settings) -> None:
    settings, plain = EnvSettings(**tiny), Own(lambda n: np.full((n, 3), 0.25, np.float32))
    weights = torch.nn.Parameter(torch.full((3,), 0.25, dtype=dtype))
    network = Own(lambda n: weights.expand(n, 3) * 1)
    assert judged(settings, network) == adaptive(settings, network) == judged(settings, plain)


@pytest.mark.parametrize(
    ("agent", "words"),
    [
        ("full", r"agent='full' is no agent.*load_agent\(NAME, settings\)"),
        (None, "agent=None is no agent"),
        (FullAgent, "agent=<class .* is no agent"),
        (Without(), r"Without\.predict cannot be asked \(.*'deterministic'.*\); let it be SB3's predict\("),
    ],
)
def test_what_is_no_agent_is_said(agent: Any, words: str, tiny: Settings) -> None:
    settings = EnvSettings(**tiny)
    for take in (judged, adaptive):
        with pytest.raises(TypeError, match=words):
            take(settings, agent)


def test_what_are_no_settings_is_said(tiny: Settings) -> None:
    agent = FullAgent(EnvSettings(**tiny).config())
    for wrong in ("Prance-Digits-v0", gym.make("Prance-Digits-v0"), native()(tiny), None):
        with pytest.raises(TypeError, match=r"settings=.* must be EnvSettings.*from_id\(.*env\.unwrapped\.settings"):
            evaluate(agent, wrong)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="must be EnvSettings"):
            AdaptiveViT.from_settings(wrong, agent)  # type: ignore[arg-type]


def test_no_images_at_a_time_are_refused(tiny: Settings) -> None:
    settings = EnvSettings(**tiny)
    model, pictures = AdaptiveViT.from_settings(settings, FullAgent(settings.config())), np.zeros((3, 16, 16), np.uint8)
    for size in (0, -1, 1.5, "8", None):
        with pytest.raises(ValueError, match=r"batch_size=.* must be a whole number from 1"):
            model.predict([*pictures], batch_size=size)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=r"batch_size=.* must be a whole number from 1"):
            evaluate(model.agent, settings, batch_size=size)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"images is of type ndarray; .*torch\.from_numpy\(images\).*model\.predict"):
        model(pictures[:, None])
