"""Whole networks in every token mode: every image of a batch as it is alone, in its static network, by naive loops."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from helpers import random_net
from mode_nets import (
    BATCH,
    OURS,
    assert_close,
    assert_exports_with_a_free_batch_size,
    assert_gradients_are_sums_over_images,
    images_for,
    make_config,
    naive,
    subnets_for,
)

from supernet import GroupChoice, Supernet
from supernet.tokens.modes import combine


def test_every_image_of_a_mixed_batch_equals_the_naive_oracle(net: Supernet) -> None:
    images, subnet = images_for(net), subnets_for(net)
    logits, state = net(images, subnet), net.forward_features(images, subnet)
    assert logits.std(dim=0).min() > 0.1
    sizes = torch.ones(len(state.tokens)) if state.size is None else state.size
    expected = [naive(net, images[i], subnet[i]) for i in range(BATCH)]
    assert_close(logits, torch.stack([logit for logit, _, _ in expected]))
    assert state.patch_token.tolist() == [holder for _, holder, _ in expected]
    assert [size.tolist() for size in sizes.split(state.num_tokens.tolist())] == [size for _, _, size in expected]


@pytest.mark.slow
def test_a_mixed_batch_equals_every_image_alone_in_any_order_and_its_extracted_network(net: Supernet) -> None:
    images, subnet = images_for(net), subnets_for(net)
    logits = net(images, subnet)
    assert_close(torch.cat([net(images[i : i + 1], subnet[i]) for i in range(BATCH)]), logits)
    order = torch.randperm(BATCH, generator=torch.Generator().manual_seed(2))
    assert_close(net(images[order], subnet[order]), logits[order])
    for i in range(BATCH):
        static = net.extract(subnet[i])
        assert_close(static(images[[i, 0]])[:1], logits[i : i + 1])
        assert sum(p.numel() for p in static.parameters()) == net.params(subnet[i]).item()
    assert net.params(subnet).tolist() == [net.params(subnet[i]).item() for i in range(BATCH)]


@pytest.mark.slow
def test_gradients_of_a_mixed_batch_are_the_sum_of_those_of_its_images(net: Supernet) -> None:
    net = copy.deepcopy(net).double().requires_grad_(True)
    images, subnet = images_for(net).double(), subnets_for(net)
    assert_gradients_are_sums_over_images(net, images, subnet, 1e-5)


def test_gradients_are_those_of_the_extracted_network(mode_net: Supernet) -> None:
    net = copy.deepcopy(mode_net).double().requires_grad_(True)
    images, subnet = images_for(net).double(), subnets_for(net)[5]
    static = net.extract(subnet)
    (net(images, subnet) ** 2).sum().backward()
    (static(images) ** 2).sum().backward()
    ours, theirs = dict(net.named_parameters()), dict(static.named_parameters())
    for name in ("pos_embed", "patch_embed.0.weight"):
        a, b = ours[name].grad, theirs[name].grad
        assert a is not None
        assert b is not None
        assert (a - b).abs().max() <= 1e-5 * b.abs().max(), name


def test_rate_one_in_every_decision_is_the_full_network_whatever_the_mode() -> None:
    for architecture in ("class-token", "patches-only", "avg-of-clip"):
        for first in (False, True):
            nets = [random_net(make_config(mode, architecture, first)) for mode in OURS]
            images = images_for(nets[0], 3)
            logits = [one(images) for one in nets]
            assert all(torch.equal(other, logits[0]) for other in logits[1:])
            assert {one.macs().item() for one in nets} == {nets[0].macs().item()}


def test_without_classifier_the_features_are_what_the_classifier_would_read() -> None:
    for architecture in ("class-token", "patches-only", "avg-of-clip"):
        net = random_net(make_config("merge", architecture, True))
        bare = Supernet(replace(net.config, num_classes=0)).eval()
        bare.load_state_dict({k: v for k, v in net.state_dict().items() if not k.startswith("head.")})
        images, subnet = images_for(net), subnets_for(net)
        features = bare(images, subnet)
        assert features.shape == (BATCH, net.config.embed_dim)
        assert net.head is not None
        assert_close(features @ net.head.weight.T + net.head.bias, net(images, subnet))
        assert (features[1, net.space.embed_dims[0] :] == 0).all()
        head = net.macs(subnet) - bare.macs(subnet)
        assert head.tolist() == (subnet.embed_dim[:, -1] * net.config.num_classes).tolist()
        static = bare.extract(subnet[1])
        assert_close(static(images)[1], features[1, : net.space.embed_dims[0]])
        assert sum(p.numel() for p in static.parameters()) == bare.params(subnet[1]).item()


def test_a_state_from_its_tokens_is_the_state_that_began(net: Supernet) -> None:
    images = images_for(net, 3)
    state = net.begin(images, key_mean=True)
    assert state.key_mean is not None
    again = net.begun(state.tokens.view(3, net.config.num_tokens, -1), state.key_mean.view(3, -1))
    for name, value in vars(state).items():
        if value is None:
            assert getattr(again, name) is None
        else:
            assert torch.equal(torch.as_tensor(getattr(again, name)), torch.as_tensor(value)), name


@pytest.mark.slow
@pytest.mark.parametrize("mode", OURS)
def test_extracted_networks_of_every_mode_export_with_a_free_batch_size(mode: str) -> None:
    net = random_net(make_config(mode, "class-token", True))
    assert_exports_with_a_free_batch_size(net, subnets_for(net)[4])


def test_combining_keeps_the_dtype_of_the_tokens() -> None:
    x, into = torch.randn(1, 4, 3, dtype=torch.float16), torch.tensor([[0, 1, 1, -1]])
    for weight in (None, torch.ones(1, 4)):
        assert combine(x, into if weight is not None else torch.tensor([[0, 1, -1, -1]]), 2, weight).dtype == x.dtype


@pytest.mark.parametrize("mode", OURS)
def test_half_precision_stays_near_single(mode: str) -> None:
    net = random_net(make_config(mode, "class-token", False))
    images, subnet = images_for(net), subnets_for(net)
    subnet.keep_rate[:] = 1
    half = copy.deepcopy(net).bfloat16()
    logits = half(images.bfloat16(), subnet)
    assert logits.dtype == torch.bfloat16
    reference = net(images, subnet)
    assert (logits.float() - reference).abs().max() < 0.1 * reference.abs().max()
    dropped = half(images.bfloat16(), subnets_for(net))
    assert dropped.isfinite().all()


def test_a_choice_for_the_first_group_is_what_the_subnet_says() -> None:
    net = random_net(make_config("merge", "class-token", False))
    images, subnet = images_for(net), subnets_for(net)
    subnet.embed_dim[:, 0] = torch.tensor(net.space.embed_dims)[torch.arange(BATCH) % 3]
    choice = subnet.group(net.space, 0)
    assert torch.equal(choice.embed_dim[:, 0], subnet.embed_dim[:, 0])
    assert (choice.keep_rate == 1).all()
    assert_close(net.finish(net.begin(images, choice), subnet), net(images, subnet))
    full = GroupChoice.full(net.space, 0, BATCH)
    assert torch.equal(net.begin(images, full).tokens, net.begin(images).tokens)
