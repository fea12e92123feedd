"""Subnets, search spaces and the registry of supernets: decoding, validation, JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from supernet import (
    GroupChoice,
    SearchSpace,
    SubnetConfig,
    SupernetConfig,
    list_supernets,
    register_supernet,
    registry,
    supernet_config,
)

FIELDS = ("embed_dim", "mlp_ratio", "keep_rate")
SPACE = SearchSpace((1, 2, 2), (8, 16, 24), (1.1, 3.3), (1,), 0.25)
TWO_RATES = SearchSpace((1, 2, 2), (8, 16, 24), (1.1, 3.3), (1,), 0.25, token_mode="prune_merge")
ALL_DECIDED = SearchSpace((2, 2), (8, 16), (1.0, 2.0, 3.0), (1, 2), 0.0, token_mode="tome", decide_first_group=True)
SPACES = [
    SPACE,
    TWO_RATES,
    ALL_DECIDED,
    replace(TWO_RATES, groups=(2,), min_keep_rate=0, decide_first_group=True),
    *(supernet_config(name).space for name in ("digits", "prance_vit_tiny", "prance_vit_base")),
]


def undecided_blocks(space: SearchSpace) -> int:
    """Blocks before the first decision."""
    return 0 if space.decide_first_group else space.groups[0]


@st.composite
def spaces_and_two_actions(draw: st.DrawFn) -> tuple[SearchSpace, NDArray[np.float64], NDArray[np.float64]]:
    space = draw(st.sampled_from(SPACES))
    shape = (draw(st.integers(1, 4)), space.num_decisions, space.action_size)
    unit = arrays(np.float64, shape, elements=st.floats(0, 1) | st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]))
    return space, draw(unit), draw(unit)


def assert_equal(subnet: SubnetConfig, expected: SubnetConfig) -> None:
    for name in FIELDS:
        assert torch.equal(getattr(subnet, name), getattr(expected, name)), name


@given(spaces_and_two_actions())
def test_actions_decode_into_the_space_by_the_documented_formula(
    case: tuple[SearchSpace, NDArray[np.float64], NDArray[np.float64]],
) -> None:
    space, actions, _ = case
    subnet = SubnetConfig.from_actions(space, torch.from_numpy(actions))
    subnet.validate(space)
    n, first = space.blocks_per_decision, undecided_blocks(space)
    dims, ratios = np.array(space.embed_dims), np.array(space.mlp_ratios)
    batch = len(actions)
    chosen_dims = dims[np.round(actions[:, :, n : 2 * n] * (len(dims) - 1)).astype(int)].reshape(batch, -1)
    chosen_ratios = ratios[np.round(actions[:, :, :n] * (len(ratios) - 1)).astype(int)].reshape(batch, -1)
    assert (subnet.embed_dim[:, :first] == dims[-1]).all()
    assert (subnet.mlp_ratio[:, :first] == ratios[-1]).all()
    assert subnet.embed_dim[:, first:].tolist() == chosen_dims.tolist()
    assert subnet.mlp_ratio[:, first:].tolist() == chosen_ratios.tolist()
    rates = actions[:, :, 2 * n :] if space.token_mode == "prune_merge" else actions[:, :, 2 * n]
    keep = space.min_keep_rate + (1 - space.min_keep_rate) * rates
    np.testing.assert_allclose(subnet.keep_rate.numpy(), keep, rtol=0, atol=1e-8)
    assert (subnet.keep_rate >= space.min_keep_rate).all()
    assert (subnet.keep_rate > 0).all()


@given(spaces_and_two_actions())
def test_a_larger_action_never_chooses_less(
    case: tuple[SearchSpace, NDArray[np.float64], NDArray[np.float64]],
) -> None:
    space, a, b = case
    small = SubnetConfig.from_actions(space, torch.from_numpy(np.minimum(a, b)))
    large = SubnetConfig.from_actions(space, torch.from_numpy(np.maximum(a, b)))
    for name in FIELDS:
        assert (getattr(small, name) <= getattr(large, name)).all(), name


@pytest.mark.parametrize("space", SPACES)
def test_actions_of_a_subnet_decode_to_that_subnet(space: SearchSpace) -> None:
    subnet = SubnetConfig.random(space, 50)
    again = SubnetConfig.from_actions(space, subnet.to_actions(space))
    assert torch.equal(again.embed_dim, subnet.embed_dim)
    assert torch.equal(again.mlp_ratio, subnet.mlp_ratio)
    torch.testing.assert_close(again.keep_rate, subnet.keep_rate, rtol=0, atol=1e-12)
    assert again.keep_rate.shape == (50, space.num_decisions, *((2,) if space.token_mode == "prune_merge" else ()))


@pytest.mark.parametrize("space", SPACES)
def test_the_choices_of_the_groups_are_those_of_the_episode(space: SearchSpace) -> None:
    actions = torch.rand(6, space.num_decisions, space.action_size, generator=torch.Generator().manual_seed(1))
    subnet = SubnetConfig.from_actions(space, actions)
    decided = len(space.groups) - space.num_decisions
    for group in range(len(space.groups)):
        choice = subnet.group(space, group)
        choice.validate(space)
        expected = (
            GroupChoice.full(space, group, 6)
            if group < decided
            else GroupChoice.from_actions(space, actions[:, group - decided])
        )
        for name in FIELDS:
            assert torch.equal(getattr(choice, name), getattr(expected, name)), name


@pytest.mark.parametrize("choice", [{"embed_dim": 16}, {"mlp_ratio": 1.1}])
def test_a_first_group_that_no_action_can_give_is_a_subnet_but_has_no_actions(choice: dict[str, float]) -> None:
    subnet = SubnetConfig.full(SPACE)
    for name, value in choice.items():
        getattr(subnet, name)[0, 0] = value
    subnet.validate(SPACE)
    with pytest.raises(ValueError, match=rf"{next(iter(choice))}={next(iter(choice.values()))} .*first group"):
        subnet.to_actions(SPACE)
    decided = replace(SPACE, groups=(1, 1, 1, 1, 1), decide_first_group=True)
    everywhere = replace(subnet, keep_rate=torch.ones(1, 5))
    assert_equal(SubnetConfig.from_actions(decided, everywhere.to_actions(decided)), everywhere)


def test_a_keep_rate_below_the_smallest_action_has_no_action() -> None:
    subnet = replace(SubnetConfig.full(SPACE), keep_rate=torch.tensor([[0.2, 1.0]]))
    subnet.validate(SPACE)
    with pytest.raises(ValueError, match=r"keep_rate=0.2.*smallest is 0.25"):
        subnet.to_actions(SPACE)


@pytest.mark.parametrize("space", SPACES)
def test_full_min_and_random_subnets_span_the_space(space: SearchSpace) -> None:
    first = undecided_blocks(space)
    full, least = SubnetConfig.full(space, 2), SubnetConfig.min(space, 2)
    assert set(full.embed_dim.unique().tolist()) == {space.embed_dims[-1]}
    assert (full.keep_rate == 1).all()
    assert set(least.embed_dim[:, first:].unique().tolist()) == {space.embed_dims[0]}
    assert (least.keep_rate == max(space.min_keep_rate, 1e-9)).all()

    drawn = SubnetConfig.random(space, 400, torch.Generator().manual_seed(0))
    for subnet in (full, least, drawn):
        subnet.validate(space)
    assert_equal(SubnetConfig.random(space, 400, torch.Generator().manual_seed(0)), drawn)
    for block in range(first, space.depth):
        assert set(drawn.embed_dim[:, block].tolist()) == set(space.embed_dims)
        assert set(drawn.mlp_ratio[:, block].tolist()) == set(space.mlp_ratios)
    assert drawn.keep_rate.min() < space.min_keep_rate + 0.05
    assert drawn.keep_rate.max() > 0.95


@pytest.mark.parametrize("space", [SPACE, TWO_RATES, ALL_DECIDED])
def test_json_gives_back_exactly_the_same_subnets(space: SearchSpace) -> None:
    subnet = SubnetConfig.random(space, 5)
    again = SubnetConfig.from_json(subnet.to_json())
    again.validate(space)
    assert_equal(again, subnet)
    assert json.loads(subnet.to_json()).keys() == set(FIELDS)


def test_plain_lists_keep_their_precision() -> None:
    subnet = SubnetConfig([[24, 8, 16, 24, 24]], [[3.3, 1.1, 3.3, 1.1, 3.3]], [[0.7, 0.3]])  # type: ignore[arg-type]
    subnet.validate(SPACE)
    assert subnet.mlp_ratio.tolist() == [[3.3, 1.1, 3.3, 1.1, 3.3]]
    assert subnet.keep_rate.tolist() == [[0.7, 0.3]]


def test_subnets_are_indexed_iterated_and_expanded_by_image() -> None:
    subnet = SubnetConfig.random(SPACE, 3)
    images = list(subnet)  # type: ignore[call-overload]
    assert [one.to_json() for one in images] == [subnet[i].to_json() for i in (0, 1, 2)]
    assert_equal(subnet[-1], subnet[2:])
    assert_equal(subnet[[2, 0]], subnet[torch.tensor([2, 0])])
    assert_equal(subnet[1].expand(4), subnet[[1, 1, 1, 1]])
    assert subnet.expand(3) is subnet
    with pytest.raises(IndexError, match="3 of 3"):
        subnet[3]
    with pytest.raises(ValueError, match="batch of 5 images got 3 subnets; pass 1 or 5"):
        subnet.expand(5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"keep_rate": torch.tensor([[0.0, 1.0]])}, r"keep_rate holds \[0.0\].*\(0, 1\]"),
        ({"keep_rate": torch.tensor([[1.0, math.nan]])}, r"keep_rate holds \[nan\].*\(0, 1\]"),
        ({"keep_rate": torch.tensor([[1.5, 1.0]])}, r"keep_rate holds \[1.5\].*\(0, 1\]"),
        ({"keep_rate": torch.ones(2, 2)}, r"embed_dim \(1, 5\).*keep_rate \(2, 2\).*\(B, num_decisions\)"),
        ({"embed_dim": torch.full((1, 4), 24)}, r"embed_dim \(1, 4\), mlp_ratio \(1, 5\).*\(B, depth\)"),
        ({"embed_dim": torch.full((1, 5), 8.5)}, r"8.5.*whole numbers"),
        ({"embed_dim": torch.tensor([[24, 24, 20, 24, 24]])}, r"embed_dim=20 .*block 2 .*\[8, 16, 24\]"),
        ({"embed_dim": torch.tensor([[20, 24, 24, 24, 24]])}, r"embed_dim=20 .*block 0 .*\[8, 16, 24\]"),
        (
            {"mlp_ratio": torch.tensor([[3.3, 2, 1.1, 1.1, 1.1]], dtype=torch.float64)},
            r"mlp_ratio=2.0 .*\[1.1, 3.3\]",
        ),
        ({"mlp_ratio": torch.full((1, 5), math.nan)}, r"mlp_ratio=nan .*block 0 .*\[1.1, 3.3\]"),
        ({"keep_rate": torch.ones(1, 3)}, "5 blocks and 3 keep rates .*5 blocks and 2 decisions"),
        ({"keep_rate": torch.ones(1, 2, 2)}, r"keep_rate has the shape \(1, 2, 2\).*'prune' takes \(1, 2\)"),
        ({"keep_rate": torch.ones(1, 2, 1, 1)}, r"keep_rate \(1, 2, 1, 1\).*\(B, num_decisions, 2\)"),
    ],
)
def test_a_subnet_outside_the_space_is_refused(changes: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SubnetConfig.full(SPACE), **changes).validate(SPACE)


@pytest.mark.parametrize(
    ("keep_rate", "message"),
    [
        (torch.ones(1, 2), r"keep_rate has the shape \(1, 2\).*'prune_merge' takes \(1, 2, 2\)"),
        (torch.ones(1, 2, 3), r"keep_rate has the shape \(1, 2, 3\).*'prune_merge' takes \(1, 2, 2\)"),
        (torch.ones(1, 3, 2), "5 blocks and 3 keep rates .*5 blocks and 2 decisions"),
        (torch.tensor([[[1.0, 0.0], [1.0, 1.0]]]), r"keep_rate holds \[0.0\].*\(0, 1\]"),
    ],
)
def test_a_mode_with_two_rates_takes_two_per_decision(keep_rate: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SubnetConfig.full(TWO_RATES), keep_rate=keep_rate).validate(TWO_RATES)
    if keep_rate.shape[1] == 2 and (keep_rate > 0).all():
        choice = replace(GroupChoice.full(TWO_RATES, 1, 1), keep_rate=keep_rate[:, 0])
        with pytest.raises(ValueError, match=r"keep_rate has the shape .*'prune_merge' takes \(1, 2\)"):
            choice.validate(TWO_RATES)


@pytest.mark.parametrize("bad", [math.nan, -0.1, 1.1, math.inf])
def test_actions_outside_the_unit_interval_are_refused(bad: float) -> None:
    actions = torch.full((2, 2, 5), 0.5)
    actions[1, 1, 2] = bad
    with pytest.raises(ValueError, match=rf"{bad:.3g}.*\[0, 1\]"):
        SubnetConfig.from_actions(SPACE, actions)
    with pytest.raises(ValueError, match=rf"{bad:.3g}.*\[0, 1\]"):
        GroupChoice.from_actions(SPACE, actions[:, 1])


def test_actions_of_a_wrong_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(2, 3, 5\).*\(B, 2, 5\)"):
        SubnetConfig.from_actions(SPACE, torch.zeros(2, 3, 5))
    with pytest.raises(ValueError, match=r"\(2, 4\).*\(B, 5\)"):
        GroupChoice.from_actions(SPACE, torch.zeros(2, 4))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SearchSpace(embed_dims=(16, 8)), r"embed_dims=\(16, 8\).*ascending"),
        (lambda: SearchSpace(embed_dims=()), r"embed_dims=\(\).*non-empty"),
        (lambda: SearchSpace(mlp_ratios=(0.0, 1.0)), "mlp_ratios.0=0.* must be greater than 0"),
        (lambda: SearchSpace(mlp_ratios=(1.0, math.nan)), "mlp_ratios.1=nan must be a finite number"),
        (lambda: SearchSpace(groups=(3,)), r"groups=\(3,\).*at least 2 groups"),
        (lambda: SearchSpace(groups=(3, 2, 3)), r"groups=\(3, 2, 3\).*same number of blocks"),
        (lambda: SearchSpace(num_heads=(1, 2)), r"num_heads=\(1, 2\).*one per embed_dims"),
        (lambda: SearchSpace(num_heads=(4, 3, 2, 1)), r"num_heads=\(4, 3, 2, 1\).*must not decrease"),
        (lambda: SearchSpace(groups=(), decide_first_group=True), r"groups=\(\).*at least 1 groups"),
        (lambda: SearchSpace(groups=(2, 3, 3), decide_first_group=True), r"groups=\(2, 3, 3\).*same number of blocks"),
        (lambda: SearchSpace(min_keep_rate=-0.01), "min_keep_rate=-0.01 must be greater than or equal to 0"),
        (lambda: SearchSpace(min_keep_rate=1.01), "min_keep_rate=1.01 must be less than or equal to 1"),
        (lambda: SearchSpace(min_keep_rate=math.nan), "min_keep_rate=nan must be a finite number"),
        (lambda: SearchSpace(token_mode="melt"), r"token_mode='melt'.*'merge'.*'prune'.*'tome'"),
        (lambda: SupernetConfig(img_size=225), "img_size=225 .*multiple of patch_size=16"),
        (lambda: SupernetConfig(num_classes=-1), "num_classes=-1 must be greater than or equal to 0"),
        (lambda: SupernetConfig(act="relu"), r"act='relu'.*'gelu'.*'quick_gelu'"),
        (lambda: SupernetConfig(global_pool="max"), r"global_pool='max'.*\('token', 'avg', 'map'\)"),
        (lambda: SupernetConfig(class_token=False), r"global_pool='token'.*class_token=True.*global_pool='avg'"),
        (lambda: SupernetConfig(stem="unet"), r"stem='unet'.*\('patch', 'conv'\)"),
        (lambda: SupernetConfig(stem="conv", patch_size=14), "multiple of 4, not 14"),
        (lambda: SupernetConfig(SearchSpace(embed_dims=(2,)), stem="conv"), "embed_dim of 4 or more, not 2"),
        (
            lambda: SearchSpace(embed_dims=(8, 16), mlp_ratios=(0.12, 1)),
            "ratio 0.12 at width 8 would have no hidden unit",
        ),
        (lambda: SupernetConfig(stem="conv", patch_norm=True), "patch_norm=True goes with stem='patch'"),
        (lambda: SupernetConfig(norm="batch"), r"norm='batch'.*\('layer', 'rms'\)"),
        (lambda: SupernetConfig(reg_tokens=-1), "reg_tokens=-1 must be greater than or equal to 0"),
        (lambda: SupernetConfig(distilled=True), "distilled=True needs .*reg_tokens=1"),
        (lambda: SupernetConfig(reg_tokens=1, distilled=True, global_pool="avg"), "distilled=True needs .*'token'"),
        (lambda: SupernetConfig(global_pool="map", fc_norm=True), "fc_norm=True goes with global_pool='avg'"),
        (lambda: SupernetConfig(global_pool="map", head_dim=7), "embed_dim=240 .* multiple of head_dim=7"),
        (lambda: SupernetConfig(prance_embed_dim=256, reg_tokens=1), "prance_embed_dim .* neither registers"),
        (lambda: SupernetConfig(prance_embed_dim=256, qk_norm=True), "prance_embed_dim .* other norms"),
        (lambda: SupernetConfig(crop_pct=0), "crop_pct=0 must be greater than 0"),
        (lambda: SupernetConfig(crop_mode="top"), "crop_mode='top'.*'squash'"),
        (lambda: SupernetConfig(interpolation="cubic"), "interpolation='cubic'.*'bicubic'"),
        (lambda: SupernetConfig(in_chans=1), r"mean=.*self.in_chans=1"),
        (lambda: SupernetConfig.from_dict({"imgsize": 32}), r"\['imgsize'\].*'img_size'"),
        (lambda: SupernetConfig.from_dict({"space": {"dims": [8]}}), r"\['dims'\].*'embed_dims'"),
        (lambda: supernet_config("vit_huge"), r"'vit_huge'.*\['digits', 'prance_vit_base'.*register_supernet"),
        (lambda: register_supernet("digits", SupernetConfig), "'digits' is taken"),
    ],
)
def test_an_impossible_configuration_is_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


OTHER_CONFIG = SupernetConfig(
    ALL_DECIDED, act="quick_gelu", pre_norm=True, class_token=False, global_pool="avg", fc_norm=True, num_classes=0
)


ANOTHER_CONFIG = SupernetConfig(
    ALL_DECIDED,
    stem="timm/vit_small_r26_s32_224",
    norm="rms",
    glu=True,
    qk_norm=True,
    scale_norm=True,
    reg_tokens=4,
    distilled=True,
    final_norm=False,
    crop_pct=1.0,
    crop_mode="squash",
    interpolation="bilinear",
)


@pytest.mark.parametrize("original", [*map(supernet_config, list_supernets()), OTHER_CONFIG, ANOTHER_CONFIG])
def test_a_configuration_survives_json(original: SupernetConfig) -> None:
    assert SupernetConfig.from_dict(json.loads(json.dumps(original.to_dict()))) == original


def test_a_registered_configuration_is_found_and_may_be_registered_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry.SUPERNETS, "_things", dict(registry.SUPERNETS._things))
    for _ in range(2):
        register_supernet("mine", lambda: SupernetConfig(SPACE))
    assert "mine" in list_supernets()
    assert supernet_config("mine").space == SPACE


def test_a_configuration_is_registered_by_a_decorator_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry.SUPERNETS, "_things", dict(registry.SUPERNETS._things))

    @register_supernet("mine")
    def mine() -> SupernetConfig:
        return SupernetConfig(SPACE)

    assert mine() == supernet_config("mine") == SupernetConfig(SPACE)
    with pytest.raises(ValueError, match=r"'mine' is taken; registered are \['digits', 'mine'"):
        register_supernet("mine")(SupernetConfig)
    assert supernet_config("mine") == mine()
