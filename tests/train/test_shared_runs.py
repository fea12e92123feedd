"""Many static subnets over the same images: what they share is computed once, and nothing else changes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import make_engine, played, unit_actions
from small_nets import CASES, cut_subnet, pixels

from prance_env import InferenceEngine, RewardConfig
from supernet import GroupChoice, Supernet, extract
from supernet.extract import extract_block
from supernet.static_vit import StaticBlock
from train.search.shared_runs import SharedRuns
from train.search.state_cache import StateCache
from train.search.static import macs_of_static

WITH_CLASSES = [name for name, make in CASES.items() if make().config.num_classes]
INDEX = np.array([3, 0, 23, 5, 5, 11, 19])


@torch.inference_mode()
def step_by_step(engine: InferenceEngine, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What the supernet says when its groups run one by one, as in an episode."""
    episodes = engine.start(INDEX)
    state = episodes.state
    for action in actions:
        choice = GroupChoice.from_actions(engine.config.space, torch.from_numpy(action)[None].expand(len(state), -1))
        state = engine.net.run_group(state, state.group, choice)
    probs = engine.net.forward_head(state).softmax(-1).double().numpy()
    return probs.argmax(1) == episodes.label, probs[np.arange(len(INDEX)), episodes.label]


@pytest.mark.parametrize("case", WITH_CLASSES)
def test_subnets_are_judged_as_the_supernet_would(case: str) -> None:
    engine = make_engine(CASES[case](), 24)
    actions = unit_actions(engine.config.space, 6)
    actions[3] = actions[2]
    actions[3, -1] = actions[4, -1]  # alike up to the last decision
    actions[5] = actions[2]
    runs = SharedRuns(engine, batch_size=3)
    correct, prob = runs.verdicts(INDEX, actions)
    alone = [SharedRuns(engine, 0, batch_size=3).verdict(INDEX, subnet) for subnet in actions[::-1]][::-1]
    for subnet, right, sure, fresh in zip(actions, correct, prob, alone, strict=True):
        expected = step_by_step(engine, subnet)
        np.testing.assert_array_equal(right, expected[0])
        np.testing.assert_allclose(sure, expected[1], atol=1e-5)
        # What is kept changes nothing, and neither does the order.
        np.testing.assert_array_equal(right, fresh[0])
        np.testing.assert_array_equal(sure, fresh[1])
    np.testing.assert_allclose(runs.verdict(INDEX[2:4], actions[4])[1], prob[4, 2:4], atol=1e-6)


@pytest.mark.parametrize("case", WITH_CLASSES)
def test_subnets_cost_what_episodes_count(case: str) -> None:
    engine = make_engine(CASES[case](), 24)
    actions = unit_actions(engine.config.space, 6)
    episodes = played(engine, actions, RewardConfig())[-1]
    np.testing.assert_array_equal(macs_of_static(engine, actions), episodes.macs / engine.full_macs)


def test_what_subnets_have_in_common_is_computed_once(digits_net: Supernet, monkeypatch: pytest.MonkeyPatch) -> None:
    run: list[int] = []
    attention, original = StaticBlock.attention, StaticBlock.class_token_alone

    def counted(self: StaticBlock, *args: torch.Tensor) -> object:
        run.append(1)
        return attention(self, *args)

    def counted_last(self: StaticBlock, *args: torch.Tensor) -> object:
        run.append(1)
        return original(self, *args)

    monkeypatch.setattr(StaticBlock, "attention", counted)
    monkeypatch.setattr(StaticBlock, "class_token_alone", counted_last)
    engine = make_engine(digits_net, 24)
    subnet = unit_actions(engine.config.space, 3)[2]
    runs = SharedRuns(engine)

    def blocks_run(actions: np.ndarray) -> int:
        run.clear()
        runs.verdict(INDEX, actions)
        return len(run)

    other = subnet.copy()
    other[1, 0] = 1 - round(subnet[1, 0])  # the MLP of the first block of the second decision
    assert blocks_run(subnet) == 9
    assert blocks_run(subnet) == 0
    assert blocks_run(other) == 5
    other[2, 3] = 1 - round(subnet[2, 3])  # the width of the first block of the third
    assert blocks_run(other) == 3
    assert blocks_run(np.clip(subnet + 1e-6, 0, 1)) == 0, "other actions that mean the same choice"


def test_progress_is_told_in_subnets(digits_net: Supernet) -> None:
    engine, done = make_engine(digits_net, 24), list[int]()
    SharedRuns(engine, batch_size=3).verdicts(INDEX, unit_actions(engine.config.space, 4), done.append)
    assert done == [1, 2, 3, 4]


def test_the_cache_stays_within_its_budget_and_keeps_what_is_dear_small_and_used() -> None:
    cache = StateCache(1)
    quarter = 2**18
    cache.put("large", "L", 2 * quarter, cost=1.0)
    cache.put("dear", "D", quarter, cost=5.0)
    cache.put("used", "U", quarter, cost=0.4)
    for _ in range(4):
        assert cache.get("used") == "U"
    cache.put("new", "N", quarter, cost=1.0)
    assert "large" not in cache
    assert "dear" in cache
    assert "used" in cache
    assert cache.nbytes == 3 * quarter
    cache.put("huge", "H", 5 * quarter, cost=1e9)
    assert "huge" not in cache
    for number in range(1000):
        cache.put(number, number, quarter, cost=1.0)
        cache.get(number)
        assert cache.nbytes <= 2**20
    assert "dear" not in cache, "what nobody asks for goes some day"
    with pytest.raises(KeyError):
        cache.get("dear")
    empty = StateCache(0)
    empty.put("a", 1, 1, 1.0)
    assert "a" not in empty


@pytest.mark.parametrize("case", [name for name in CASES if CASES[name]().config.class_token])
@torch.inference_mode()
def test_a_last_block_can_compute_the_class_token_alone(case: str) -> None:
    net = CASES[case]()
    static = extract(net, cut_subnet(net))
    x, size = static.tokens_of(static.normalised(pixels(net, 5))), None
    for number, block in enumerate(static.blocks):
        assert isinstance(block, StaticBlock)
        again = extract_block(net.config, net.state_dict(), number, block.sizes)
        alone, (x, size) = block.class_token_alone(x, size), block(x, size)
        assert (alone - x[:, :1]).abs().max() <= 1e-5 * x.abs().max()
        for name, weight in block.state_dict().items():
            assert torch.equal(weight, again.state_dict()[name])
