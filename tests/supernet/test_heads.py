"""Classifiers: put in anew, and never cut or lost when users put another one in their place."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_nets import TWO_BLOCKS, cut_subnet, normalised, pixels, small_net
from torch import nn

from supernet import StaticViT, Supernet, extract, from_pretrained, load_static, save_pretrained, save_static
from supernet.runtime.pooling import mean_patches

KINDS: dict[str, dict[str, Any]] = {
    "class token": {},
    "no classifier": {"num_classes": 0},
    "two classifiers": {"reg_tokens": 1, "distilled": True},
    "attention pooling": {"global_pool": "map"},
}


def own_net(kind: str = "class token") -> Supernet:
    """A network that may be changed."""
    return copy.deepcopy(small_net(groups=TWO_BLOCKS, **KINDS[kind]))


def test_names_of_classes_stay_with_the_classifier_that_they_are_of(tmp_path: Path) -> None:
    net = own_net()
    assert "class_names" not in net.config.to_dict()
    names = [f"class {k}" for k in range(net.config.num_classes)]
    net.config = replace(net.config, class_names=names)
    save_pretrained(net, tmp_path / "net")
    assert from_pretrained(tmp_path / "net").config == net.config
    save_static(extract(net, cut_subnet(net)), tmp_path / "static")
    assert load_static(tmp_path / "static").config.class_names == tuple(names)
    with pytest.raises(ValueError, match=r"class_names has 2 entries, but num_classes=\d+"):
        replace(net.config, class_names=("cat", "dog"))
    net.reset_classifier(len(names))
    assert net.config.class_names == ()


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_new_classifier_gives_its_number_of_classes_everywhere(kind: str, tmp_path: Path) -> None:
    net = own_net(kind)
    subnet, images = cut_subnet(net), pixels(net, 3)
    before = net.macs().item()
    net.reset_classifier(4)
    assert net.config.num_classes == 4
    logits = net(images, subnet)
    assert logits.shape == (3, 4)
    assert logits.std() > 0
    assert net.macs().item() != before
    static = extract(net, subnet)
    assert torch.allclose(static(images), logits, atol=1e-5)
    assert static.params() == int(net.params(subnet))
    save_pretrained(net, tmp_path / "net")
    assert torch.allclose(from_pretrained(tmp_path / "net")(images, subnet), logits, atol=1e-6)
    static.reset_classifier(9)
    save_static(static, tmp_path / "static")
    assert torch.equal(load_static(tmp_path / "static")(images), static(images))
    assert static(images).shape == (3, 9)


@torch.no_grad()
def test_a_classifier_can_be_taken_away() -> None:
    net = own_net("two classifiers")
    net.reset_classifier(0)
    assert net.head is net.head_dist is None
    assert net(pixels(net, 2)).shape == (2, 32)
    assert net.params().item() == sum(p.numel() for p in net.parameters())


def test_a_new_classifier_is_on_the_device_and_in_the_precision_of_the_network() -> None:
    net = own_net("class token").double().train()
    net.reset_classifier(3)
    assert net.head is not None
    assert net.head.weight.dtype == torch.float64
    assert net.head.training
    with pytest.raises(ValueError, match="num_classes=-1 must be greater than or equal to 0"):
        net.reset_classifier(-1)
    assert net.config.num_classes == 3


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (nn.Linear(32, 12), r"net\.head has 12 classes, but the configuration says 7.*reset_classifier\(12\)"),
        (nn.Linear(32, 3), r"net\.head has 3 classes, but the configuration says 7.*reset_classifier\(3\)"),
        (None, r"net\.head has 0 classes, but the configuration says 7"),
        (nn.Linear(24, 7), r"net\.head is Linear\(in_features=24.*nn\.Linear of 32 inputs.*reset_classifier"),
        (nn.Sequential(nn.Linear(32, 7)), r"head is (a torch\.nn\S*)?Sequential"),
    ],
)
@pytest.mark.parametrize(
    "use",
    [
        lambda net, folder: net(pixels(net, 2)),
        lambda net, folder: net.forward_head(net.begin(pixels(net, 2))),
        lambda net, folder: save_pretrained(net, folder / "net"),
        lambda net, folder: net.extract(cut_subnet(net)),
    ],
    ids=["run", "exit early", "save", "extract"],
)
def test_another_classifier_in_its_place_is_refused_and_never_cut(
    use: Callable[[Supernet, Path], object], head: nn.Module | None, message: str, tmp_path: Path
) -> None:
    net = own_net()
    net.head = head  # type: ignore[assignment]
    with pytest.raises(ValueError, match=f"(?s){message}"):
        use(net, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_static_network_with_another_classifier_runs_and_is_not_saved_as_what_it_is_not(tmp_path: Path) -> None:
    net = own_net()
    static: StaticViT = extract(net, cut_subnet(net))
    static.head = nn.Linear(static.features, 12)
    assert static(normalised(net, pixels(net, 2))).shape == (2, 12)
    for use in (lambda: save_static(static, tmp_path / "static"), static.macs):
        with pytest.raises(ValueError, match=r"net\.head has 12 classes, but the configuration says 7"):
            use()


def test_a_second_classifier_belongs_to_distilled_networks() -> None:
    net = own_net("two classifiers")
    net.head_dist = None
    with pytest.raises(ValueError, match=r"net\.head_dist has 0 classes, but the configuration says 7"):
        net(pixels(net, 2))


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_static_network_takes_no_images(kind: str) -> None:
    net = own_net(kind)
    static = extract(net, cut_subnet(net))
    some, none = (static(pixels(net, 2)[:batch]) for batch in (2, 0))
    assert none.shape == (0, some.shape[1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_mean_of_merged_patches_needs_no_numbers_beyond_theirs(dtype: torch.dtype) -> None:
    rows, size = torch.full((2 * 50, 3), 200, dtype=dtype), torch.full((2 * 50,), 8.0)
    for lengths in (np.array([50, 50]), np.array([60, 40])):
        assert torch.allclose(mean_patches(rows, lengths, size, 1), rows[:2], rtol=1e-2)
