"""Groups of blocks for any number of tokens compute what the supernet computes, from the supernet's own weights."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import random_net

from supernet import GroupChoice, SubnetConfig, Supernet, supernet_config
from supernet.extract import extract_ends, extract_group


def walked(net: Supernet, images: torch.Tensor, subnet: SubnetConfig) -> torch.Tensor:
    """Logits of one image by groups that know nothing of each other."""
    space = net.space
    width = int(subnet.embed_dim[0, -1])
    ends = extract_ends(net, width)
    x, size = ends.tokens_of(ends.normalised(images)), None
    for group in range(len(space.groups)):
        x, size = extract_group(net, group, subnet.group(space, group))(x, size)
    return ends.forward_head(x, size)


@torch.inference_mode()
@pytest.mark.parametrize("mode", ["prune", "prune_fused", "merge", "prune_merge", "tome"])
def test_a_walk_through_groups_is_the_network(mode: str) -> None:
    config = supernet_config("digits")
    net = random_net(replace(config, space=replace(config.space, token_mode=mode)))
    images = torch.rand(1, 1, 48, 48, generator=torch.Generator().manual_seed(0))
    subnets = SubnetConfig.random(net.space, 4, torch.Generator().manual_seed(1))
    for subnet in (subnets[i] for i in range(len(subnets))):
        torch.testing.assert_close(walked(net, images, subnet), net(images, subnet), rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_every_kind_of_supernet_can_be_walked(any_net: Supernet) -> None:
    c = any_net.config
    images = torch.rand(1, c.in_chans, c.img_size, c.img_size, generator=torch.Generator().manual_seed(0))
    for subnet in (SubnetConfig.full(c.space), SubnetConfig.min(c.space)):
        torch.testing.assert_close(walked(any_net, images, subnet), any_net(images, subnet), rtol=1e-4, atol=1e-4)


def test_weights_are_views_of_the_supernets(digits_net: Supernet) -> None:
    space = digits_net.space
    group = extract_group(digits_net, 1, SubnetConfig.min(space).group(space, 1))
    own = {p.untyped_storage().data_ptr() for p in digits_net.parameters()}
    assert {p.untyped_storage().data_ptr() for p in group.parameters()} <= own


@torch.inference_mode()
def test_how_many_tokens_stay_may_be_told_by_a_length(digits_net: Supernet) -> None:
    space = digits_net.space
    choice = SubnetConfig.random(space, 1, torch.Generator().manual_seed(2)).group(space, 1)
    group = extract_group(digits_net, 1, choice)
    x = torch.randn(1, 23, digits_net.config.embed_dim, generator=torch.Generator().manual_seed(3))
    expected, _ = group(x)
    found, _ = group(x, slots=torch.arange(expected.shape[1]))
    torch.testing.assert_close(found, expected)


def test_thresholds_are_refused() -> None:
    config = supernet_config("digits")
    net = random_net(replace(config, space=replace(config.space, token_mode="prune_mass")))
    space = net.space
    choice = GroupChoice.full(space, 1, 1)
    kept = GroupChoice(choice.embed_dim, choice.mlp_ratio, torch.from_numpy(np.array([0.5])))
    with pytest.raises(ValueError, match="is a threshold"):
        extract_group(net, 1, kept)
