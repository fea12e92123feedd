"""Budgets: what they become, what is measured for them, and what is refused."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from adaptive_models import pixels, price_minded, says
from helpers import make_engine, settings_for

from agents import AdaptiveViT
from agents.deployed import calibrate
from agents.deployed.budgets import Calibration
from supernet import Supernet


@pytest.fixture
def model(digits_net: Supernet) -> AdaptiveViT:
    """A model for a range of prices, which matter to it."""
    return price_minded(digits_net)


def test_images_of_all_classes_are_timed(model: AdaptiveViT, monkeypatch: pytest.MonkeyPatch) -> None:
    images, timed = pixels(settings_for(make_engine(model.net, 9)), 9), list[torch.Tensor]()
    monkeypatch.setattr(calibrate, "_milliseconds", lambda model, images, *rest: timed.append(images) or [1.0, 1.0])
    model.calibrate(images, prices=2, timed=3)
    assert torch.equal(timed[0], images[[0, 4, 8]])


def test_times_are_medians_an_image(monkeypatch: pytest.MonkeyPatch) -> None:
    took = [0.006, 0.012, 0.009, 0.3, 0.003, 0.009, 0.009]
    clock = iter([time for seconds in took for time in (0.0, seconds)])
    monkeypatch.setattr(calibrate, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    run = calibrate._milliseconds(lambda *args, **named: None, torch.zeros(3, 1), [0.1], False)
    assert run == pytest.approx([3.0])


def test_what_was_timed_is_noted(model: AdaptiveViT) -> None:
    images = pixels(settings_for(make_engine(model.net, 4)), 4)
    assert model.calibrate(images, prices=2, timed=100).batch_size == 4
    assert model.calibrate(images, prices=2, timed=2).batch_size == 2
    with pytest.raises(ValueError, match="timed=0 must be a whole number from 1"):
        model.calibrate(images, timed=0)


def test_of_prices_that_spend_alike_the_lowest_keeps_to_a_budget() -> None:
    plateau = Calibration((0.01, 0.1, 0.2, 1.0), (0.8, 0.5, 0.52, 0.3))
    assert plateau.price(0.5, "%") == pytest.approx(0.1)
    assert plateau.price(0.4, "%") == pytest.approx(0.2 * 5 ** (12 / 22))
    assert plateau.price(0.65, "%") == pytest.approx((0.01 * 0.1) ** 0.5)
    at_the_end = Calibration((0.01, 0.1, 0.2, 1.0), (0.8, 0.5, 0.3, 0.3))
    assert [at_the_end.price(wanted, "%") for wanted in (0.3, 0.2999)] == pytest.approx([0.2, 0.2])


@pytest.mark.parametrize("spent", [(0.5, 0.3, 0.4, 0.2), (0.5, 0.3, 0.32, 0.2), (0.5, 0.6, 0.4, 0.2)])
def test_what_was_measured_keeps_to_the_budget_where_noise_made_a_higher_price_dearer(spent: tuple[float, ...]) -> None:
    prices = (0.01, 0.03, 0.1, 0.3)
    calibration = Calibration(prices, spent)
    for wanted in (0.45, 0.3, 0.25, 0.2, 0.1995):
        found = calibration.price(wanted, "%")
        assert np.interp(np.log(found), np.log(prices), spent) == pytest.approx(max(wanted, 0.2))
    assert calibration.price(0.5, "%") == 0.01
    with pytest.raises(ValueError, match=r"reach, which is 20.0% to 50.0%"):
        calibration.price(0.15, "%")
    assert Calibration(prices, (0.5, 0.2, 0.3, 0.25)).price(0.2, "%") == pytest.approx(0.03)


def test_budgets_may_be_arrays(model: AdaptiveViT) -> None:
    images = make_engine(model.net, 2).dataset.fetch(np.arange(2))
    expected = says(model, images, [0.02, 0.5])
    for budget in (np.array([0.02, 0.5]), torch.tensor([0.02, 0.5], dtype=torch.float64)):
        assert says(model, images, budget) == expected
        assert model.predict([*images.numpy()], budget).macs.tolist() == expected[1]
        with pytest.raises(ValueError, match=r"budget=\[0.02\] is none"):
            model(images, budget[:, None])


def test_a_share_of_the_macs_is_kept_to_and_images_may_have_budgets_of_their_own(model: AdaptiveViT) -> None:
    images = make_engine(model.net, 48).dataset.fetch(np.arange(48))
    calibration = model.calibrate(images)
    low, high = min(calibration.macs_fraction), max(calibration.macs_fraction)
    assert high - low > 0.2
    for share in np.linspace(low + 0.02, high - 0.02, 4):
        spent = model(images, f"{100 * share:.3f}%").macs.mean() / model.full_macs
        assert abs(spent - share) < 0.03
    mixed = model(images[:3], [0.01, 0.1, "60%"])
    alone = [model(images[i : i + 1], b) for i, b in enumerate((0.01, 0.1, "60%"))]
    assert mixed.macs.tolist() == [int(p.macs[0]) for p in alone]


def test_budgets_that_cannot_be_kept_are_refused_with_what_can(model: AdaptiveViT) -> None:
    images = make_engine(model.net, 8).dataset.fetch(np.arange(8))
    with pytest.raises(ValueError, match="needs a calibration"):
        model(images, "40%")
    model.calibrate(images, prices=3)
    for budget, message in {
        "1%": r"1\.0% is out of this model's reach, which is \d+\.\d% to",
        "5ms": "needs times of this machine",
        "fast": "'fast' is none: pass a price such as 0.05",
        -1.0: "is none",
        "nan": "is none",
        7.0: r"must lie in \[0.01, 1.0\]",
    }.items():
        with pytest.raises(ValueError, match=message):
            model(images, budget)
    with pytest.raises(ValueError, match="2 budgets for 8 images"):
        model(images, [0.1, 0.2])
    model.calibrate(images, prices=3, timed=4)
    assert model.calibration is not None
    assert model(images, f"{max(model.calibration.milliseconds)}ms").macs.mean() > 0
