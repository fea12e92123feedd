"""Units are taken out of static networks as if their weights were zero, and norms know of no others."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import count_flops
from small_nets import cut_subnet, normalised, pixels, small_net

from supernet import StaticViT, load_static, save_static
from supernet.cutting import Units, all_units, cut_units
from supernet.static_vit import StaticBlock

KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "conv stem, mean of patches": {"stem": "conv", "pre_norm": True, "class_token": False, "global_pool": "avg"},
    "gated, registers, pooled by attention": {"glu": True, "reg_tokens": 2, "global_pool": "map"},
    "inner norms, merging": {"scale_norm": True, "norm": "rms", "token_mode": "merge"},
}


def static_of(**kind: Any) -> StaticViT:
    net = small_net(**kind)
    return net.extract(cut_subnet(net))


def without(static: StaticViT, **out: list[int]) -> Units:
    """All units but some, in every block."""
    left = all_units(static)
    for kind, numbers in out.items():
        left[kind] = tuple(units[~torch.isin(units, torch.tensor(numbers))] for units in left[kind])
    return left


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_taken_out_is_the_same_network_and_what_is_cut_can_be_kept(kind: str, tmp_path: Any) -> None:
    static = static_of(**KINDS[kind])
    images = pixels(static, 3)
    with torch.no_grad():
        assert torch.equal(cut_units(static, all_units(static))(images), static(images))
        small = cut_units(static, without(static, embed_dim=[0, 5, 6], heads=[], v=[0], hidden=[1, 2], qk=[]))
        logits = small(images)
    assert small.params() < static.params()
    assert [s.embed_dim for s in small.block_sizes] == [
        s.embed_dim - (3 if s.embed_dim > 6 else 1) for s in static.block_sizes
    ]
    assert 2 * small.macs() == count_flops(small, normalised(static, images[:1]))[0]
    save_static(small, tmp_path)
    with torch.no_grad():
        assert torch.equal(load_static(tmp_path)(images), logits)


@pytest.mark.parametrize("kind", ["heads", "qk", "v", "hidden"])
@torch.no_grad()
def test_a_unit_without_weights_can_be_taken_out(kind: str) -> None:
    static = static_of(token_mode="prune")
    images = pixels(static, 4)
    for block in static.blocks:
        assert isinstance(block, StaticBlock)
        rows = block.qkv.weight.view(block.sizes.num_heads, 24, -1), block.qkv.bias.view(-1, 24)
        if kind == "hidden":
            block.fc2.weight[:, 3] = 0
        elif kind == "heads":
            block.proj.weight[:, :8] = 0
        elif kind == "v":
            block.proj.weight[:, 3::8] = 0
        else:
            for part in rows:
                part[:, 3] = 0
    out = 0 if kind == "heads" else 3
    if kind == "heads":
        # The token mode reads the attention of all heads, so that a head is missed where tokens leave.
        static = cut_units(static, all_units(static) | {"tokens": (torch.arange(0),) * 3})
        for block in static.blocks:
            block.proj.weight[:, :8] = 0  # type: ignore[union-attr, index, operator]
    small = cut_units(static, without(static, **{kind: [out]}) if kind != "heads" else _fewer_heads(static))
    assert torch.allclose(small(images), static(images), atol=1e-4)
    assert small.macs() < static.macs()


def _fewer_heads(static: StaticViT) -> Units:
    left = all_units(static)
    return left | {"heads": tuple(units[1:] if len(units) > 1 else units for units in left["heads"])}


@torch.no_grad()
def test_channels_that_are_taken_out_are_the_first_to_go_and_norms_do_not_count_them() -> None:
    static = static_of(token_mode="prune")
    images = pixels(static, 4)
    widest = max(s.embed_dim for s in static.block_sizes)
    small = cut_units(static, without(static, embed_dim=[widest - 1, widest - 2]))
    block, cut = static.blocks[0], small.blocks[0]
    assert isinstance(block, StaticBlock)
    assert isinstance(cut, StaticBlock)
    x = static.tokens_of(static.normalised(images))[..., : cut.sizes.reads]
    normed = torch.nn.functional.layer_norm(
        x, (x.shape[-1],), block.norm1.weight[: x.shape[-1]], block.norm1.bias[: x.shape[-1]], 1e-6
    )  # type: ignore[arg-type]
    assert torch.allclose(cut.norm1(small.tokens_of(small.normalised(images))[..., : cut.sizes.reads]), normed)


def test_fewer_tokens_are_left_where_it_is_said() -> None:
    static = static_of(token_mode="prune")
    small = cut_units(static, all_units(static) | {"tokens": tuple(torch.arange(n) for n in (0, 7, 3))})
    assert [(s.tokens, s.left) for s in small.block_sizes] == [(37, 37), (37, 7), (7, 3)]
    assert torch.isfinite(small(pixels(small, 2))).all()


def test_what_nobody_knows_how_to_cut_is_refused() -> None:
    static = static_of(qk_norm=True)
    with pytest.raises(ValueError, match="Queries and keys are normed"):
        cut_units(static, without(static, qk=[1]))
