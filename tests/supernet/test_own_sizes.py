"""Static networks whose blocks have sizes of their own, which no search space holds."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import count_flops
from small_nets import cut_subnet, normalised, pixels, small_net
from torch import nn

from supernet import StaticViT, extract, load_static, save_static
from supernet.block_sizes import BlockSizes, block_sizes, sizes_macs
from supernet.config import SupernetConfig, with_space

KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "merge": {"token_mode": "merge"},
    "tome": {"token_mode": "tome"},
    "gated, query norms": {"glu": True, "qk_norm": True, "global_pool": "map"},
    "inner norms": {"scale_norm": True, "norm": "rms", "class_token": False, "global_pool": "avg"},
}


def own_sizes(**kind: Any) -> tuple[SupernetConfig, list[BlockSizes]]:
    """Sizes that no subnet has, after one that loses tokens."""
    net = small_net(**kind)
    config = with_space(net.config, embed_dims=(24,), num_heads=(3,))
    sizes = []
    for number, block in enumerate(block_sizes(net.config, cut_subnet(net))):
        shape = {"reads": 24, "embed_dim": 21 - number, "gives": 20 - number, "hidden_dim": 10 + number}
        sizes.append(replace(block, **shape, num_heads=1 + number % 2, qk_dim=5 - number, v_dim=3 + number))
    return config, sizes


def random_static(**kind: Any) -> StaticViT:
    torch.manual_seed(0)
    static = StaticViT(*own_sizes(**kind)).eval()
    for name, parameter in static.named_parameters():
        nn.init.normal_(parameter, float("norm" in name and "weight" in name), 0.3)
    return static


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_of_own_sizes_are_counted_saved_and_loaded(kind: str, tmp_path: Path) -> None:
    static = random_static(**KINDS[kind])
    images = pixels(static, 3)
    assert static.subnet is None
    assert 2 * static.macs() == count_flops(static, normalised(static, images[:1]))[0]
    with torch.no_grad():
        logits = static(images)
    assert logits.shape == (3, 7)
    assert logits.std() > 0
    save_static(static, tmp_path)
    loaded = load_static(tmp_path)
    assert loaded.block_sizes == static.block_sizes
    with torch.no_grad():
        assert torch.equal(loaded(images), logits)


def test_a_subnet_is_counted_as_its_blocks_are() -> None:
    for mode in ("prune", "merge", "tome"):
        net = small_net(mode)
        subnet = cut_subnet(net)
        assert (
            sizes_macs(net.config, block_sizes(net.config, subnet))
            == int(net.macs(subnet))
            == net.extract(subnet).macs()
        )


def test_files_of_earlier_versions_do_not_say_the_channels_of_heads(tmp_path: Path) -> None:
    net = small_net()
    save_static(extract(net, cut_subnet(net)), tmp_path)
    path = tmp_path / "static.json"
    data = json.loads(path.read_text())
    for block in data["blocks"]:
        assert block.pop("qk_dim") == block.pop("v_dim") == net.config.head_dim
    path.write_text(json.dumps(data))
    assert load_static(tmp_path).block_sizes == block_sizes(net.config, cut_subnet(net))


def test_sizes_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    config, sizes = own_sizes()
    for wrong in ({"hidden_dim": 0}, {"tokens": 7}, {"counts": (99,)}):
        with pytest.raises(ValueError, match=r"Block 1 cannot follow on \d+ tokens"):
            StaticViT(config, [sizes[0], replace(sizes[1], **wrong), sizes[2]])
    with pytest.raises(ValueError, match="at least one block"):
        StaticViT(config, [])
    save_static(random_static(), tmp_path)
    path = tmp_path / "static.json"
    data = json.loads(path.read_text())
    data["blocks"][1]["depth"] = 3
    path.write_text(json.dumps(data))
    with pytest.raises(ValueError, match="does not describe a static network"):
        load_static(tmp_path)
