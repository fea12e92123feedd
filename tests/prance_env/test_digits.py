"""The bundled task: deterministic scenes with the right label."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from prance_env.images import digits
from prance_env.images.digits import (
    CELL,
    GRID,
    MAX_DIGITS,
    NUM_DIGITS_WEIGHTS,
    SPLITS,
    Scenes,
    make_scenes,
    source_splits,
)
from prance_env.supernets import BUNDLED
from supernet import GroupChoice, freeze, from_pretrained


def assert_same(a: Scenes, b: Scenes) -> None:
    for name, value in vars(a).items():
        assert torch.equal(value, getattr(b, name)), name


def test_the_same_seed_gives_the_same_scenes_and_another_seed_others() -> None:
    scenes = make_scenes(20, "test", seed=5)
    assert_same(make_scenes(20, "test", seed=5), scenes)
    assert_same(make_scenes(20, "test", seed=np.int64(5)), scenes)
    assert_same(make_scenes(20, "test", seed=[5]), scenes)
    for other in (make_scenes(20, "test", seed=6), make_scenes(20, "test", seed=[5, 1]), make_scenes(20, seed=5)):
        assert not torch.equal(other.images, scenes.images)
        assert not torch.equal(other.cells, scenes.cells)


def test_every_source_digit_belongs_to_exactly_one_split() -> None:
    splits = source_splits()
    assert tuple(splits) == SPLITS
    assert sorted(np.concatenate(list(splits.values())).tolist()) == list(range(1797))


@pytest.mark.parametrize("split", SPLITS)
def test_a_split_shows_only_its_own_source_digits(split: str, monkeypatch: pytest.MonkeyPatch) -> None:
    scenes = make_scenes(50, split)
    source = load_digits()
    source.images[np.setdiff1d(np.arange(1797), source_splits()[split])] = 0
    monkeypatch.setattr(digits, "load_digits", lambda: source)
    digits._tiles.cache_clear()
    try:
        assert_same(make_scenes(50, split), scenes)
    finally:
        digits._tiles.cache_clear()


def test_only_the_label_occurs_twice() -> None:
    scenes = make_scenes(500, seed=1)
    for label, count, cells in zip(scenes.labels, scenes.num_digits, scenes.cells, strict=True):
        times = torch.bincount(cells[cells >= 0], minlength=10)
        assert times.sum() == count
        assert times[label] == (1 if count == 1 else 2)
        times[label] = 0
        assert times.max() <= 1


def test_numbers_of_digits_and_labels_follow_their_distribution() -> None:
    scenes = make_scenes(4000, "val", seed=2)
    shares = torch.bincount(scenes.num_digits, minlength=MAX_DIGITS + 1)[1:] / 4000
    assert (shares - torch.tensor(NUM_DIGITS_WEIGHTS)).abs().max() < 0.03
    assert (torch.bincount(scenes.labels, minlength=10) / 4000 - 0.1).abs().max() < 0.03
    occupied = (scenes.cells >= 0).float().mean(0)
    assert (occupied - occupied.mean()).abs().max() < 0.04


@pytest.mark.parametrize("num_digits", range(1, MAX_DIGITS + 1))
def test_a_fixed_number_of_digits_is_kept(num_digits: int) -> None:
    scenes = make_scenes(10, num_digits=num_digits)
    assert scenes.num_digits.tolist() == [num_digits] * 10
    assert ((scenes.cells >= 0).sum(1) == num_digits).all()


@pytest.mark.parametrize("split", SPLITS)
def test_cells_with_a_digit_are_bright_and_the_others_dark(split: str) -> None:
    scenes = make_scenes(300, split, seed=3)
    assert scenes.images.dtype == torch.uint8
    assert scenes.images.shape == (300, 1, 48, 48)
    cells = scenes.images.view(300, GRID, CELL, GRID, CELL).float().mean((2, 4)).view(300, GRID * GRID)
    occupied = scenes.cells >= 0
    assert cells[occupied].min() > 20 > cells[~occupied].max()


def test_a_digit_looks_like_its_class_and_less_like_the_others() -> None:
    def tiles_and_classes(split: str) -> tuple[torch.Tensor, torch.Tensor]:
        scenes = make_scenes(600, split, seed=4)
        tiles = scenes.images.view(-1, GRID, CELL, GRID, CELL).transpose(2, 3).reshape(-1, CELL * CELL).float()
        classes = scenes.cells.flatten()
        return tiles[classes >= 0], classes[classes >= 0]

    train, train_classes = tiles_and_classes("train")
    test, test_classes = tiles_and_classes("test")
    nearest = train_classes[torch.cdist(test, train).argmin(1)]
    assert (nearest == test_classes).float().mean() > 0.75


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "dev"}, r"split='dev'.*\('train', 'val', 'test'\)"),
        ({"num_scenes": 0}, "num_scenes=0 .*at least 1"),
        ({"num_digits": 0}, r"num_digits=0 .*1\.\.11"),
        ({"num_digits": 12}, r"num_digits=12 .*1\.\.11"),
        ({"seed": -1}, "seed=-1 must be non-negative"),
        ({"seed": [3, -1]}, r"seed=\[3, -1\] must be non-negative"),
    ],
)
def test_an_impossible_request_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_scenes(**{"num_scenes": 4, **arguments})


def test_the_bundled_supernet_looks_at_the_digits_when_it_decides_what_to_drop() -> None:
    net = freeze(from_pretrained(BUNDLED["digits"]))
    scenes = make_scenes(200, "val", seed=5)
    with torch.inference_mode():
        state = net.begin(scenes.images)
        attention = net.class_attention(state, GroupChoice.full(net.space, 1, 200)).view(200, -1)[:, 1:]
    ranked = attention.argsort(dim=1, descending=True)
    for row, cells, n in zip(ranked, scenes.cells, scenes.num_digits.tolist(), strict=True):
        assert (cells[row[:n]] >= 0).all()
        assert (cells[row[n:]] < 0).all()
