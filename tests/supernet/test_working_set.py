"""Computing large layers a part at a time, on a small working set, changes nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers import random_net

from supernet import SearchSpace, SubnetConfig, Supernet, SupernetConfig, extract
from supernet.runtime.blocks import _parts
from supernet.runtime.devices import DEVICES, device_costs


@pytest.fixture(scope="module")
def net() -> Supernet:
    space = SearchSpace((1, 2, 2), (16, 24, 32), (1.0, 2.0, 4.0), (2,), 0.1)
    return random_net(SupernetConfig(space, 32, 4, 3, 5, head_dim=8))


@pytest.mark.parametrize("numbers", [1, 700, 20_000])
def test_a_small_working_set_changes_no_logits(net: Supernet, numbers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    subnets = SubnetConfig.random(net.space, 6, torch.Generator().manual_seed(1))
    static = extract(net, subnets[2]).requires_grad_(False)
    with torch.no_grad():
        expected = [net(images), net(images, subnets), static(images)]
        monkeypatch.setitem(DEVICES, "cpu", replace(DEVICES["cpu"], working_set=numbers))
        actual = [net(images), net(images, subnets), static(images)]
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    with torch.enable_grad():
        torch.testing.assert_close(net(images, subnets), expected[1], rtol=0, atol=1e-5)


@pytest.mark.parametrize(("lengths", "limit"), [([5, 5, 5, 5], 10), ([1, 30, 1, 1], 8), ([7], 2), ([3, 4, 5], 100)])
def test_parts_are_contiguous_and_about_as_large_as_allowed(lengths: list[int], limit: int) -> None:
    ends = torch.tensor([9, *lengths]).cumsum(0).numpy()  # after an image of nine rows
    parts = _parts(1, 1 + len(lengths), ends, limit)
    assert [begin for begin, _ in parts] == [1, *(end for _, end in parts[:-1])]
    assert parts[-1][1] == 1 + len(lengths)
    assert len(parts) <= max(1, -(-sum(lengths) // limit))
    assert all(int(ends[b - 1] - ends[a - 1]) <= limit + max(lengths) for a, b in parts)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::torch.jit.TracerWarning")
def test_a_traced_static_network_takes_any_batch(net: Supernet, monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    static = extract(net, SubnetConfig.full(net.space)).requires_grad_(False)
    monkeypatch.setitem(DEVICES, "cpu", replace(DEVICES["cpu"], working_set=1))
    with torch.no_grad():
        traced = torch.jit.trace(static, images[:1])
        torch.testing.assert_close(traced(images), static(images), rtol=0, atol=1e-5)


def test_a_device_that_is_not_listed_is_taken_for_a_gpu() -> None:
    assert device_costs("cpu") is DEVICES["cpu"]
    assert device_costs("mps") is device_costs("cuda") is DEVICES["cuda"]
