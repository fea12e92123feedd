"""A menu answers one image at a time what the model answers that is held to the menu, and costs what it says."""

from __future__ import annotations

import copy
import pickle
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from adaptive_models import PRICES, prance_ppo, price_minded, saved
from helpers import make_engine
from small_nets import small_net

from agents import AdaptiveViT, FullAgent
from agents.deployed import menu as menus
from agents.deployed.convert import plain_agent
from agents.deployed.menu import entries_of
from agents.fitting import Interface
from prance_env.observations import OBSERVATIONS, ObservationPart, Seen, register_observation
from supernet import SubnetConfig, Supernet

IMAGES = 24


def images_of(net: Supernet) -> torch.Tensor:
    return make_engine(net, IMAGES).dataset.fetch(np.arange(IMAGES))


@pytest.mark.parametrize("entries", [1, 3, 100])
def test_a_menu_is_the_model_held_to_it(any_net: Supernet, entries: int) -> None:
    images = images_of(any_net)
    model = AdaptiveViT(any_net, prance_ppo(Interface(any_net.config)))
    menu = model.make_menu(images, entries)
    assert all(1 <= len(e) <= entries for e in menu.entries)
    one_by_one, together = menu(images), model(images, from_menu=True)
    assert one_by_one.macs.tolist() == together.macs.tolist()
    assert one_by_one.patches.tolist() == together.patches.tolist()
    np.testing.assert_allclose(one_by_one.subnet.to_actions(any_net.space), together.subnet.to_actions(any_net.space))
    torch.testing.assert_close(
        one_by_one.logits, together.logits, rtol=0, atol=1e-4 * float(together.logits.abs().max())
    )
    torch.testing.assert_close(any_net.macs(one_by_one.subnet), torch.from_numpy(one_by_one.macs))
    if entries == 100:
        free = model(images)
        assert free.subnet.embed_dim.tolist() == one_by_one.subnet.embed_dim.tolist()
        assert free.macs.tolist() == one_by_one.macs.tolist()


@pytest.mark.parametrize("layer", ["norm", "head", "blocks.1.norm1"])
@torch.no_grad()
def test_a_menu_has_the_weights_that_the_network_has_now(layer: str) -> None:
    net = small_net(prance_embed_dim=40)
    model, images = AdaptiveViT(net, prance_ppo(Interface(net.config))), images_of(net)
    menu = model.make_menu(images, 2)
    assert model.menu is menu
    before, changed = menu(images).logits, net.get_submodule(layer)
    if layer == "head":
        changed.weight = torch.nn.Parameter(changed.weight * 2, requires_grad=False)
    else:
        changed.weight.mul_(2)  # type: ignore[operator]
    expected = model(images, from_menu=True).logits
    assert not torch.allclose(expected, before, atol=1e-3)
    assert model.menu is not None
    torch.testing.assert_close(model.menu(images).logits, expected, rtol=1e-4, atol=1e-4)


def test_entries_are_few_valid_and_near_to_what_was_chosen(digits_net: Supernet) -> None:
    space = digits_net.space
    chosen = np.random.default_rng(0).random((200, space.num_decisions, space.action_size))
    entries = entries_of(chosen, space, 8)
    assert [len(e) for e in entries] == [8] * space.num_decisions
    stacked = torch.from_numpy(np.stack(entries, axis=1))
    again = SubnetConfig.from_actions(space, stacked).to_actions(space).numpy()
    np.testing.assert_allclose(again, stacked.numpy(), atol=1e-9)
    assert all(np.array_equal(a, b) for a, b in zip(entries, entries_of(chosen, space, 8), strict=True))
    more = entries_of(chosen, space, 64)

    def off(menu: np.ndarray) -> float:
        return float(((chosen[:, 0, None] - menu) ** 2).sum(-1).min(1).mean())

    assert off(more[0]) < off(entries[0]) < off(entries[0][:1])
    with pytest.raises(ValueError, match="A menu of 0 entries"):
        entries_of(chosen, space, 0)


def test_a_menu_that_holds_every_choice_keeps_the_same_patches(digits_net: Supernet) -> None:
    space, patches = digits_net.space, digits_net.config.num_patches
    rates = np.arange(1, patches + 1) / patches
    rates = rates[rates >= space.min_keep_rate]
    chosen = np.ones((len(rates), space.num_decisions, space.action_size))
    chosen[..., -1] = ((rates - space.min_keep_rate) / (1 - space.min_keep_rate))[:, None]
    entries = np.stack(entries_of(chosen, space, len(rates)), axis=1)
    subnets = (SubnetConfig.from_actions(space, torch.from_numpy(actions)) for actions in (entries, chosen))
    found, expected = (digits_net.macs(subnet).tolist() for subnet in subnets)
    assert found == expected


def test_the_best_of_several_clusterings_is_taken(digits_net: Supernet, monkeypatch: pytest.MonkeyPatch) -> None:
    space = digits_net.space
    chosen = np.random.default_rng(0).random((20, space.num_decisions, space.action_size)) / 50
    centres = iter([0.5, 0.0, 1.0, 0.5] * space.num_decisions)

    def clustered(points: Any, count: int, **named: Any) -> Any:
        return np.full((count, space.action_size), next(centres)), np.zeros(len(points), dtype=int)

    monkeypatch.setattr(menus, "kmeans2", clustered)
    assert all((entries == 0).all() for entries in entries_of(chosen, space, 2))


def test_a_difference_of_keep_rates_counts_twice(digits_net: Supernet) -> None:
    space, menu = digits_net.space, price_minded(digits_net).make_menu(images_of(digits_net)[:2], 2)
    decider: Any = menu.deciders[0]
    decider.entries = torch.zeros(2, space.action_size, dtype=torch.float64)
    decider.entries[0, 0], decider.entries[1, -1] = 0.3, 0.2  # off in a ratio, off in a rate
    assert decider.nearest(torch.zeros(1, space.action_size, dtype=torch.float64)).tolist() == [0]


def test_a_menu_without_a_budget_is_for_all_prices(digits_net: Supernet, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, usual = list[Any](), AdaptiveViT.forward

    def forward(self: AdaptiveViT, images: Any, budget: Any = None, from_menu: bool = False) -> Any:
        asked.append(budget)
        return usual(self, images, budget, from_menu)

    monkeypatch.setattr(AdaptiveViT, "forward", forward)
    price_minded(digits_net).make_menu(images_of(digits_net), 2)
    assert min(asked[0]) < 0.05 < 0.3 < max(asked[0])


def test_a_menu_for_a_range_of_prices_is_saved_with_what_it_spends(digits_net: Supernet, tmp_path: Path) -> None:
    images = images_of(digits_net)
    interface = Interface(digits_net.config, conditioning=PRICES)
    model = AdaptiveViT(digits_net, prance_ppo(interface), conditioning=PRICES)
    menu = model.make_menu(images, 6, timed=1)
    calibration = menu.calibration
    assert calibration is not None
    assert (len(calibration.milliseconds), calibration.batch_size) == (len(calibration.prices), 1)
    for price, spent in [*zip(calibration.prices, calibration.macs_fraction, strict=True)][::12]:
        assert spent == pytest.approx(menu(images, price).macs.mean() / menu.full_macs)
    share = f"{100 * float(np.mean(calibration.macs_fraction)):.2f}%"
    again = saved(model, tmp_path).menu
    assert again is not None
    assert again.calibration == calibration
    for budget in (0.05, share, f"{max(calibration.milliseconds)}ms"):
        assert again(images, budget).macs.tolist() == menu(images, budget).macs.tolist()
    assert menu(images, 0.05).picked is not None
    with pytest.raises(ValueError, match="trained for a range of prices"):
        menu(images)


def test_a_menu_that_is_refused_leaves_the_earlier_one(digits_net: Supernet) -> None:
    images, model = images_of(digits_net), price_minded(digits_net)
    with pytest.raises(ValueError, match="timed=0"):
        model.make_menu(images, 2, timed=0)
    assert model.menu is None
    menu = model.make_menu(images, 2)
    with pytest.raises(ValueError, match="timed=0"):
        model.make_menu(images, 5, timed=0)
    assert model.menu is not None
    assert model.menu.entries is menu.entries


def test_images_of_a_menu_may_have_budgets_of_their_own(digits_net: Supernet) -> None:
    images, model = images_of(digits_net), price_minded(digits_net)
    budgets = np.geomspace(0.01, 1, IMAGES)
    expected = entries_of(model(images, budgets).subnet.to_actions(digits_net.space).numpy(), digits_net.space, 3)
    for given in (budgets, budgets.tolist()):
        menu = model.make_menu(images, 3, budget=given)
        assert all(np.array_equal(a, b) for a, b in zip(menu.entries, expected, strict=True))
    with pytest.raises(ValueError, match="2 budgets for 24 images"):
        model.make_menu(images, 3, budget=[0.1, 0.2])


def test_a_menu_refuses_what_the_model_refuses(digits_net: Supernet) -> None:
    images = images_of(digits_net)
    model = AdaptiveViT(digits_net, prance_ppo(Interface(digits_net.config)))
    menu = model.make_menu(images, 2)
    for call in (model, menu):
        with pytest.raises(ValueError, match=r"images have the shape \(0, 1, 48, 48\); .* with B >= 1"):
            call(images[:0])
        with pytest.raises(TypeError, match="a call of the model takes a tensor"):
            call(images.numpy())  # type: ignore[arg-type]


def test_a_menu_is_made_anew_for_a_network_that_moved(digits_net: Supernet, tmp_path: Path) -> None:
    images = images_of(digits_net)
    model = saved(AdaptiveViT(digits_net, prance_ppo(Interface(digits_net.config))), tmp_path)
    first = model.make_menu(images, 4)
    assert model.menu is first
    model.to(torch.float64)
    second = model.menu
    assert second is not None
    assert second is not first
    assert second(images.double() / 255).logits.dtype == torch.float64


def test_copies_of_a_model_say_what_it_says_and_make_their_own_menu(digits_net: Supernet, tmp_path: Path) -> None:
    images = images_of(digits_net)
    model = AdaptiveViT(digits_net, prance_ppo(Interface(digits_net.config)))
    menu = model.make_menu(images, 3)
    torch.save(model, tmp_path / "model.pt")
    loaded = torch.load(tmp_path / "model.pt", weights_only=False)
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), loaded):
        assert again(images).macs.tolist() == model(images).macs.tolist()
        assert again.menu is not menu
        assert again.menu(images[:2]).macs.tolist() == menu(images[:2]).macs.tolist()
    # The menu's modules, views of the same weights, are not copied with it.
    assert len(pickle.dumps(model)) < 1.1 * len(pickle.dumps((model.net, model.agent)))


def test_a_menu_is_made_anew_for_another_agent(digits_net: Supernet) -> None:
    interface = Interface(digits_net.config)
    model = AdaptiveViT(digits_net, plain_agent(prance_ppo(interface), interface))
    first = model.make_menu(images_of(digits_net), 3)
    model.agent = plain_agent(prance_ppo(interface), interface)
    assert model.menu is not first
    assert model.menu is model.menu


def test_a_menu_is_where_its_network_is(digits_net: Supernet, monkeypatch: pytest.MonkeyPatch) -> None:
    images = images_of(digits_net)
    model = AdaptiveViT(copy.deepcopy(digits_net), prance_ppo(Interface(digits_net.config)))
    model.make_menu(images, 3)
    menu = model.to("meta").menu  # which refuses tensors of another device, as a GPU does
    assert menu is not None
    assert {t.device.type for t in [*menu.parameters(), *menu.buffers(), *menu.widths]} == {"meta"}
    picked: list[torch.Tensor] = []
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: False)  # "meta" has no autocast
    monkeypatch.setattr(torch, "autocast", lambda kind, enabled: nullcontext())
    monkeypatch.setattr(torch.Tensor, "__int__", lambda tensor: picked.append(tensor) or 0)
    logits, *_ = menu._one(images[:1].to("meta"), torch.zeros(1, dtype=torch.float64, device="meta"))
    assert [t.device.type for t in (logits, *picked)] == ["meta"] * (1 + digits_net.space.num_decisions)


def test_who_cannot_have_a_menu_is_told(digits_net: Supernet, tmp_path: Path) -> None:
    images = images_of(digits_net)
    full = AdaptiveViT(digits_net, FullAgent(digits_net.config))
    assert full.menu is None
    with pytest.raises(ValueError, match=r"has no menu; call model\.make_menu"):
        full(images, from_menu=True)
    with pytest.raises(ValueError, match="no images to make a menu from"):
        full.make_menu(images[:0])
    with pytest.raises(ValueError, match="A FullAgent is no network"):
        full.make_menu(images)
    assert full.menu is None
    assert saved(full, tmp_path).menu is None
    net = digits_net
    keys = AdaptiveViT(net, prance_ppo(Interface(net.config, "key_mean")), "key_mean")
    with pytest.raises(ValueError, match=r"shows \['key_mean'\], which a menu does not compute"):
        keys.make_menu(images)


def test_a_part_of_ones_own_under_a_known_name_is_not_taken_for_the_known_one(digits_net: Supernet) -> None:
    def gone(seen: Seen) -> torch.Tensor:
        return 1 - seen.numbers["patches_left"]

    register_observation("of_mine", (ObservationPart("patches_left", gone), "decision"))
    try:
        model = AdaptiveViT(digits_net, prance_ppo(Interface(digits_net.config, "of_mine")), "of_mine")
        with pytest.raises(ValueError, match=r"shows \['patches_left'\], which a menu does not.*of this package"):
            model.make_menu(images_of(digits_net))
    finally:
        OBSERVATIONS.remove("of_mine")
