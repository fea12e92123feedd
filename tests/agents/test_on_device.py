"""An adaptive model whose groups run by tiles: it chooses what it chooses by segments, and what is recorded may be."""

from __future__ import annotations

from collections.abc import Hashable, Iterator

import numpy as np
import pytest
import torch
from adaptive_models import PRICES, prance_ppo
from device_asks import NotingRecorder, nothing_asked_of_the_device
from helpers import make_engine, random_net
from noise_envs import TINY

from agents import AdaptiveViT
from agents.deployed import on_device
from agents.deployed.convert import plain_agent
from agents.fitting import Interface
from prance_env.observations import OBSERVATIONS, Seen, register_observation
from supernet import runtime
from supernet.runtime.graphs import Function, Tensors


@pytest.fixture(autouse=True)
def _with_triton() -> None:
    pytest.importorskip("triton")


def test_tiles_choose_what_segments_choose() -> None:
    net = random_net(TINY)
    images = make_engine(net, 4).dataset.fetch(np.arange(4))
    interface = Interface(net.config, conditioning=PRICES)
    model = AdaptiveViT(net, plain_agent(prance_ppo(interface), interface), conditioning=PRICES)
    expected = model(images, [0.01, 0.03, 0.1, 1.0])
    with runtime.use("tiles"):
        found = model(images, [0.01, 0.03, 0.1, 1.0])
    assert found.macs.tolist() == expected.macs.tolist()
    assert found.patches.tolist() == expected.patches.tolist()
    assert torch.equal(found.subnet.embed_dim, expected.subnet.embed_dim)
    torch.testing.assert_close(found.logits, expected.logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize("way", ["segments", "tiles"])
def test_an_image_that_gives_an_action_of_nan_is_named_by_either_way(way: str) -> None:
    net = random_net(TINY)
    interface = Interface(net.config)
    model = AdaptiveViT(net, plain_agent(prance_ppo(interface), interface))
    images = net.normalised(make_engine(net, 3).dataset.fetch(np.arange(3)))
    images[1, 0, 0, 0] = float("nan")
    with runtime.use(way), pytest.raises(ValueError, match=r"The action of environment 1 holds NaN: \["):
        model(images)


def test_recorded_steps_are_not_replayed_for_other_weights_or_another_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_device, "records_graphs", lambda device: True)
    net = random_net(TINY)
    images, interface = make_engine(net, 2).dataset.fetch(np.arange(2)), Interface(net.config)
    model = AdaptiveViT(net, plain_agent(prance_ppo(interface), interface))
    recorder = model._recorder = NotingRecorder()

    def asked() -> None:
        with runtime.use("tiles"), pytest.raises(NotingRecorder.Asked):
            model(images)

    asked()
    asked()
    kept = [t.data for t in net.parameters()]  # so that nothing new lies at their addresses
    model.to(torch.bfloat16).to(torch.float32)
    asked()
    model.agent = plain_agent(prance_ppo(interface), interface)
    asked()
    assert recorder.names[0] == recorder.names[1]
    assert len({*recorder.names}) == 3
    assert len(kept) > 0


@pytest.fixture
def _own_observation() -> Iterator[None]:
    @register_observation("half_left", beside=("decision",))
    def half_left(seen: Seen) -> torch.Tensor:
        left = torch.from_numpy(seen.state.num_tokens / seen.net.config.num_tokens)  # asks the device
        return left[:, None].to(seen.state.patch_token.device)

    yield
    OBSERVATIONS.remove("half_left")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there a graph finds it")
@pytest.mark.usefixtures("_own_observation")
def test_functions_of_observations_may_ask_the_device_and_recorded_steps_do_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Recording:
        """In the place of a recorder: runs what it is given as if it were recorded."""

        def run(self, name: Hashable, function: Function, inputs: Tensors) -> Tensors:
            with nothing_asked_of_the_device(monkeypatch):
                return function(inputs)

    monkeypatch.setattr(on_device, "records_graphs", lambda device: True)
    net = random_net(TINY)
    interface = Interface(net.config, "half_left")
    model = AdaptiveViT(net, plain_agent(prance_ppo(interface), interface), "half_left")
    model._recorder = Recording()  # type: ignore[assignment]
    images = make_engine(net, 3).dataset.fetch(np.arange(3))
    expected = model(images)
    with runtime.use("tiles"):
        found = model(images)
    assert torch.equal(found.subnet.embed_dim, expected.subnet.embed_dim)
    assert found.patches.tolist() == expected.patches.tolist()
