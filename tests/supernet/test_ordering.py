"""Permuting units: the full network stays, every permutation can be undone, the important come first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from small_nets import small_net
from torch import nn

from supernet import SubnetConfig, Supernet, SupernetConfig, reorder_by_importance, stems
from supernet.ordering import UnitScores, importance_order, reorder, unit_levels
from train.networks.importance import random_scores

KINDS = ("embed_dim", "heads", "hidden")


def images_for(net: Supernet) -> torch.Tensor:
    c = net.config
    return torch.randn(3, c.in_chans, c.img_size, c.img_size, generator=torch.Generator().manual_seed(5))


def only(kind: str, scores: UnitScores) -> UnitScores:
    return UnitScores(**{kind: getattr(scores, kind)})


@torch.inference_mode()
@pytest.mark.parametrize("kinds", [("embed_dim",), ("heads",), ("hidden",), KINDS], ids="+".join)
def test_the_full_network_stays_the_same_function(any_net: Supernet, kinds: tuple[str, ...]) -> None:
    scores = random_scores(any_net.config, seed=1)
    moved = reorder_by_importance(any_net, UnitScores(**{k: getattr(scores, k) for k in kinds}))
    images = images_for(any_net)
    expected = any_net(images)
    assert float((moved(images) - expected).abs().max()) <= 1e-5 * float(expected.abs().max().clamp_min(1))
    if kinds == ("heads",) and len(any_net.space.num_heads) == 1:
        return  # the smallest subnet has all heads, too
    small = SubnetConfig.min(any_net.space)
    assert not torch.allclose(moved(images, small), any_net(images, small), atol=1e-3)


@torch.inference_mode()
@pytest.mark.parametrize(
    "architecture",
    [
        {"pre_norm": True, "act": "quick_gelu"},
        {"global_pool": "avg", "class_token": False},
        {"global_pool": "avg", "fc_norm": True},
        {"num_classes": 0},
        {"token_mode": "merge", "decide_first_group": True},
        {"reg_tokens": 2, "distilled": True, "qk_norm": True, "scale_norm": True, "final_norm": False},
        {"global_pool": "map", "norm": "rms", "glu": True, "act": "silu", "patch_norm": True},
        {"stem": "timm/vit_tiny_r_s16_p8_224", "img_size": 96, "patch_size": 32},
    ],
    ids=str,
)
def test_whatever_the_architecture(architecture: dict[str, object]) -> None:
    net = small_net(**architecture)  # type: ignore[arg-type]
    order = importance_order(net.config, random_scores(net.config))
    images, moved = images_for(net), reorder(net, order)
    expected = net(images)
    if net.head is None:
        expected = expected[:, order.embed_dim]
    assert torch.allclose(moved(images), expected, atol=1e-5 * float(expected.abs().max()))


def test_a_permutation_undone_gives_the_same_bits(any_net: Supernet) -> None:
    order = importance_order(any_net.config, random_scores(any_net.config))
    back = reorder(reorder(any_net, order), order.inverse())
    for name, value in any_net.state_dict().items():
        assert torch.equal(back.state_dict()[name], value), name


@torch.inference_mode()
def test_with_levels_kept_every_subnet_stays_the_same_function(any_net: Supernet) -> None:
    scores = random_scores(any_net.config)
    moved = reorder_by_importance(any_net, scores, keep_levels=True)
    assert not torch.equal(moved.blocks[0].fc1.weight, any_net.blocks[0].fc1.weight)  # type: ignore[union-attr]
    subnet = SubnetConfig.random(any_net.space, 3, torch.Generator().manual_seed(0))
    images = images_for(any_net)
    expected = any_net(images, subnet)
    assert torch.allclose(moved(images, subnet), expected, atol=1e-5 * float(expected.abs().max().clamp_min(1)))


def test_the_important_come_first_and_of_equal_ones_the_earlier() -> None:
    config = small_net().config
    heads = torch.tensor([1.0, 3.0, 1.0]).expand(config.space.depth, 3)
    order = importance_order(config, UnitScores(heads=heads))
    assert order.heads[0].tolist() == [1, 0, 2]
    assert order.embed_dim.tolist() == list(range(config.embed_dim))
    kept = importance_order(config, UnitScores(heads=heads), keep_levels=True)
    assert kept.heads[0].tolist() == [0, 1, 2]  # one head belongs to the smallest width, the other two to the next
    scores = random_scores(config)
    for name in KINDS:
        values = getattr(importance_order(config, scores).applied(scores), name)
        assert bool((values.diff(dim=-1) <= 0).all()), name


def test_levels_are_the_sizes_that_subnets_can_have() -> None:
    levels = unit_levels(small_net().config)  # widths 8, 24, 32 with 1, 3, 3 heads and ratios 1, 2
    assert levels["embed_dim"].bincount().tolist() == [8, 16, 8]
    assert levels["heads"][0].tolist() == [0, 1, 1]
    assert levels["hidden"][0].bincount().tolist() == [8, 8, 8, 8, 16, 16]


@pytest.mark.parametrize(
    "bad", [torch.zeros(3), torch.full((32,), torch.nan), torch.full((32,), torch.inf)], ids=["shape", "nan", "inf"]
)
def test_scores_that_do_not_fit_are_refused(bad: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"scores of embed_dim .* expected finite numbers of the shape \(32,\)"):
        reorder_by_importance(small_net(), UnitScores(embed_dim=bad))


class _Projects(nn.Module):
    """A stem whose `proj` is its end, or is followed by what stands in `after`."""

    def __init__(
        self, config: SupernetConfig, groups: int = 1, after: Callable[[int], nn.Module] = nn.Identity
    ) -> None:
        super().__init__()
        self.first = nn.Conv2d(config.in_chans, 6, 1)
        self.proj = nn.Conv2d(6, config.embed_dim, config.patch_size, config.patch_size, groups=groups)
        self.after = after(config.embed_dim)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.after(self.proj(self.first(images)).flatten(2).transpose(1, 2))


class _Scaled(_Projects):
    """One whose channels are scaled before the last layer that has parameters."""

    def __init__(self, config: SupernetConfig) -> None:
        super().__init__(config)
        self.scale = nn.Parameter(torch.linspace(1, 2, config.embed_dim))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images) * self.scale


class _Placed(_Projects):
    """One that adds what no state_dict shows."""

    def __init__(self, config: SupernetConfig) -> None:
        super().__init__(config)
        positions = torch.linspace(0, 1, config.num_patches * config.embed_dim).view(-1, config.embed_dim)
        self.register_buffer("positions", positions, persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images) + self.get_buffer("positions")


class _Unit(nn.Module):
    """Every patch at length 1, so that no channel can be cut out without the others' noticing."""

    def __init__(self, channels: int) -> None:
        super().__init__()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.normalize(x, dim=-1)


@torch.inference_mode()
@pytest.mark.parametrize(
    ("make", "known"),
    [
        (_Projects, True),
        (partial(_Projects, after=nn.LayerNorm), False),
        (partial(_Projects, after=lambda channels: nn.Linear(channels, channels)), False),
        (partial(_Projects, groups=2), False),
        (_Scaled, False),
        (_Placed, False),
        (partial(_Projects, after=_Unit), False),
        (partial(_Projects, after=lambda channels: nn.GELU()), True),
    ],
    ids=["proj", "norm", "linear", "groups", "scale", "positions", "length", "gelu"],
)
def test_stems_of_users_are_moved_only_if_their_last_convolution_is_their_end(
    make: Callable[[SupernetConfig], nn.Module], known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stems.STEMS, "_things", {"theirs": make})
    net, images = Supernet(small_net(stem="theirs").config).eval(), torch.randn(2, 3, 24, 24)
    scores = random_scores(net.config)
    if known:
        assert torch.allclose(reorder_by_importance(net, scores)(images), net(images), atol=1e-4)
        return
    with pytest.raises(ValueError, match=r"patch_embed\.\S+ has channels that reorder does not know \(stem 'theirs'"):
        reorder_by_importance(net, scores)


def test_channels_that_nobody_knows_are_not_moved() -> None:
    net = small_net()
    net.blocks[1].reduce = torch.nn.Linear(32, 32)  # type: ignore[union-attr]
    try:
        scores = random_scores(net.config)
        with pytest.raises(ValueError, match=r"blocks\.1\.reduce\.weight has channels that reorder does not know"):
            reorder_by_importance(net, scores)
        reorder_by_importance(net, replace(scores, embed_dim=None))
    finally:
        net.blocks[1].reduce = None  # type: ignore[union-attr]
