"""Few images are computed in one piece: what comes out is what comes out by segments."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import random_net
from mode_nets import BATCH, CASES, images_for, make_config, subnets_for
from torch import Tensor, nn

from supernet import GroupChoice, InferenceState, SubnetConfig, Supernet
from supernet.plan import plan_group
from supernet.runtime import blocks, cuts, together

# Sums over channels in another order; logits of these networks are about 1.
BOUND = 1e-5
# The same sums; some processors add those of few rows in another order.
LAST_BITS = 2e-6
WHOLE = ("num_tokens", "embed_dim", "token_dim", "macs", "patch_token")


def features(net: Supernet, images: Tensor, subnet: SubnetConfig, few: bool) -> InferenceState:
    """What the blocks give, with mean keys, by one of the two ways."""
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(blocks, "cheaper_together", lambda plan, device: few)
        state = net.begin(images, key_mean=True) if net.space.decide_first_group else None
        if state is None:
            state = net.begin(images, subnet.group(net.space, 0), subnet.embed_dim[:, 1].numpy(), key_mean=True)
        return net.run_to_end(state, subnet)


def assert_same(net: Supernet, state: InferenceState, expected: InferenceState, bound: float) -> None:
    for name in WHOLE:
        assert torch.equal(torch.as_tensor(getattr(state, name)), torch.as_tensor(getattr(expected, name))), name
    assert (state.size is None) == (expected.size is None)
    for name in ("tokens", "key_mean", *(() if state.size is None else ("size",))):
        torch.testing.assert_close(getattr(state, name), getattr(expected, name), rtol=0, atol=bound)
    torch.testing.assert_close(net.forward_head(state), net.forward_head(expected), rtol=0, atol=bound)


def test_a_mixed_batch_in_one_piece_is_that_of_segments(net: Supernet) -> None:
    images, subnet = images_for(net), subnets_for(net)
    assert_same(net, features(net, images, subnet, True), features(net, images, subnet, False), BOUND)


def test_a_lone_image_in_one_piece_is_that_of_segments_to_the_last_bits(net: Supernet) -> None:
    images, subnet = images_for(net), subnets_for(net)
    for i in (0, 1, 4):
        one = images[i : i + 1], subnet[i]
        assert_same(net, features(net, *one, few=True), features(net, *one, few=False), LAST_BITS)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_one_piece_too(dtype: torch.dtype) -> None:
    single = random_net(make_config("prune", "class-token", False))
    net, images, subnet = copy.deepcopy(single).to(dtype), images_for(single), subnets_for(single)
    # Which patches leave hangs on the last bits of scores: all stay.
    subnet = replace(subnet, keep_rate=torch.ones_like(subnet.keep_rate))
    logits = net.forward_head(features(net, images, subnet, True))
    assert logits.dtype == dtype
    expected = single.forward_head(features(single, images, subnet, False))
    torch.testing.assert_close(logits.float(), expected, rtol=0, atol=0.1)


@pytest.mark.parametrize("change", ["in place", "a new layer", "new values", "another precision", "loaded", "turned"])
def test_changed_weights_are_noticed(change: str) -> None:
    net = copy.deepcopy(random_net(make_config("prune", "class-token", False)))
    images, subnet = images_for(net), subnets_for(net)
    before = net.forward_head(features(net, images, subnet, True))
    layer = net.blocks[2].fc1
    new = copy.deepcopy(layer)
    new.weight.mul_(1.5)
    if change == "in place":
        with torch.no_grad():
            layer.weight.copy_(new.weight)
    elif change == "a new layer":
        net.blocks[2].fc1 = new
    elif change == "new values":
        layer.weight.data = new.weight.data
    elif change == "turned":
        turned = net.blocks[2].proj.weight
        assert turned.shape[0] == turned.shape[1]
        turned.data = turned.data.t()
    elif change == "loaded":
        net.load_state_dict({**net.state_dict(), "blocks.2.fc1.weight": new.weight}, assign=True)
    else:
        net.double()
    after = net.forward_head(features(net, images, subnet, True))
    assert not torch.equal(before, after.to(before.dtype))
    torch.testing.assert_close(after, net.forward_head(features(net, images, subnet, False)), rtol=0, atol=BOUND)


def test_a_copy_of_a_network_has_views_of_its_own() -> None:
    net = random_net(make_config("prune", "class-token", False))
    images, subnet = images_for(net), subnets_for(net)
    before = net.forward_head(features(net, images, subnet, True))
    twin = copy.deepcopy(net)
    with torch.no_grad():
        twin.blocks[2].fc1.weight.zero_()
    assert not torch.equal(twin.forward_head(features(twin, images, subnet, True)), before)
    assert torch.equal(net.forward_head(features(net, images, subnet, True)), before)


def test_views_of_weights_are_few_and_go_with_their_network() -> None:
    block = copy.deepcopy(random_net(make_config("prune", "class-token", False)).blocks[2])
    kept = len(cuts._KEPT)
    for hidden in range(1, 2 * cuts.MOST_KEPT):
        cut = cuts.cut_of(block, 2, cuts.BlockSize(8, 8, 8, hidden % 16 + 1, 8, False))
        assert cut is cuts.cut_of(block, 2, cut.size)
        assert cut.fc1[0].untyped_storage().data_ptr() == block.fc1.weight.untyped_storage().data_ptr()
        assert len(cuts._KEPT[block].cuts) <= cuts.MOST_KEPT
    del block, cut
    assert len(cuts._KEPT) <= kept


class _Halved(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / 2


@pytest.mark.parametrize("change", ["parametrised", "hook", "hook of the block", "forward", "class", "layer", "hooked"])
def test_a_layer_that_must_be_called_is_refused_once_it_is_there(change: str) -> None:
    block = copy.deepcopy(random_net(make_config("prune", "class-token", False)).blocks[2])
    size = cuts.BlockSize(8, 8, 8, 8, 8, False)
    cuts.cut_of(block, 2, size)
    if change == "parametrised":
        nn.utils.parametrize.register_parametrization(block.fc1, "weight", nn.Identity())
    elif change == "forward":
        block.fc1.forward = lambda x: x
    elif change == "class":
        block.fc1.__class__ = _Halved
    elif change in ("layer", "hooked"):
        # Another one with the same weights.
        other = (_Halved if change == "layer" else nn.Linear)(1, 1)
        other.weight, other.bias = block.fc1.weight, block.fc1.bias
        if change == "hooked":
            other.register_forward_hook(lambda *arguments: None)
        block.fc1 = other
    else:
        (block.fc1 if change == "hook" else block).register_forward_hook(lambda *arguments: None)
    with pytest.raises(ValueError, match=r"blocks\.2(\.fc1)? (has hooks|is a)"):
        cuts.cut_of(block, 2, size)


def test_one_image_is_always_in_one_piece_and_many_only_where_calls_cost_more_than_arithmetic() -> None:
    def cheaper(batch: int, tokens: int, mixed: bool) -> bool:
        net = random_net(make_config("prune", "class-token", False))
        drawn = SubnetConfig.random(net.space, batch, torch.Generator().manual_seed(1)).group(net.space, 1)
        choice = drawn if mixed else GroupChoice.full(net.space, 1, batch)
        plan = plan_group(net.config, 1, choice, np.full(batch, tokens, dtype=np.int64))
        return together.cheaper_together(plan, "cpu")

    assert cheaper(1, 10**9, mixed=True)
    assert cheaper(8, 37, mixed=True)
    assert not cheaper(8, 10**5, mixed=True)
    assert cheaper(8, 37, mixed=False)
    assert not cheaper(8, 10**6, mixed=False)


def test_gradients_and_autocast_go_by_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    net = random_net(make_config("prune", "class-token", False))
    images, subnet = images_for(net, 1), SubnetConfig.full(net.space)
    monkeypatch.setattr(blocks, "run_together", None)
    net(images, subnet)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        net(images, subnet)
    with torch.no_grad(), pytest.raises(TypeError, match="NoneType"):
        net(images, subnet)


def test_there_are_networks_of_every_kind() -> None:
    assert BATCH > 3
    assert {mode for mode, _, _ in CASES.values()} >= {"prune", "merge", "tome"}
