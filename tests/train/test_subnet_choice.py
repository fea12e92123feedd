"""What a command line's words for a supernet and a subnet mean."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_nets import cut_subnet, small_net

from agents import FullAgent, StaticAgent
from prance_env.supernets import BUNDLED
from supernet import SubnetConfig, from_pretrained, save_pretrained, supernet_config
from train.networks.subnet_choice import choose_subnet, open_supernet


def assert_equal(subnet: SubnetConfig, expected: SubnetConfig) -> None:
    for name, value in vars(expected).items():
        assert torch.equal(getattr(subnet, name), value), name


def test_a_supernet_is_a_bundled_one_a_registered_one_or_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").mkdir()
    bundled = from_pretrained(BUNDLED["digits"])
    assert torch.equal(open_supernet("digits").pos_embed, bundled.pos_embed)
    assert open_supernet("prance_vit_tiny").config == supernet_config("prance_vit_tiny")
    save_pretrained(small_net("tome"), tmp_path / "folder")
    assert torch.equal(open_supernet("folder").pos_embed, small_net("tome").pos_embed)
    with pytest.raises(ValueError, match=r"supernet='vit' is neither one of \['digits', .*\] nor a folder"):
        open_supernet("vit")
    with pytest.raises(FileNotFoundError, match=r"holds no config\.json"):
        open_supernet("./digits")


def test_a_subnet_is_a_word_a_text_or_a_file(tmp_path: Path) -> None:
    net = small_net("prune_merge")
    subnet = cut_subnet(net)
    (tmp_path / "subnet.json").write_text(subnet.to_json())
    for text in (subnet.to_json(), "  " + subnet.to_json(), str(tmp_path / "subnet.json")):
        assert_equal(choose_subnet(net.config, text), subnet)
    assert_equal(choose_subnet(net.config, "full"), SubnetConfig.full(net.space))
    assert_equal(choose_subnet(net.config, "min"), SubnetConfig.min(net.space))
    assert_equal(choose_subnet(net.config), SubnetConfig.full(net.space))


def test_a_static_agents_file_is_its_subnet(tmp_path: Path) -> None:
    net = small_net("prune")
    subnet = cut_subnet(net)
    StaticAgent(subnet, net.config).save(tmp_path / "static.json")
    assert_equal(choose_subnet(net.config, str(tmp_path / "static.json")), subnet)
    with pytest.raises(ValueError, match="was made for another supernet; pass its folder with --supernet"):
        choose_subnet(small_net("merge").config, str(tmp_path / "static.json"))
    named = replace(net.config, class_names=tuple("abcdefg"[: net.config.num_classes]))
    assert_equal(choose_subnet(named, str(tmp_path / "static.json")), subnet)  # the same network
    FullAgent(net.config).save(tmp_path / "full.json")
    with pytest.raises(ValueError, match=r"full\.json holds a FullAgent; only a StaticAgent is one subnet"):
        choose_subnet(net.config, str(tmp_path / "full.json"))


def test_uniform_sizes_hold_for_every_decided_block() -> None:
    config = small_net("prune").config
    subnet = choose_subnet(config, None, [0.7], 24, 1)
    assert subnet.embed_dim.tolist() == [[32, 24, 24]]
    assert subnet.mlp_ratio.tolist() == [[2, 1, 1]]
    assert subnet.keep_rate.tolist() == [[0.7, 0.7]]
    only_width = choose_subnet(config, embed_dim=8)
    assert only_width.embed_dim.tolist() == [[32, 8, 8]]
    assert only_width.mlp_ratio.tolist() == [[2, 2, 2]]
    assert only_width.keep_rate.tolist() == [[1, 1]]
    decided = small_net("prune", decide_first_group=True).config
    assert choose_subnet(decided, embed_dim=8).embed_dim.tolist() == [[8, 8, 8]]
    two_stages = small_net("prune_merge").config
    assert choose_subnet(two_stages, keep_rate=[0.7]).keep_rate.tolist() == [[[0.7, 0.7]] * 2]
    assert choose_subnet(two_stages, keep_rate=[0.7, 0.5]).keep_rate.tolist() == [[[0.7, 0.5]] * 2]


NET = "prune"
TWO = SubnetConfig.full(small_net(NET).space, 2).to_json()
OTHER = SubnetConfig.full(small_net("prune_merge").space).to_json()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"subnet": TWO}, ValueError, "holds 2 subnets; pass exactly one"),
        ({"subnet": OTHER}, ValueError, r"keep_rate has the shape .*; token_mode='prune' takes \(1, 2\)"),
        (
            {"subnet": json.dumps({"embed_dim": [[8]]})},
            ValueError,
            r"mlp_ratio is missing \(and 1 more\); write it with SubnetConfig.to_json",
        ),
        ({"subnet": "{"}, ValueError, "is no JSON .*write it with SubnetConfig.to_json"),
        ({"subnet": "largest"}, FileNotFoundError, "'largest' is no file, nor 'full', 'min' or JSON text"),
        ({"subnet": "full", "embed_dim": 8}, ValueError, "'full' and embed_dim=8 were both given"),
        ({"subnet": "min", "keep_rate": [1.0]}, ValueError, r"'min' and keep_rate=\[1.0\] were both given"),
        ({"embed_dim": 16}, ValueError, r"embed_dim=16.* is not one of \[8, 24, 32\]"),
        ({"mlp_ratio": 3}, ValueError, r"mlp_ratio=3.* is not one of \[1.0, 2.0\]"),
        ({"keep_rate": [0.0]}, ValueError, r"keep_rate holds \[0.0"),
        ({"keep_rate": [0.5, 0.5]}, ValueError, r"keep_rate=\[0.5, 0.5\] has 2 entries; token_mode='prune' takes one"),
    ],
)
def test_what_is_not_one_subnet_of_the_space_is_refused(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        choose_subnet(small_net(NET).config, **arguments)


def test_a_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "s.json").write_bytes(b"{\xff")
    with pytest.raises(ValueError, match=r"s\.json is no text in UTF-8 \(byte 0xff at position 1\); write it with"):
        choose_subnet(supernet_config("digits"), str(tmp_path / "s.json"))
