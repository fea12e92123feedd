"""Figures: names stand beside their points and cover nothing, axes end where their data end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.text import Text
from PIL import Image

from agents import StaticAgent
from prance_env import ImageDataset, InferenceEngine
from prance_env.settings import EnvSettings
from supernet import SubnetConfig
from train.play import play
from train.report import episodes, plots
from train.report.episodes import of_every_kind, plot_episodes
from train.report.labels import Entry, label_beside


def boxes(axes: Any) -> dict[str, Any]:
    """Where names are, without the lines to them."""
    axes.figure.canvas.draw()
    return {" ".join(text.get_text().split()): Text.get_window_extent(text) for text in axes.texts}


def entry(points: Any) -> Entry:
    array = np.array(points, dtype=float)
    return Entry(array, [array], "black")


def test_names_cover_neither_each_other_nor_points() -> None:
    figure, axes = plt.subplots()
    rng = np.random.default_rng(0)
    entries = {f"agent number {i}": entry(rng.random((3, 2))) for i in range(5)}
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    missing = label_beside(axes, entries)
    found = boxes(axes)
    assert {*found, *missing} == {*entries}
    assert len(found) >= 4
    points = axes.transData.transform(np.concatenate([e.points for e in entries.values()]))
    placed = list(found.values())
    assert not any(a.overlaps(b) for i, a in enumerate(placed) for b in placed[:i])
    assert not any(box.contains(*point) for box in placed for point in points)
    frame = axes.get_window_extent()
    assert all(frame.x0 <= b.x0 and b.x1 <= frame.x1 and frame.y0 <= b.y0 and b.y1 <= frame.y1 for b in placed)
    plt.close(figure)


def test_no_line_to_a_name_goes_through_another_name() -> None:
    drawn = 0
    for seed in range(20):
        figure, axes = plt.subplots()
        rng = np.random.default_rng(seed)
        entries = {f"agent number {i}": entry(1 - 0.12 * rng.random((1, 2))) for i in range(9)}
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1)
        label_beside(axes, entries)
        for text in axes.texts:
            leader = text.arrow_patch
            if leader is None:
                continue
            drawn += 1
            ends = leader.get_transform().transform_path(leader.get_path()).vertices
            way = ends[0] + np.linspace(0, 1, 200)[:, None] * (ends[-1] - ends[0])
            others = [box for name, box in boxes(axes).items() if name != " ".join(text.get_text().split())]
            assert not any(box.padded(-1).contains(*at) for box in others for at in way)
        plt.close(figure)
    assert drawn > 10


def test_names_for_which_there_is_no_room_are_told() -> None:
    figure, axes = plt.subplots(figsize=(1.2, 1.2))
    assert label_beside(axes, {"a name as long as this one, and longer": entry([(0.5, 0.5)])}) != []
    plt.close(figure)


def test_a_front_is_drawn_with_intervals_from_where_its_data_begin_to_where_they_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[Any] = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: kept.append(figure))
    metrics: dict[str, Any] = {
        f"static {i}": {"macs_fraction": 0.2 * i, "accuracy": 0.8 + 0.03 * i} for i in range(1, 6)
    }
    metrics["runs/mine"] = {"macs_fraction": 0.5, "accuracy": 0.94, "accuracy_interval": [0.93, 0.95]}
    plots.plot_fronts(metrics, {"static": [n for n in metrics if n != "runs/mine"]}, "test", tmp_path / "x.png", 0.85)
    (axes,) = kept[0].axes
    assert axes.get_ylim()[0] == 0.85
    assert 0.95 < axes.get_ylim()[1] < 0.97
    assert 0.3 < axes.get_xlim()[0] < 0.41
    assert 1.0 < axes.get_xlim()[1] < 1.05
    assert {*boxes(axes)} == {"static subnets", "mine"}
    assert any(list(line.get_ydata()) == [0.93, 0.95] for line in axes.lines)
    plt.close(kept[0])


def test_agents_whose_paths_end_alike_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Any] = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: kept.append(figure))
    metrics = {f"runs/{n}/best": {"macs_fraction": 0.3 * k, "accuracy": 0.5 + 0.2 * k} for k, n in ((1, "x"), (2, "y"))}
    plots.plot_fronts(metrics, {}, "test", tmp_path / "x.png")
    assert {*boxes(kept[0].axes[0])} == {*metrics}
    plt.close(kept[0])


def test_strata_are_drawn_as_they_come(tmp_path: Path) -> None:
    rows = {name: {"1": {"macs_fraction": 0.3, "accuracy": 0.9}} for name in ("full", "agent")}
    plots.plot_by_difficulty(rows, "digits", tmp_path / "x.png")
    assert Image.open(tmp_path / "x.png").size[0] > 600


def test_one_image_of_every_stratum_or_class_is_shown() -> None:
    images = torch.zeros(8, 1, 4, 4, dtype=torch.uint8)
    labels, strata = torch.tensor([2, 2, 0, 0, 1, 1, 1, 2]), torch.tensor([5, 5, 3, 3, 4, 4, 4, 3])
    assert of_every_kind(ImageDataset.from_tensors(images, labels, strata)).tolist() == [2, 4, 0]
    assert of_every_kind(ImageDataset.from_tensors(images, labels)).tolist() == [2, 4, 0]
    assert of_every_kind(ImageDataset.from_tensors(images, labels, strata), most=2).tolist() == [2, 0]


def test_episodes_are_shown_with_question_answer_patches_and_widths(
    engine: InferenceEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[Any] = []
    monkeypatch.setattr(episodes, "save_figure", lambda figure, path: kept.append(figure))
    settings, space = EnvSettings.from_id(split="val"), engine.config.space
    agent = StaticAgent(SubnetConfig.min(space), engine.config)
    index = np.array([3, 5])
    plot_episodes(agent, engine, settings, index, tmp_path / "x.png", "Which one?")
    (figure,) = kept
    assert len(figure.axes) == 2 * len(index) * (1 + space.num_decisions)
    words = [text.get_text() for text in [*figure.texts, *(t for axes in figure.axes for t in axes.texts)]]
    assert "Which one?" in words
    for i in index:
        assert f"answer: {int(engine.labels[i])}" in words
    (path, _), final = play(agent, settings, engine, index), "patches, {:.0%} of the MACs"
    assert f"1 {final.format(path[-1].macs[0] / engine.full_macs)}" in words
    heights = [bar.get_height() for bar in figure.axes[-1].patches[1::2]]
    assert heights == pytest.approx(path[-1].embed_dim[1] / space.embed_dims[-1])
    first = [bar.get_height() for bar in figure.axes[5].patches[1::2]]
    decided = space.blocks(space.first_decided).stop
    assert first[decided:] == [0] * (space.depth - decided)
    plt.close(figure)
