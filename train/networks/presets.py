"""Recipes for supernets by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from .recipe import Recipe
from .recipes.digits import DigitsRecipe
from .recipes.images import ImagesRecipe

IMAGENET: dict[str, Any] = {
    "num_classes": 1000,
    "steps": 375_000,
    "batch_size": 1024,
    "lr": 1e-3,
    "ema_decay": 0.9999,
    "checkpoint_every": 2500,
    "label_smoothing": 0.1,
    "full_labels": 1.0,
    "sub_labels": 0.5,
    "sub_full": 0.5,
    "shared_start": False,
    "crop_scale": (0.08, 1.0),
    "flip": 0.5,
    "rand_augment": "rand-m9-mstd0.5-inc1",
    "mixup": 0.8,
    "cutmix": 1.0,
    "val_images": 50_000,
    "num_workers": 8,
}

PRESETS: dict[str, Recipe] = {
    "digits": DigitsRecipe(),
    "digits-quick": DigitsRecipe(steps=600, batch_size=96, checkpoint_every=200, ema_decay=0.98),
    "finetune": ImagesRecipe(
        subnets=0,
        smallest=False,
        steps=1500,
        batch_size=64,
        lr=1e-4,
        layer_decay=0.8,
        ema_decay=0.99,
        checkpoint_every=250,
    ),
    "pretrained-light": ImagesRecipe(
        steps=1500,
        batch_size=64,
        lr=3e-4,
        layer_decay=0.8,
        ema_decay=0.99,
        checkpoint_every=250,
        teacher="original",
        full_labels=3.0,
        full_teacher=3.0,
    ),
    "scratch": ImagesRecipe(steps=20_000, lr=1e-3, sub_labels=0.5, sub_full=0.5, shared_start=False),
    "prance-tiny-imagenet": ImagesRecipe(source="prance_vit_tiny", **IMAGENET),
    "prance-small-imagenet": ImagesRecipe(source="prance_vit_small", drop_path=0.1, **IMAGENET),
    "prance-base-imagenet": ImagesRecipe(source="prance_vit_base", drop_path=0.2, **IMAGENET),
}


def recipe_of(preset: str, changes: Mapping[str, Any]) -> Recipe:
    """A preset with some of its settings changed.

    Raises:
        ValueError: If there is no such preset, it has no such setting, or a value is out of range.
    """
    if preset not in PRESETS:
        raise ValueError(f"preset={preset!r} is unknown; choose one of {list(PRESETS)}.")
    recipe = PRESETS[preset]
    if unknown := sorted(set(changes) - {f.name for f in fields(recipe)}):
        flags = ", ".join("--from" if name == "source" else f"--{name.replace('_', '-')}" for name in unknown)
        raise ValueError(f"The preset {preset} has no use for {flags}; take another one, such as pretrained-light.")
    return replace(recipe, **changes)
