"""Whole networks in which a keep rate is a threshold, so that every image decides for itself how many tokens remain."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from helpers import random_net
from mode_nets import (
    BATCH,
    THRESHOLD,
    assert_close,
    assert_gradients_are_sums_over_images,
    images_for,
    make_config,
    naive,
    subnets_for,
)
from token_cases import make_case, reduce
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from supernet import SubnetConfig, Supernet, register_token_mode
from supernet.arrays import Floats, Ints
from supernet.macs import head_macs
from supernet.tokens.modes import Counted, column

ARCHITECTURES = ["class-token", "patches-only", "avg-of-clip"]


@pytest.fixture(scope="module", params=[(m, a, f) for m in THRESHOLD for a in ARCHITECTURES for f in (False, True)])
def net(request: pytest.FixtureRequest) -> Supernet:
    """A random frozen supernet for every such mode, architecture and first group."""
    return random_net(make_config(*request.param))


def test_every_image_of_a_mixed_batch_is_reduced_as_by_hand_and_decides_for_itself(net: Supernet) -> None:
    images, subnet = images_for(net), subnets_for(net)
    logits, state = net(images, subnet), net.forward_features(images, subnet)
    for i in range(BATCH):
        expected, holder, sizes = naive(net, images[i], subnet[i])
        assert_close(logits[i], expected)
        assert state.patch_token[i].tolist() == holder
        assert state.num_tokens[i] == len(sizes)
    same = replace(subnet, keep_rate=torch.full_like(subnet.keep_rate, 0.6))
    left = net.forward_features(images, same).num_tokens
    assert len(set(left.tolist())) > 1
    assert left.min() > net.config.num_prefix_tokens


def counted(net: Supernet, images: Tensor, subnet: SubnetConfig) -> list[int]:
    """Multiply-accumulates of every image, from the run of them all; those of the whole and the spent agree."""
    end = net.forward_features(images, subnet)
    macs = net.macs_to_go(end)
    assert macs.tolist() == (end.macs + head_macs(net.config, end.token_dim, end.num_tokens)).tolist()
    assert macs[0] == net.macs().item()
    assert len(set(macs.tolist())) > BATCH // 2
    return macs.tolist()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_merging_costs_what_pytorch_counts_where_the_supernet_runs_an_image_alone(architecture: str) -> None:
    net = random_net(make_config("merge_above", architecture, True))
    images, subnet = images_for(net), subnets_for(net)
    for i, macs in enumerate(counted(net, images, subnet)):
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            net(images[i : i + 1], subnet[i])
        assert counter.get_total_flops() == 2 * macs


def test_pruning_costs_what_it_costs_to_prune_as_many_by_number_and_to_look() -> None:
    net = random_net(make_config("prune_mass", "class-token", False))
    images, subnet, space = images_for(net), subnets_for(net), net.space
    state, left = net.begin(images), []
    for group in range(1, len(space.groups)):
        state = net.run_group(state, group, subnet.group(space, group))
        left.append(state.num_tokens - 1)
    before = np.stack([np.full(BATCH, net.config.num_patches), *left[:-1]], axis=1)
    by_number = replace(subnet, keep_rate=torch.from_numpy(np.stack(left, axis=1) / before))
    as_prune = random_net(replace(net.config, space=replace(space, token_mode="prune")))
    # By thresholds the class attention is needed to find out that all stay.
    heads = np.array(space.num_heads)[np.searchsorted(space.embed_dims, subnet.embed_dim[:, [1, 3]].numpy())]
    in_vain = (by_number.keep_rate.numpy() == 1) & (subnet.keep_rate.numpy() < 1)
    looked = (before + 1) * heads * net.config.head_dim * in_vain
    assert counted(net, images, subnet) == (as_prune.macs(by_number).numpy() + looked.sum(1)).tolist()
    assert looked.any()
    assert_close(net(images, subnet), as_prune(images, by_number))


def test_without_an_image_only_what_keeps_all_has_macs_and_a_static_network(net: Supernet) -> None:
    images, subnet = images_for(net), subnets_for(net)
    message = rf"keep_rate=.* is a threshold of token_mode='{net.space.token_mode}'.*macs_to_go.*'prune'"
    for ask in (net.macs, net.extract):
        with pytest.raises(ValueError, match=message):
            ask(subnet[5])
    whole = subnet[2]
    assert_close(net.extract(whole)(images[[2]]), net(images[[2]], whole))
    assert net.macs(whole).item() == net.macs_to_go(net.forward_features(images[[2]], whole))[0]
    as_prune = replace(net.config, space=replace(net.space, token_mode="prune"))
    assert net.params(subnet).tolist() == random_net(as_prune).params(subnet).tolist()


@pytest.mark.parametrize("mode", THRESHOLD)
def test_gradients_of_a_mixed_batch_are_those_of_its_images(mode: str) -> None:
    net = copy.deepcopy(random_net(make_config(mode, "class-token", False))).double().requires_grad_(True)
    assert_gradients_are_sums_over_images(net, images_for(net).double(), subnets_for(net), 1e-5)


def test_the_mass_that_is_kept_is_the_least_that_is_enough() -> None:
    case = make_case("prune_mass", 1, [6], [[0.7]], seed=0)
    case.scores[0] = torch.tensor([0.5, 0.05, 0.2, 0.1, 0.1, 0.05])  # of the patches 0.4, 0.2, 0.2, 0.1, 0.1
    for share, kept in ((1e-9, [2]), (0.39, [2]), (0.41, [2, 3]), (0.61, [2, 3, 4]), (0.81, [1, 2, 3, 4])):
        case.asked[:] = share
        into = reduce("prune_mass", case).into[0]
        assert (into >= 0).nonzero().flatten().tolist() == [0, *kept], share


def test_what_is_alike_merges_however_much_there_is_of_it() -> None:
    case = make_case("merge_above", 1, [17], [[0.99]], seed=1)
    case.metric[0, 1:] = case.metric[0, 1]
    assert reduce("merge_above", case).kept.tolist() == [2]
    case.metric[0, 5] = -case.metric[0, 5]
    assert reduce("merge_above", case).kept.tolist() == [3]
    case.asked[:] = 1
    assert reduce("merge_above", case).kept.tolist() == [17]


# ---- modes of users ---------------------------------------------------------------------------------------------


def soft_halves(
    scores: Tensor | None, metric: Tensor | None, size: Tensor, lengths: Ints, thresholds: Floats, prefix: int
) -> Counted:
    """All patches in two equal tokens, where the threshold is low; in as many stages as the lowest one takes."""
    few = thresholds[:, 0] < 0.5
    kept = np.where(few, prefix + 2, lengths)
    position, longest = torch.arange(size.shape[1]), int(kept.max())
    own = torch.eye(size.shape[1], longest).expand(len(size), -1, -1)
    half = torch.zeros(size.shape[1], longest)
    half[prefix:, prefix : prefix + 2] = 0.5
    half[:prefix, :prefix] = torch.eye(prefix)
    shares = torch.where(column(few, size.device)[..., None], half, own)
    shares = shares * (position < column(lengths, size.device))[..., None]
    return shares, size, np.stack([lengths, kept] if few.any() else [kept], axis=1)


@pytest.mark.usefixtures("own_modes")
def test_soft_modes_may_have_thresholds_too() -> None:
    register_token_mode("halves", uses_scores=False, sized=True, soft=True, threshold=True)(soft_halves)
    net = random_net(make_config("halves", "class-token", False))
    images, subnet = images_for(net), subnets_for(net)
    state = net.forward_features(images, subnet)
    expected = np.where((subnet.keep_rate < 0.5).any(1), 3, net.config.num_tokens)
    assert state.num_tokens.tolist() == expected.tolist()
    for i in range(BATCH):
        alone = net.forward_features(images[[i]], subnet[i])
        assert_close(net.forward_head(alone), net.forward_head(state[[i]]))
        assert alone.macs.tolist() == state[[i]].macs.tolist()


@pytest.mark.usefixtures("own_modes")
@pytest.mark.parametrize(
    ("settings", "message"),
    [({"threshold": True}, "gave 2 things; with threshold=True .* places, weights and counts"), ({}, "gave 3 things")],
)
def test_an_answer_with_or_without_counts_must_be_announced(settings: dict[str, Any], message: str) -> None:
    def where(*arguments: Any) -> Any:
        return (torch.zeros(1, 37).long(), None) if settings else (torch.zeros(1, 37).long(), None, np.ones((1, 1)))

    register_token_mode("mistaken", uses_scores=False, **settings)(where)
    net = random_net(make_config("mistaken", "class-token", False))
    with pytest.raises(ValueError, match=message):
        net(images_for(net, 1), SubnetConfig.min(net.space))
