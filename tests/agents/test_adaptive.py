"""Network and agent together: what they say is what the runner's evaluation of the same agent says, image for image."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from helpers import make_engine, settings_for

from agents import AdaptiveViT, FullAgent, RandomAgent
from prance_env import EnvSettings
from prance_env.rewards.prices import CostConditioning
from prance_env.spaces import decode_actions
from supernet import Supernet
from train.evaluate import evaluate

IMAGES = 24


class Looking:
    """Chooses by what it sees, and remembers how often it was asked."""

    def __init__(self, action_size: int) -> None:
        self.action_size = action_size
        self.asked: list[Any] = []

    def predict(self, observation: Any, state: Any = None, deterministic: bool = False) -> tuple[Any, Any]:
        assert deterministic
        self.asked.append(state)
        size = np.tanh(3 * observation[:, :1] + observation[:, 1:2]) + 0 * observation[:, -1:]
        return np.repeat(size, self.action_size, axis=1), (state or 0) + 1


@pytest.fixture
def settings(any_net: Supernet) -> EnvSettings:
    return settings_for(make_engine(any_net, IMAGES))


def adaptive(settings: EnvSettings, agent: Any) -> AdaptiveViT:
    engine = settings.engine()
    return AdaptiveViT(engine.net, agent, settings.observation, settings.normalize_actions)


@pytest.mark.parametrize("kind", ["looking", "full", "random"])
def test_it_predicts_chooses_and_costs_what_an_evaluation_says(settings: EnvSettings, kind: str) -> None:
    engine = settings.engine()
    config = engine.config
    agents = {
        "looking": lambda: Looking(config.space.action_size),
        "full": lambda: FullAgent(config),
        "random": lambda: RandomAgent(config, seed=3),
    }
    found = adaptive(settings, agents[kind]())(engine.dataset.fetch(np.arange(IMAGES)))
    expected = evaluate(agents[kind](), settings)
    assert found.logits.argmax(1).tolist() == expected.prediction.tolist()
    assert found.macs.tolist() == expected.macs.tolist()
    np.testing.assert_allclose(found.patches / config.num_patches, expected.patches)
    np.testing.assert_allclose(found.subnet.to_actions(config.space).numpy(), expected.actions)
    assert len(found) == IMAGES
    torch.testing.assert_close(
        found.logits, engine.net(engine.dataset.fetch(np.arange(IMAGES)), found.subnet), rtol=0, atol=1e-4
    )


def test_an_agent_gets_back_what_it_handed_out_and_nothing_at_first(settings: EnvSettings) -> None:
    space = settings.engine().config.space
    agent = Looking(space.action_size)
    adaptive(settings, agent)(settings.engine().dataset.fetch(np.arange(3)))
    assert agent.asked == [None, *range(1, space.num_decisions)]


def test_an_agent_answers_in_its_own_precision_whatever_is_autocast(digits_net: Supernet) -> None:
    linear, asked = torch.nn.Linear(2, digits_net.space.action_size), list[tuple[Any, Any]]()

    class Network(Looking):
        def predict(self, observation: Any, state: Any = None, deterministic: bool = False) -> tuple[Any, Any]:
            answer = linear(torch.from_numpy(observation[:, :2])).tanh().float()
            asked.append((observation, answer))
            return answer, None

    images = make_engine(digits_net, 4).dataset.fetch(np.arange(4))
    with torch.autocast("cpu", torch.bfloat16):
        AdaptiveViT(digits_net, Network(1))(images)
    for seen, answer in asked:
        assert torch.equal(answer, linear(torch.from_numpy(seen[:, :2])).tanh())


def test_normalised_floats_and_bytes_are_the_same_images(settings: EnvSettings) -> None:
    engine = settings.engine()
    images = engine.dataset.fetch(np.arange(4))
    floats = (images / 255 - engine.net.mean) / engine.net.std
    model = adaptive(settings, Looking(engine.config.space.action_size))
    torch.testing.assert_close(model(images).logits, model(floats).logits, rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match="images have the shape"):
        model(images[:, :, 1:])


def test_what_are_no_pictures_is_said(settings: EnvSettings) -> None:
    model = adaptive(settings, FullAgent(settings.engine().config))
    with pytest.raises(TypeError, match="pictures=None are no pictures; pass paths, bytes, Pillow's images or uint8"):
        model.predict(None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="picture 0 cannot be read as a picture: it is of type NoneType; expected a"):
        model.predict([None])  # type: ignore[list-item]


def test_a_price_is_what_the_agent_observes_last(digits_net: Supernet) -> None:
    engine = make_engine(digits_net, 4)
    seen: list[float] = []

    class Spy(Looking):
        def predict(self, observation: Any, state: Any = None, deterministic: bool = False) -> tuple[Any, Any]:
            seen.extend(observation[:, -1].tolist())
            return super().predict(observation, state, deterministic)

    agent, images = Spy(engine.config.space.action_size), engine.dataset.fetch(np.arange(2))
    model = AdaptiveViT(digits_net, agent, conditioning=CostConditioning(0.01, 1.0))
    model(images, 0.1)
    np.testing.assert_allclose(seen, 0.5, atol=1e-6)
    with pytest.raises(ValueError, match=r"trained for a range of prices; pass budget=, a price in \[0.01, 1.0\]"):
        model(images)
    with pytest.raises(ValueError, match=r"macs_weight=2.0 must lie in \[0.01, 1.0\]"):
        model(images, 2)
    with pytest.raises(ValueError, match="trained for one price only"):
        AdaptiveViT(digits_net, agent)(images, 0.1)
    fixed = AdaptiveViT(digits_net, agent, conditioning=CostConditioning(0.01, 1.0, 1.0))
    seen.clear()
    fixed(images)
    np.testing.assert_allclose(seen, 1, atol=1e-6)


def test_an_agent_for_other_spaces_is_refused_with_both(settings: EnvSettings) -> None:
    class Model(Looking):
        observation_space = gym.spaces.Box(0, 1, (3,), np.float32)

    with pytest.raises(ValueError, match=r"trained for observations Box\(0, 1, \(3,\)\).*these settings"):
        AdaptiveViT.from_settings(settings, Model(4))


def test_actions_of_the_papers_box_are_understood(settings: EnvSettings) -> None:
    engine = settings.engine()
    images, config = engine.dataset.fetch(np.arange(4)), engine.config
    model = AdaptiveViT(engine.net, RandomAgent(config, normalize_actions=False, seed=1), normalize_actions=False)
    space = config.space
    first = RandomAgent(config, normalize_actions=False, seed=1).predict(np.zeros((4, 9), np.float32))[0]
    chosen = model(images).subnet.to_actions(space).numpy()[:, 0]
    rates = -space.num_rates
    np.testing.assert_allclose(chosen[:, rates:], decode_actions(first, False)[:, rates:], atol=1e-6)
