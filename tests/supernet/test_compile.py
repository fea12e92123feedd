"""`torch.compile`: whole graphs of static networks, and supernets left as they are."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from device_asks import nothing_asked_of_the_device, nothing_copied_from_the_host
from helpers import random_net
from mode_nets import AUTHORS, OURS, assert_close, images_for, make_config, subnets_for
from small_nets import TWO_BLOCKS, cut_subnet, normalised, pixels, small_net
from torch._dynamo.testing import CompileCounter

from supernet import SubnetConfig, Supernet, extract


def net_of(mode: str, authors: bool) -> Supernet:
    return small_net(mode, groups=TWO_BLOCKS, **({"prance_embed_dim": 32} if authors else {}))


SEMANTIC = ["semantic", "semantic_avg", "semantic_max", "semantic_frozen"]
CASES = [(mode, False) for mode in OURS + SEMANTIC] + [(mode, True) for mode in AUTHORS]


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "authors"), CASES)
def test_a_static_network_is_one_graph_in_every_mode(mode: str, authors: bool) -> None:
    net = net_of(mode, authors)
    static, images = extract(net, cut_subnet(net)), normalised(net, pixels(net, 3))
    torch.compiler.reset()
    graph = torch.compile(static, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert_close(graph(images), static(images))


@pytest.mark.parametrize(("mode", "authors"), CASES)
@torch.no_grad()
def test_a_static_network_asks_and_copies_nothing(mode: str, authors: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    net = net_of(mode, authors)
    static, raw = extract(net, cut_subnet(net)), pixels(net, 3)
    expected = net(raw, cut_subnet(net))
    with nothing_asked_of_the_device(monkeypatch), nothing_copied_from_the_host(monkeypatch):
        logits = static(raw)
    assert_close(logits, expected)


ENDS: list[dict[str, Any]] = [
    {},
    {"global_pool": "avg"},
    {"global_pool": "avg", "fc_norm": True},
    {"global_pool": "avg", "class_token": False},
    {"global_pool": "map", "class_token": False},
    {"global_pool": "map", "reg_tokens": 2},
]


@pytest.mark.parametrize("ends", ENDS, ids=str)
@torch.no_grad()
def test_a_supernet_at_full_size_asks_and_copies_nothing(ends: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    net = small_net("prune_merge", **ends)
    images = normalised(net, pixels(net, 3))
    expected = net(images)
    with nothing_asked_of_the_device(monkeypatch), nothing_copied_from_the_host(monkeypatch):
        logits = net(images)
    assert torch.equal(logits, expected)
    assert_close(logits, extract(net, SubnetConfig.full(net.space))(images))


def test_a_supernet_is_left_as_it_is_and_says_what_to_compile() -> None:
    net = random_net(make_config("prune", "class-token", False)).requires_grad_(False)
    torch.compiler.reset()
    counter = CompileCounter()
    compiled = torch.compile(net, backend=counter)
    with pytest.warns(UserWarning, match=r"Compile what has fixed sizes instead: torch\.compile\(net\.extract\(subnet"):
        assert_close(compiled(images_for(net, 3)), net(images_for(net, 3)))
    for seed in range(3):
        images, subnet = images_for(net, 3 + seed), subnets_for(net, 3 + seed, seed)
        assert torch.equal(compiled(images, subnet), net(images, subnet))
    assert counter.frame_count == 0


def test_transforms_without_arrays_are_refused_whatever_ran_before_and_take_a_static_network() -> None:
    net = random_net(make_config("prune", "class-token", False)).requires_grad_(False)
    images, subnet = images_for(net, 3), subnets_for(net, 3)
    for chosen in (None, subnet[2]):
        for _ in range(2):
            for transform in (torch.func.grad, torch.func.jacrev):
                with pytest.raises(RuntimeError, match=r"cannot follow a supernet.* net\.extract\(subnet\)"):
                    transform(lambda x, s=chosen: net(x, s).sum())(images)
            net(images, chosen)
    followed = images.clone().requires_grad_()
    net(followed, subnet[2]).sum().backward()
    static = net.extract(subnet[2])
    assert_close(torch.func.grad(lambda x: static(x).sum())(images), followed.grad)


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("size", ["sized", "full", "static"])
def test_vmap_goes_through_all_of_them(mode: Callable[[], Any], size: str) -> None:
    for architecture in ({}, {"glu": True}):  # whose images are computed in one piece, and by segments
        net = small_net("merge", **architecture)
        subnet, images = cut_subnet(net), normalised(net, pixels(net, 3))
        run = {"sized": partial(net, subnet=subnet), "full": net, "static": net.extract(subnet)}[size]
        with mode():
            assert_close(torch.func.vmap(lambda x, run=run: run(x[None])[0])(images), run(images))
