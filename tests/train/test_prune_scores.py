"""What global pruning makes of scores: comparable ones, a moving average, and a share of all that there is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from small_nets import pixels, small_net
from torch import Tensor

from supernet import StaticViT, Supernet
from supernet.block_sizes import BlockSizes
from supernet.cutting import Units
from train.networks.importance import full_network
from train.networks.saliency import each, saliency
from train.search import global_prune as module
from train.search.global_prune import PruneOptions, global_prune
from train.search.size_costs import macs_cost

BUNDLES = {"embed_dim": 8, "heads": 1, "qk": 4, "v": 2, "hidden": 16}


def batches(net: Supernet) -> list[tuple[Tensor, Tensor]]:
    return [(pixels(net, 4 + i), torch.arange(4 + i)) for i in range(2)]


def with_hidden(static: StaticViT, hidden: int) -> list[BlockSizes]:
    """Sizes of a network whose first block has so many hidden units."""
    first, *others = static.block_sizes
    return [replace(first, hidden_dim=hidden), *others]


def test_scores_are_a_moving_average_that_follows_its_units(monkeypatch: pytest.MonkeyPatch) -> None:
    net = small_net("prune")
    static, cost = full_network(net), macs_cost(net.config)
    steps = iter([[0.0, 5, 1, 5], [0.0, 9, 9]])  # of the bundles of the first block that are left

    def scored(network: Any, *args: Any, **named: Any) -> Units:
        found = each(torch.ones_like, saliency(network, batches(net)))
        own = torch.tensor(next(steps)).repeat_interleave(16)
        return found | {"hidden": (own, *(torch.full((64,), 10.0),) * 2)}

    monkeypatch.setattr(module, "saliency", scored)
    options = PruneOptions(latency_weight=0, bundles={"hidden": 16}, per_step=1, momentum=0.9)
    found = global_prune(static, [], cost, [cost(with_hidden(static, 32))], options)[0].network
    name, kept = "blocks.0.fc1.weight", torch.cat([torch.arange(16, 32), torch.arange(48, 64)])
    assert torch.equal(found.get_parameter(name), static.get_parameter(name)[kept])


def test_the_latency_weight_means_the_same_however_large_the_loss_is(monkeypatch: pytest.MonkeyPatch) -> None:
    net = small_net("merge", groups=(1, 1))
    static, cost, found = full_network(net), macs_cost(net.config), []
    for factor in (1e-6, 1e6):
        monkeypatch.setattr(module, "saliency", lambda *a, **k: each(lambda x: factor * x, saliency(*a, **k)))  # noqa: B023
        options = PruneOptions(latency_weight=0.05, bundles=BUNDLES)
        found.append(global_prune(static, batches(net), cost, [0.7 * cost(static.block_sizes)], options)[0])
    assert found[0].network.block_sizes == found[1].network.block_sizes


def test_sums_over_more_weights_are_divided_before_they_are_squared() -> None:
    units: Units = {kind: (torch.ones(2),) * 4 for kind in ("heads", "qk", "v", "hidden", "tokens")}
    found = module._comparable(units | {"embed_dim": (torch.ones(2),)})
    expected = {"heads": 1 / 144, "qk": 1 / 4, "v": 1 / 4, "hidden": 1.0, "tokens": 1.0, "embed_dim": 1 / 16}
    assert {kind: float(parts[0][0]) for kind, parts in found.items()} == pytest.approx(expected)


@pytest.mark.parametrize(("per_step", "steps"), [(1, 3), (2, 2), (3, 1)])
def test_units_are_scored_anew_with_other_signs_after_so_many_bundles(
    per_step: int, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, seeds = small_net("prune"), list[int]()
    static, cost = full_network(net), macs_cost(net.config)

    def scored(*args: Any, seed: int) -> Units:
        seeds.append(seed)
        return saliency(*args, seed=seed)

    monkeypatch.setattr(module, "saliency", scored)
    options = PruneOptions("hutchinson", bundles={"hidden": 16}, per_step=per_step, seed=7)
    # All bundles of hidden units cost the same: three of them go.
    found = global_prune(static, batches(net), cost, [cost(with_hidden(static, 16))], options)[0]
    assert found.steps == steps
    assert seeds == [*range(7, 7 + steps)]
