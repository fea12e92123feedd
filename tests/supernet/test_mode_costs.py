"""What whole networks in every token mode cost, against PyTorch's counters."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from helpers import random_net
from mode_nets import OURS, images_for, make_config, subnets_for
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from supernet import SearchSpace, SubnetConfig, Supernet, SupernetConfig


@pytest.mark.slow
def test_macs_equal_pytorchs_count_on_extracted_networks_of_every_mode(net: Supernet) -> None:
    """Seven for each of six networks a mode, twenty for the two of each of the authors' modes: about forty a mode."""
    number = 20 if net.config.prance_embed_dim else 7
    image, subnet = images_for(net, 1), subnets_for(net, number, seed=4)
    counted = []
    for one in (subnet[i] for i in range(number)):
        static = net.extract(one)
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            static(image)
        counted.append(counter.get_total_flops())
    assert (2 * net.macs(subnet)).tolist() == counted
    assert len(set(counted)) > number // 2


@pytest.mark.parametrize("mode", OURS)
def test_pytorch_counts_the_full_networks_macs_when_the_supernet_itself_runs(mode: str) -> None:
    net = random_net(make_config(mode, "class-token", False))
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        net(images_for(net, 3))
    assert counter.get_total_flops() == 3 * 2 * int(net.macs())


def peak_memory(run: Callable[[], Any]) -> int:
    """Most bytes that were allocated at once during `run`, by PyTorch's own account; the same in every run."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    results: Any = profiler.profiler
    events = [(e.start_ns(), e.nbytes()) for e in results.kineto_results.events() if e.name() == "[memory]"]
    assert events
    return int(np.cumsum([size for _, size in sorted(events, key=lambda event: event[0])]).max())


@pytest.mark.slow
@pytest.mark.parametrize("mode", OURS)
def test_subnets_of_half_the_macs_need_less_memory_than_the_full_network(mode: str) -> None:
    space = SearchSpace((2, 2, 2), (32, 48, 64), (1.0, 2.0, 4.0), (4,), 0.1, mode, decide_first_group=True)
    net = random_net(SupernetConfig(space, 48, 4, 3, 7, head_dim=16, lln=False))
    images, drawn = images_for(net, 16), SubnetConfig.random(space, 4000, torch.Generator().manual_seed(5))
    share = net.macs(drawn) / net.macs()
    half = (share - 0.5).abs().argsort()[:16]
    subnet = drawn[half]
    assert len({one.to_json() for one in (subnet[i] for i in range(16))}) == 16
    assert 0.4 < share[half].mean() < 0.6
    with torch.no_grad():
        assert peak_memory(lambda: net(images, subnet)) < 0.9 * peak_memory(lambda: net(images))
    trained = copy.deepcopy(net).requires_grad_(True)
    training = peak_memory(lambda: trained(images, subnet).sum().backward())
    assert training < 0.75 * peak_memory(lambda: trained(images).sum().backward())
