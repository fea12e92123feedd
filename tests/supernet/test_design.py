"""DeepMAD's design: known values, brute force, budgets that are kept, and what cannot be designed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from supernet import (
    SearchSpace,
    SubnetConfig,
    Supernet,
    SupernetConfig,
    design,
    effectiveness,
    entropy,
    supernet_config,
)
from supernet.config import with_space
from supernet.token_graph import full_macs, least_macs, macs_of, token_graph


def small(architecture: dict[str, Any] | None = None, **space: Any) -> SupernetConfig:
    """Three decisions over one block each: 64 choices of sizes."""
    given = {"groups": (1, 1, 1, 1), "embed_dims": (16, 32), "mlp_ratios": (1, 3), "num_heads": (1, 2), **space}
    return SupernetConfig(
        SearchSpace(**given), img_size=32, patch_size=8, num_classes=10, head_dim=16, **architecture or {}
    )


SPACES = {
    "prune": small(),
    "merge": small(token_mode="merge"),
    "two rates": small(token_mode="prune_merge", groups=(1, 1, 1)),
    "tome": small(token_mode="tome", min_keep_rate=0.4),
    "first group decided": small(groups=(1, 1), decide_first_group=True),
    "gated, pooled by attention": small({"glu": True, "global_pool": "map"}, groups=(1, 1, 1)),
    "two blocks, one width of heads": small(groups=(2, 2, 2), num_heads=(2,), embed_dims=(24, 40)),
}


def of_deit(width: int) -> SupernetConfig:
    space = SearchSpace((3, 3, 3, 3), (width,), (4.0,), (width // 64,))
    return SupernetConfig(space)


def test_effectiveness_has_its_known_values() -> None:
    for width, rho in ((192, 0.177), (384, 0.088), (768, 0.044)):
        config = of_deit(width)
        found = effectiveness(config, SubnetConfig.full(config.space))
        # All groups are alike, so the deepest end of a group is the last.
        assert found.item() == pytest.approx(rho, abs=5e-4)
    prance = supernet_config("prance_vit_small")
    least = with_space(prance, embed_dims=(320,), mlp_ratios=(2.0,))
    most = with_space(prance, embed_dims=(416,), mlp_ratios=(5.0,))
    # Its 7 heads of 64 channels are wider than its blocks: proj reads 448 (were it as wide: .126 and .077).
    for config, value, narrow in ((least, 0.116, 0.126), (most, 0.076, 0.077)):
        rho = effectiveness(config, SubnetConfig.full(config.space)).item()
        assert rho == pytest.approx(value, abs=5e-4)
        assert rho * (448 / config.embed_dim) ** 0.25 == pytest.approx(narrow, abs=5e-4)


def test_entropy_is_what_comes_out_by_hand() -> None:
    config = small(groups=(1, 1), embed_dims=(16, 32), mlp_ratios=(1, 3))
    subnet = SubnetConfig(torch.tensor([[32, 16]]), torch.tensor([[3.0, 1.0]]), torch.tensor([[0.5]]))
    first = 3 * np.log(32) + np.log(96)
    second = first + 4 * np.log(16)
    expected = np.log(17 * 32) * first + 8 * np.log(9 * 16) * second
    assert entropy(config, subnet).item() == pytest.approx(expected)
    expected = 3 * np.log(17 * 32) * first + 0.5 * np.log(9 * 16) * second
    assert entropy(config, subnet, [3, 0.5]).item() == pytest.approx(expected)


@pytest.mark.parametrize("case", SPACES)
def test_the_solver_finds_what_brute_force_finds(case: str) -> None:
    config, levels = SPACES[case], 2
    least, full = least_macs(config, token_graph(config, levels)), full_macs(config)
    budgets = np.random.default_rng(0).uniform(least, full, 20 if case == "prune" else 3)
    for budget in (least, *budgets.tolist(), full):
        found = design(config, budget, levels=levels)
        expected = design(config, budget, levels=levels, solver="brute_force")
        assert entropy(config, found).item() == pytest.approx(entropy(config, expected).item(), rel=1e-6)
        assert Supernet(config).macs(found).item() <= budget
        found.to_actions(config.space)
    assert macs_of(config, design(config, least, levels=levels)).item() == least
    assert macs_of(config, design(config, full, levels=levels)).item() <= full


def test_a_larger_budget_never_lowers_the_entropy_and_is_kept() -> None:
    config = with_space(supernet_config("digits"), embed_dims=(32, 64), num_heads=(2, 4), mlp_ratios=(1, 2))
    net = Supernet(config)
    values = []
    for share in (0.4, 0.6, 0.8, 1.0):
        budget = share * net.macs().item()
        found = design(config, budget, levels=2)
        assert net.macs(found).item() <= budget
        values.append(entropy(config, found).item())
    assert values == sorted(values)
    full = SubnetConfig.full(config.space)
    assert values[-1] == pytest.approx(entropy(config, full).item(), rel=1e-9)


def test_a_bound_on_the_effectiveness_is_kept_where_it_is_active() -> None:
    config = SPACES["prune"]
    budget = 0.6 * full_macs(config)
    free = design(config, budget, levels=2)
    rho = effectiveness(config, free).item()
    unchanged = design(config, budget, levels=2, max_effectiveness=1.001 * rho)
    assert entropy(config, unchanged).item() == pytest.approx(entropy(config, free).item(), rel=1e-6)
    bounded = design(config, budget, levels=2, max_effectiveness=0.9 * rho)
    by_force = design(config, budget, levels=2, max_effectiveness=0.9 * rho, solver="brute_force")
    assert effectiveness(config, bounded).item() <= 0.9 * rho + 1e-6
    assert entropy(config, bounded).item() == pytest.approx(entropy(config, by_force).item(), rel=1e-6)
    assert entropy(config, bounded).item() < entropy(config, free).item()
    for solver in ("milp", "brute_force"):
        with pytest.raises(ValueError, match=r"max_effectiveness=0.1 cannot be reached.*The full network has"):
            design(config, budget, levels=2, max_effectiveness=0.1, solver=solver)  # type: ignore[arg-type]


def test_what_cannot_be_designed_is_refused_with_the_reason() -> None:
    config = SPACES["prune"]
    with pytest.raises(ValueError, match=r"mac_budget=0.5 is not enough: the smallest subnet takes [\d,]+ MACs"):
        design(config, 0.5)
    for arguments in ({"mac_budget": float("nan")}, {"mac_budget": -1.0}, {"levels": 0}, {"solver": "guess"}):
        with pytest.raises(ValueError, match="above 0"):
            design(config, **{"mac_budget": 1e9, **arguments})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"weights=\[1\] must be 4 numbers"):
        design(config, 1e9, weights=[1])
    with pytest.raises(ValueError, match="max_effectiveness=0"):
        design(config, 1e9, max_effectiveness=0)
    with pytest.raises(ValueError, match=r"would try [\d,]+ subnets, which takes about [\d,.]+ hours"):
        design(supernet_config("digits"), 1e9, solver="brute_force")
    with pytest.raises(ValueError, match="prance_embed_dim"):
        design(replace(config, prance_embed_dim=40), 1e9)
