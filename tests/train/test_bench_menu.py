"""What menus lose is measured against free choice on the same images, and times are of what they are said to be."""

from __future__ import annotations

import numpy as np
import pytest
from adaptive_models import prance_ppo
from command_line import refusal
from helpers import make_engine
from rich.console import Console

from agents import AdaptiveViT
from agents.deployed.convert import plain_agent
from agents.fitting import Interface
from supernet import Supernet
from train.timing.menu import menu_latency, menu_losses, print_latency, print_losses


@pytest.fixture
def model(digits_net: Supernet) -> AdaptiveViT:
    interface = Interface(digits_net.config)
    return AdaptiveViT(digits_net, plain_agent(prance_ppo(interface), interface))


def test_a_menu_of_all_choices_loses_nothing_and_small_ones_are_measured(model: AdaptiveViT) -> None:
    engine = make_engine(model.net, 40)
    images = engine.dataset.fetch(np.arange(40)), engine.dataset.labels
    free, few, all_of_them = menu_losses(model, images, images, [2, 500], [None])
    assert (free["entries"], free["same_class"]) == (None, 1)
    assert all_of_them == {**free, "entries": 500}
    assert few["entries"] == 2
    assert few["macs_fraction"] != free["macs_fraction"]
    text = Console(record=True, width=160)
    print_losses([free, few], text)
    shown = text.export_text()
    assert f"{few['macs_fraction']:.1%}" in shown
    assert f"{100 * (free['accuracy'] - few['accuracy']):+.2f}" in shown


@pytest.mark.slow
def test_one_image_is_timed_in_every_form(model: AdaptiveViT) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    engine = make_engine(model.net, 20)
    model.make_menu(engine.dataset.fetch(np.arange(20)), 3)
    measured = menu_latency(model, model.net, 2)
    assert {*measured} == {"timm", "menu", "free choice", "menu, onnxruntime", "full, onnxruntime"}
    assert measured["timm"]["throughput_vs_timm"] == measured["full, onnxruntime"]["throughput_vs_onnxruntime"] == 1
    assert 0 < measured["menu"]["macs_fraction"] == measured["menu, onnxruntime"]["macs_fraction"] < 1
    assert 0 < measured["free choice"]["macs_fraction"] < 1
    assert all(row["milliseconds"] > 0 for row in measured.values())
    text = Console(record=True, width=160)
    print_latency("digits", measured, text)
    assert "free choice" in text.export_text()


def test_what_is_to_be_measured_must_be_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "Pass --agent, a run folder, or --timm" in refusal(monkeypatch, "bench-menu")
