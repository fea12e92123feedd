"""Counted multiply-accumulates and parameters against PyTorch's counter and published figures."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from helpers import count_flops

from supernet import SearchSpace, SubnetConfig, Supernet, SupernetConfig, supernet_config


def on_meta(config: SupernetConfig) -> Supernet:
    """A supernet without storage: enough to count."""
    with torch.device("meta"):
        return Supernet(config)


@pytest.mark.slow
def test_macs_and_params_equal_pytorchs_counts_on_the_extracted_network(
    any_net: Supernet, random_images: Callable[[Supernet, int], torch.Tensor]
) -> None:
    space, image = any_net.space, random_images(any_net, 1)
    parts = [SubnetConfig.random(space, 15, torch.Generator().manual_seed(3)), SubnetConfig.min(space)]
    subnet = SubnetConfig(*(torch.cat([vars(p)[f] for p in parts]) for f in ("embed_dim", "mlp_ratio", "keep_rate")))
    statics = [any_net.extract(subnet[i]) for i in range(len(subnet))]
    assert (2 * any_net.macs(subnet)).tolist() == [count_flops(static, image)[0] for static in statics]
    assert any_net.params(subnet).tolist() == [sum(p.numel() for p in static.parameters()) for static in statics]


def test_full_macs_equal_pytorchs_count_which_sees_inside_attention(
    any_net: Supernet, random_images: Callable[[Supernet, int], torch.Tensor]
) -> None:
    space, config = any_net.space, any_net.config
    total, inside_attention = count_flops(any_net.extract(SubnetConfig.full(space)), random_images(any_net, 1))
    assert inside_attention == 4 * space.depth * (config.num_patches + 1) ** 2 * space.max_heads * config.head_dim
    assert any_net.macs().tolist() == [total / 2]


@pytest.mark.parametrize("name", ["prance_vit_tiny", "prance_vit_small", "prance_vit_base"])
def test_every_larger_choice_costs_more_in_the_papers_spaces(name: str) -> None:
    net = on_meta(supernet_config(name))
    space, generator = net.space, torch.Generator().manual_seed(5)
    actions = torch.rand(32, space.num_decisions, space.action_size, generator=generator)
    subnet = SubnetConfig.from_actions(space, actions)
    macs, params = net.macs(subnet), net.params(subnet)
    assert (macs >= net.macs(SubnetConfig.min(space))).all()
    assert (macs <= net.macs()).all()
    for decision in range(space.num_decisions):
        for entry in range(space.action_size):
            larger = actions.clone()
            larger[:, decision, entry] += (1 - actions[:, decision, entry]) * torch.rand(32, generator=generator)
            raised = SubnetConfig.from_actions(space, larger)
            wider = (raised.embed_dim > subnet.embed_dim) | (raised.mlp_ratio > subnet.mlp_ratio)
            assert (net.macs(raised) >= macs).all()
            assert torch.equal(net.macs(raised) > macs, wider.any(1)) or entry == space.action_size - 1
            assert torch.equal(net.params(raised) > params, wider.any(1))


# ---- published figures ------------------------------------------------------------------------------------------
#
# What papers on token reduction count is N C 768 + C classes + sum over blocks of (4 N C^2 + 2 N^2 C), with the tokens
# before the reduction, and 8 N C^2, with those after it; N = 197 also for the patch embedding. Ours differs by:
#   - 768 C less, since the class token is not embedded from a patch: 196 patches, not 197;
#   + N C at every reduction by class attention: one more row of queries times keys;
#   + (merged tokens) * (possible targets) * (dimension compared) at every merge: the similarities.


def vit(mode: str, embed_dim: int, groups: tuple[int, ...] = (3, 3, 3, 3), first: bool = False) -> Supernet:
    """DeiT of that width as a supernet with one choice."""
    space = SearchSpace(groups, (embed_dim,), (4.0,), (embed_dim // 64,), token_mode=mode, decide_first_group=first)
    return on_meta(SupernetConfig(space, lln=False))


def with_rates(net: Supernet, rates: list[float] | list[list[float]]) -> SubnetConfig:
    """The full subnet with these keep rates."""
    return replace(SubnetConfig.full(net.space), keep_rate=torch.tensor([rates], dtype=torch.float64))


def giga(macs: int) -> float:
    """To three digits behind the point, as tables have it."""
    return round(macs / 1e9, 3)


@pytest.mark.parametrize(("embed_dim", "table"), [(192, 1.254), (384, 4.599), (768, 17.564)])
def test_deit_costs_what_is_published(embed_dim: int, table: float) -> None:
    net = vit("prune", embed_dim)
    assert giga(int(net.macs()) + 768 * embed_dim) == table
    assert net.params().item() == {192: 5_717_416, 384: 22_050_664, 768: 86_567_656}[embed_dim]


@pytest.mark.parametrize(("keep_rate", "table"), [(0.9, 3.988), (0.8, 3.445), (0.7, 2.997), (0.6, 2.609), (0.5, 2.283)])
def test_evit_costs_what_is_published(keep_rate: float, table: float) -> None:
    net, before = vit("prune", 384), [197]
    for _ in range(2):
        before.append(math.ceil(keep_rate * (before[-1] - 1)) + 1)
    class_rows = sum(before) * 384
    assert giga(int(net.macs(with_rates(net, [keep_rate] * 3))) - class_rows + 768 * 384) == table
    # The fused token is one more in every block after the first reduction, so the fused variant costs more.
    fused = vit("prune_fused", 384)
    assert fused.macs(with_rates(fused, [keep_rate] * 3)) > net.macs(with_rates(net, [keep_rate] * 3))


def test_tome_costs_what_is_published() -> None:
    net = vit("tome", 384, (1,) * 12, first=True)
    tokens = [197 - 13 * block for block in range(13)]
    subnet = with_rates(net, [(after - 1) / (before - 1) for before, after in pairwise(tokens)])
    # Even positions but the class token's, times odd positions, times the channels of a head.
    similarities = sum(((n + 1) // 2 - 1) * (n // 2) * 64 for n in tokens[:-1])
    assert giga(int(net.macs(subnet)) - similarities + 768 * 384) == 2.703


@pytest.mark.parametrize(
    ("embed_dim", "pruned_to", "merged_to", "table"),
    [
        (
            384,
            [196, 190, 168, 150, 139, 129, 117, 99, 78, 58, 3],
            [194, 176, 156, 141, 133, 121, 107, 88, 64, 56, 3],
            2.905,
        ),
        (
            768,
            [197, 197, 188, 170, 154, 139, 123, 107, 72, 43, 3],
            [197, 192, 178, 158, 145, 127, 111, 94, 50, 35, 3],
            11.517,
        ),
    ],
    ids=["DeiT-S 2.9", "DeiT-B 11.5"],
)
def test_diffrate_costs_what_is_published(
    embed_dim: int, pruned_to: list[int], merged_to: list[int], table: float
) -> None:
    """Tokens after every block's two stages, from block 1 on, as the authors of DiffRate publish them."""
    net = vit("prune_merge", embed_dim, (1,) * 12)
    rates, class_rows, similarities, before = [], 0, 0, 197
    for pruned, merged in zip(pruned_to, merged_to, strict=True):
        rates.append([(pruned - 1) / (before - 1), (merged - 1) / (pruned - 1)])
        class_rows += before * embed_dim * (merged < before)
        similarities += (pruned - merged) * (merged - 1) * embed_dim
        before = merged
    macs = int(net.macs(with_rates(net, rates)))
    assert giga(macs - class_rows - similarities + 768 * embed_dim) == table
