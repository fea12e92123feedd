"""Global pruning: bundles, targets, costs, the nearest subnet, and what cannot be done."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_nets import cut_subnet, pixels, small_net
from torch import Tensor

from prance_env.rewards.latency import LatencyTable
from supernet import SubnetConfig, Supernet
from supernet.block_sizes import block_sizes
from supernet.cutting import all_units, cut_units
from supernet.nearest import nearest_subnet
from train.networks.importance import full_network
from train.networks.saliency import each
from train.search import global_prune as module
from train.search.global_prune import PruneOptions, _bundles, _rising, global_prune, usual_bundles
from train.search.prune import subnet_within
from train.search.size_costs import macs_cost, milliseconds_cost

BUNDLES = {"embed_dim": 8, "heads": 1, "qk": 4, "v": 2, "hidden": 16}


def batches(net: Supernet) -> list[tuple[Tensor, Tensor]]:
    return [(pixels(net, 4 + i), torch.arange(4 + i)) for i in range(2)]


@pytest.mark.parametrize("kind", ["taylor", "hutchinson"])
def test_sizes_are_multiples_of_bundles_and_targets_are_reached_in_order(kind: str) -> None:
    net = small_net("merge", groups=(1, 1))
    static = full_network(net)
    cost = macs_cost(net.config)
    full = cost(static.block_sizes)
    options = PruneOptions(saliency=kind, bundles=BUNDLES)  # type: ignore[arg-type]
    found = global_prune(static, batches(net), cost, [0.4 * full, 0.7 * full], options)
    for pruned, share in zip(found, (0.7, 0.4), strict=True):
        assert pruned.cost == pruned.network.macs() <= share * full
        for sizes in pruned.network.block_sizes:
            whole = {"embed_dim": sizes.embed_dim, "hidden": sizes.hidden_dim, "v": sizes.v_dim, "qk": sizes.qk_dim}
            assert all(size > 0 and size % BUNDLES[name] == 0 for name, size in whole.items())
            assert sizes.reads == sizes.embed_dim == sizes.gives
        assert torch.isfinite(pruned.network(pixels(net, 2))).all()
    assert found[0].steps < found[1].steps
    assert static.macs() == full, "the network itself stays"
    again = global_prune(static, batches(net), cost, [0.4 * full], options)[0]
    assert again.network.block_sizes == found[1].network.block_sizes
    assert torch.equal(again.network(pixels(net, 2)), found[1].network(pixels(net, 2)))


def test_cost_alone_takes_what_is_dear_and_saliency_alone_what_is_idle() -> None:
    net = small_net("prune")
    static = full_network(net)
    with torch.no_grad():
        static.get_parameter("blocks.1.fc2.weight")[:, 16:32] = 0
    cost = macs_cost(net.config)
    target = [cost(static.block_sizes) - 1]
    idle = global_prune(static, batches(net), cost, target, PruneOptions(latency_weight=0, bundles={"hidden": 16}))[0]
    assert [s.hidden_dim for s in idle.network.block_sizes] == [64, 48, 64]
    assert torch.allclose(idle.network(pixels(net, 3)), static(pixels(net, 3)), atol=1e-4)
    dear = global_prune(static, batches(net), cost, target, PruneOptions(latency_weight=1e9, bundles=BUNDLES))[0]
    assert [s.embed_dim for s in dear.network.block_sizes] == [24] * 3


def test_tokens_leave_from_the_last_rank_on_and_never_come_back() -> None:
    net = small_net("prune")
    static = full_network(net)
    cost = macs_cost(net.config)
    full = cost(static.block_sizes)
    found = global_prune(static, batches(net), cost, [0.7 * full], PruneOptions(bundles={"tokens": 4}))[0]
    left = [s.left for s in found.network.block_sizes]
    assert left == sorted(left, reverse=True)
    assert left[0] == 37 > left[-1]
    assert all((n - 1) % 4 == 0 for n in left)
    assert found.network.macs() <= 0.7 * full
    merging = full_network(small_net("merge"))
    with pytest.raises(ValueError, match="by token_mode='prune', not by 'merge'"):
        global_prune(merging, batches(net), cost, [1.0], PruneOptions(bundles={"tokens": 1}))


@pytest.mark.parametrize(
    ("scores", "rising"),
    [
        ([], []),
        ([1.0, 2.0, 2.0, 5.0], [1.0, 2.0, 2.0, 5.0]),
        ([5.0, 1.0, 3.0, 9.0], [3.0, 3.0, 3.0, 9.0]),
        ([-1.0, -2.0, -6.0], [-3.0, -3.0, -3.0]),
        ([2.0, 3.0, 1.0, 4.0, 2.0], [2.0, 2.0, 2.0, 3.0, 3.0]),
    ],
)
def test_no_bundle_counts_less_than_one_that_leaves_before_it(scores: list[float], rising: list[float]) -> None:
    assert _rising(scores) == rising


def test_bundles_of_a_layer_leave_in_order_whatever_they_are_worth() -> None:
    net = small_net("prune")
    static, cost = full_network(net), macs_cost(net.config)
    options = PruneOptions(bundles={"tokens": 8, "hidden": 24}, latency_weight=1.0)
    # Inner ranks are worth less than the last ones; hidden units all alike, and less than they cost.
    scores = {
        "tokens": (torch.zeros(0), torch.arange(37.0), torch.arange(37.0)),
        "hidden": tuple(torch.full((64,), 1e-3) for _ in range(3)),
    }
    ready = cut_units(static, all_units(static) | {"tokens": (torch.arange(0), torch.arange(37), torch.arange(37))})
    found = sorted(_bundles(ready, scores, cost, cost(static.block_sizes), options), key=lambda b: b.score)
    for kind, layer in (("tokens", 1), ("tokens", 2), ("hidden", 0), ("hidden", 1), ("hidden", 2)):
        leaving = [b.units for b in found if (b.kind, b.layer) == (kind, layer)]
        order = [*range(36, 8, -1)] if kind == "tokens" else [*range(16 + 24)]
        assert torch.cat(leaving).tolist() == order
        assert [len(units) for units in leaving] == ([4, 8, 8, 8] if kind == "tokens" else [16, 24])
    assert next(b.score for b in found if b.kind == "hidden") < 0


def test_what_cannot_be_reached_or_makes_no_sense_is_refused() -> None:
    net = small_net("prune")
    static, cost = full_network(net), macs_cost(net.config)
    full = cost(static.block_sizes)
    with pytest.raises(ValueError, match=r"cannot be reached: with one bundle .* still costs [\d,.e+]+ of"):
        global_prune(static, batches(net), cost, [0.1 * full], PruneOptions(bundles={"hidden": 32}))
    with pytest.raises(ValueError, match="no images"):
        global_prune(static, [], cost, [0.5 * full])
    for changes in ({"bundles": {"depth": 1}}, {"bundles": {}}, {"per_step": 0}, {"momentum": 1.0}):
        with pytest.raises(ValueError, match=r"bundles|per_step|momentum"):
            PruneOptions(**changes)  # type: ignore[arg-type]
    assert usual_bundles(static) == {"embed_dim": 8, "heads": 1, "qk": 2, "v": 2, "hidden": 16, "tokens": 2}


# ---- costs ----------------------------------------------------------------------------------------------------------


def table_of(net: Supernet) -> LatencyTable:
    """A monotone table of made-up times."""
    space, c = net.space, net.config
    tokens = [2, 17, c.num_tokens]
    dims, ratios = np.array(space.embed_dims), np.array(space.mlp_ratios)
    times = 0.1 + np.array(tokens) * (dims[:, None, None] * (3 + ratios[:, None])) / 1000
    groups = np.stack([times, 2 * times]).tolist()
    return LatencyTable(
        "cpu", "2", 1, 8, [*space.groups], [*space.embed_dims], [*space.mlp_ratios], tokens, 9.0, 0.25, groups
    )


def test_the_table_is_exact_on_its_grid_and_monotone_between() -> None:
    net = small_net("prune")
    table = table_of(net)
    cost = milliseconds_cost(net.config, table)
    full = block_sizes(net.config, SubnetConfig.full(net.space))
    assert cost(full) == pytest.approx(table.full_ms(net.space))
    generator = torch.Generator().manual_seed(1)
    for subnet in (SubnetConfig.random(net.space, 1, generator) for _ in range(5)):
        sizes, spent = block_sizes(net.config, subnet), table.begin_ms(net.space) + table.head_ms
        for group in (1, 2):
            choice = subnet.group(net.space, group)
            tokens = [np.array([n]) for n in (sizes[group].tokens, sizes[group].left)]
            spent += table.group(group, choice.embed_dim.numpy(), choice.mlp_ratio.numpy(), *tokens)[0]
        assert cost(sizes) == pytest.approx(spent)
    between = [cost([*full[:2], replace(full[2], hidden_dim=h)]) for h in range(1, 65)]
    assert np.all(np.diff(between) > 0)
    assert cost([*full[:2], replace(full[2], num_heads=1)]) < cost(full)
    assert cost([*full[:2], replace(full[2], v_dim=1)]) < cost(full)
    with pytest.raises(ValueError, match="latency table is for groups"):
        milliseconds_cost(small_net("prune", groups=(1, 1)).config, table)


def test_milliseconds_are_a_target() -> None:
    net = small_net("prune")
    cost = milliseconds_cost(net.config, table_of(net))
    static = full_network(net)
    pruned = global_prune(static, batches(net), cost, [0.8 * cost(static.block_sizes)], PruneOptions(bundles=BUNDLES))[
        0
    ]
    assert cost(pruned.network.block_sizes) <= 0.8 * cost(static.block_sizes)


# ---- the nearest subnet ---------------------------------------------------------------------------------------------


def test_the_nearest_subnet_of_a_subnet_is_itself_and_keeps_to_its_budget() -> None:
    net = small_net("prune", groups=(1, 1))
    for subnet in (cut_subnet(net), SubnetConfig.full(net.space)):
        sizes = block_sizes(net.config, subnet)
        macs = int(net.macs(subnet))
        found = nearest_subnet(net.config, sizes, macs, levels=36)
        assert block_sizes(net.config, found) == sizes
    # The last is the full network.
    smaller = nearest_subnet(net.config, sizes, 0.8 * macs)
    assert int(net.macs(smaller)) <= 0.8 * macs
    with pytest.raises(ValueError, match=r"mac_budget=10 is not enough: the smallest subnet takes"):
        nearest_subnet(net.config, sizes, 10)
    with pytest.raises(ValueError, match="1 blocks cannot be compared with the 2"):
        nearest_subnet(net.config, sizes[:1], macs)


def test_by_the_authors_rules_there_is_no_nearest_subnet() -> None:
    net = small_net(prance_embed_dim=40)
    static = net.extract(SubnetConfig.full(net.space))
    with pytest.raises(ValueError, match=r"adds up the MACs of groups, .*\(prance_embed_dim\) depend on the next"):
        nearest_subnet(net.config, static.block_sizes, static.macs())
    assert subnet_within(net, static, macs_cost(net.config), static.macs()) is None


def test_the_nearest_subnet_is_the_nearest_of_all() -> None:
    net = small_net("prune", groups=(1, 1))
    wanted = replace(block_sizes(net.config, SubnetConfig.full(net.space))[1], embed_dim=26, hidden_dim=40, num_heads=2)
    sizes = [block_sizes(net.config, SubnetConfig.full(net.space))[0], replace(wanted, counts=(12,))]
    budget = 0.9 * int(net.macs())

    def distance(subnet: SubnetConfig) -> float:
        own = block_sizes(net.config, subnet)[1]
        pairs = (own.embed_dim, 26), (own.hidden_dim, 40), (own.num_heads * 8, 16), (own.left, 12)
        return sum(abs(float(np.log(a / b))) for a, b in pairs)

    grid = [
        SubnetConfig(torch.tensor([[32, d]]), torch.tensor([[2.0, r]]), torch.tensor([[k / 36]], dtype=torch.float64))
        for d in (8, 24, 32)
        for r in (1.0, 2.0)
        for k in range(1, 37)
    ]
    best = min(distance(subnet) for subnet in grid if int(net.macs(subnet)) <= budget)
    assert distance(nearest_subnet(net.config, sizes, budget, levels=36)) == pytest.approx(best, abs=1e-3)


def test_figures_are_drawn(tmp_path: Path) -> None:
    from train.report.pruning import plot_pruning

    net = small_net("prune")
    whole, cut = (block_sizes(net.config, s) for s in (SubnetConfig.full(net.space), cut_subnet(net)))
    plot_pruning(whole, {"0.5": cut, "0.3": cut}, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 5000


class Elsewhere(Tensor):
    """A tensor that may not meet numbers on the CPU, as one on a GPU."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.cpu:
            return args[0].as_subclass(Tensor)
        if func is torch.isin:
            raise RuntimeError("Expected all tensors to be on the same device")
        return super().__torch_function__(func, types, args, kwargs or {})


def test_scores_may_be_on_another_device(monkeypatch: pytest.MonkeyPatch) -> None:
    net = small_net("merge", groups=(1, 1))
    static, cost, options = full_network(net), macs_cost(net.config), PruneOptions(bundles=BUNDLES)
    target = [0.8 * cost(static.block_sizes)]
    expected = global_prune(static, batches(net), cost, target, options)[0].network
    score = module.saliency
    there = lambda *args, **named: each(lambda x: x.as_subclass(Elsewhere), score(*args, **named))  # noqa: E731
    monkeypatch.setattr(module, "saliency", there)
    found = global_prune(static, batches(net), cost, target, options)[0].network
    assert found.block_sizes == expected.block_sizes
