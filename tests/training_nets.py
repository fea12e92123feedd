"""A small network and what trains it in a moment, for the tests of stage 1 and 3."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from helpers import random_net

from supernet import SearchSpace, SupernetConfig, from_pretrained, save_pretrained
from train.networks.recipes.images import ImagesRecipe

CONFIG = SupernetConfig(
    SearchSpace((1, 1, 1), (16, 24, 32), (1, 2), (1, 2, 2), 0.2), 32, 8, 3, num_classes=3, head_dim=8, lln=False
)
AUGMENTED: dict[str, Any] = {"crop_scale": (0.5, 1.0), "flip": 0.5, "rand_augment": "rand-m5-n1"}


def saved_net(folder: Path) -> str:
    """A folder with random weights for colour images of 32 pixels and three classes."""
    save_pretrained(random_net(CONFIG), folder)
    return str(folder)


def images_recipe(source: str, dataset: Path, **changes: Any) -> ImagesRecipe:
    """Four steps of six images."""
    short: dict[str, Any] = {"steps": 4, "batch_size": 6, "lr": 1e-3, "checkpoint_every": 2, "val_images": 12}
    return ImagesRecipe(source=source, dataset=str(dataset), **(short | changes))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return from_pretrained(folder).state_dict()


def assert_equal_weights(a: Path, b: Path, within: float = 0.0) -> None:
    other = weights(b)
    for name, value in weights(a).items():
        assert torch.allclose(value, other[name], rtol=0, atol=within), name
