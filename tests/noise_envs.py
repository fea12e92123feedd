"""Environments over noise images before small random supernets that a test chooses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from helpers import Actions, random_net, unit_actions

from prance_env import ImageDataset, PranceVectorEnv, register_dataset
from prance_env.settings import EnvSettings
from supernet import SearchSpace, SubnetConfig, Supernet, SupernetConfig, save_pretrained

IMAGES = 12
# Three decisions, as digits has, in the time that PyTorch needs to be called: for tests of many steps.
TINY = SupernetConfig(
    SearchSpace((1, 1, 1, 1), (8, 16), (1, 2), (2,)), img_size=16, patch_size=4, num_classes=4, head_dim=4
)


def noise_dataset(net: Supernet) -> ImageDataset:
    """Noise of varying contrast, of which the full network is right about every other image."""
    c, generator = net.config, torch.Generator().manual_seed(1)
    shape = (IMAGES, c.in_chans, c.img_size, c.img_size)
    contrast = torch.rand(IMAGES, 1, 1, 1, generator=generator)
    images = (255 * torch.rand(shape, generator=generator) * contrast).to(torch.uint8)
    with torch.inference_mode():
        labels = (net(images).argmax(1) + torch.arange(IMAGES) % 2) % c.num_classes
    return ImageDataset.from_tensors(images, labels)


def noise_kwargs(net: Supernet, folder: Path) -> dict[str, Any]:
    """Saves the supernet in `folder` and registers images for it: what an environment needs to use both."""
    save_pretrained(net, folder)
    dataset, name = noise_dataset(net), str(folder).replace("/", "-")
    register_dataset(name, lambda split: dataset)
    return {"checkpoint": str(folder), "dataset": name}


def tiny_kwargs(folder: Path) -> dict[str, Any]:
    """What an environment needs to use the smallest supernet, which is saved in `folder`, and its images."""
    return noise_kwargs(random_net(TINY), folder)


def played_envs(**kwargs: Any) -> tuple[PranceVectorEnv, Actions, list[tuple[Any, ...]]]:
    """A batch with one lane per image that has been played to the end.

    Returns:
        The environments, the actions (B, T, A) in [0, 1], and what `step` returned at every decision.
    """
    envs = PranceVectorEnv(IMAGES, "DISABLED", normalize_actions=False, **kwargs)
    actions = unit_actions(envs.settings.config().space, IMAGES).astype(np.float32).astype(np.float64)
    envs.reset(seed=0, options={"index": np.arange(IMAGES)})
    return envs, actions, [envs.step(actions[:, t].astype(np.float32)) for t in range(actions.shape[1])]


def chosen_subnets(settings: EnvSettings, actions: Actions) -> SubnetConfig:
    """What actions (B, T, A) in [0, 1] choose."""
    return SubnetConfig.from_actions(settings.config().space, torch.from_numpy(actions))
