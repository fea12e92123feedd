"""Counted multiply-accumulates and parameters against PyTorch's counter and published figures."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from supernet import SearchSpace, SubnetConfig, Supernet, SupernetConfig, supernet_config


def count_flops(net: nn.Module, image: torch.Tensor) -> tuple[int, int]:
    """PyTorch's count for one image: everything, and the batched products of attention.

    Attention is unfused for it: before 2.15 the counter does not know the CPU's fused kernel and counts it as nothing.
    """
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        net(image)
    operators = counter.get_flop_counts()["Global"]
    return counter.get_total_flops(), sum(n for op, n in operators.items() if "bmm" in str(op))


def on_meta(config: SupernetConfig) -> Supernet:
    """A supernet without storage: enough to count."""
    with torch.device("meta"):
        return Supernet(config)


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


@pytest.mark.parametrize(("keep_rate", "giga"), [(1.0, 4.599), (0.9, 3.988), (0.7, 2.997), (0.5, 2.283)])
def test_deit_small_costs_what_deit_and_evit_publish(keep_rate: float, giga: float) -> None:
    space = SearchSpace((3, 3, 3, 3), embed_dims=(384,), mlp_ratios=(4,), num_heads=(6,))
    net = on_meta(SupernetConfig(space, lln=False))
    subnet = SubnetConfig(torch.full((1, 12), 384), torch.full((1, 12), 4.0), torch.full((1, 3), keep_rate))
    assert net.macs(subnet).item() == pytest.approx(giga * 1e9, rel=3e-3)
    assert net.params(subnet).item() == 22_050_664
