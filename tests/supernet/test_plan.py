"""The plan of a group: what everything that runs or counts it reads."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from helpers import random_net

from supernet import SearchSpace, SubnetConfig, Supernet, SupernetConfig
from supernet.plan import plan_group, plan_subnet

SPACE = SearchSpace((1, 2, 2), (8, 16, 24), (1.1, 2.0), (1, 2, 3), 0.1, "prune_merge")
CONFIG = SupernetConfig(SPACE, 24, 4, 3, 5, head_dim=8)
SUBNET = SubnetConfig(
    torch.tensor([[24, 8, 16, 16, 8], [24, 24, 24, 24, 24]]),
    torch.tensor([[2, 1.1, 2, 2, 1.1], [2, 2, 2, 2, 2]]),
    torch.tensor([[[0.5, 0.5], [1, 1]], [[1, 1], [1, 1]]]),
)


def test_our_rules_worked_out_by_hand() -> None:
    first, second, third = plan_subnet(CONFIG, SUBNET)
    assert (first.counts, first.carries, first.num_left.tolist()) == (None, True, [37, 37])
    assert second.reads.tolist() == second.widths.tolist() == [[8, 16], [24, 24]]
    assert second.gives.tolist() == [[8, 24], [24, 24]]  # a boundary hands on the full width
    assert second.num_heads.tolist() == [[1, 2], [3, 3]]
    assert second.hidden.tolist() == [[8, 32], [48, 48]]  # int(8 * 1.1) = 8
    assert second.counts is not None
    assert second.counts.tolist() == [[19, 10], [37, 37]]
    assert second.reduces.tolist() == [True, False]
    assert second.attended.tolist() == [[37, 10], [37, 37]]
    assert third.num_tokens.tolist() == third.num_left.tolist() == [10, 37]
    assert third.gives.tolist() == [[16, 8], [24, 24]]
    assert (third.counts, third.carries) == (None, False)


def test_the_authors_rules_worked_out_by_hand() -> None:
    config = replace(CONFIG, prance_embed_dim=32, space=replace(SPACE, num_heads=(2,)))
    first, second, third = plan_subnet(config, SUBNET)
    assert first.gives.tolist() == [[8], [24]]  # the next block's width, which is decided already
    assert second.gives.tolist() == [[16, 16], [24, 24]]
    assert third.counts is not None  # their tokens are sorted even if all stay
    assert third.reduces.all()
    handed, full = np.array([24, 24]), SUBNET.group(SPACE, 1)
    alone = plan_group(config, 1, full, np.array([37, 37]), token_dim=handed)
    assert alone.reads.tolist() == [[24, 16], [24, 24]]  # a group's first block reads what it was handed
    assert alone.gives.tolist() == [[16, 24], [24, 24]]  # full while the next is not decided


@pytest.mark.parametrize("mode", ["prune", "prune_merge", "tome"])
def test_a_batchs_plan_is_that_of_its_images_and_the_static_network_has_its_sizes(mode: str) -> None:
    net: Supernet = random_net(replace(CONFIG, space=replace(SPACE, token_mode=mode)))
    subnet = SubnetConfig.random(net.space, 6, torch.Generator().manual_seed(0))
    plans = plan_subnet(net.config, subnet)
    for image in range(6):
        alone = plan_subnet(net.config, subnet[image])
        for whole, one in zip(plans, alone, strict=True):
            assert (whole.queries, whole.values) == (None, None)  # sizes of a static network's own
            others = ("group", "carries", "counts", "thresholds", "queries", "values")
            for name in (f.name for f in fields(one) if f.name not in others):
                assert getattr(whole, name)[[image]].tolist() == getattr(one, name).tolist(), name
        static = net.extract(subnet[image])
        sizes = static.sizes()
        assert [s["tokens"] for s in sizes] == [n for plan in alone for n in plan.attended[0]]
        assert [s["embed_dim"] for s in sizes] == subnet.embed_dim[image].tolist()
        assert [s["counts"] is not None for s in sizes] == [
            j == 0 and bool(plan.reduces[0]) for plan in alone for j in range(plan.widths.shape[1])
        ]


def test_every_array_of_a_plan_has_the_documented_shape_and_kind() -> None:
    for plan in plan_subnet(CONFIG, SUBNET):
        blocks = SPACE.groups[plan.group]
        for name in ("reads", "widths", "num_heads", "hidden", "gives", "attended"):
            assert (getattr(plan, name).shape, getattr(plan, name).dtype) == ((2, blocks), np.int64), name
        for name in ("num_tokens", "num_left"):
            assert (getattr(plan, name).shape, getattr(plan, name).dtype) == ((2,), np.int64), name
        assert (plan.reduces.shape, plan.reduces.dtype) == ((2,), np.bool_)
        assert plan.counts is None or (plan.counts.shape, plan.counts.dtype) == ((2, 2), np.int64)
