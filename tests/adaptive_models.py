"""Adaptive models with random policies that differ from image to image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from wrapped_agents import IMAGES

from agents import AdaptiveViT, PrancePPO, PrancePPOConfig
from agents.fitting import Interface
from prance_env import EnvSettings
from prance_env.rewards.prices import CostConditioning
from supernet import Supernet

PRICES = CostConditioning(0.01, 1.0)


def wide_ranging(model: Any) -> Any:
    """A policy whose actions differ from image to image."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.policy.parameters():
        parameter.data.add_(torch.randn(parameter.shape, generator=generator), alpha=0.3)
    return model


def prance_ppo(interface: Interface) -> PrancePPO:
    spaces = interface.observation_space, interface.action_space
    return wide_ranging(PrancePPO(None, PrancePPOConfig.tuned(), spaces=spaces))


def saved(model: AdaptiveViT, folder: Path) -> AdaptiveViT:
    model.save_pretrained(folder)
    return AdaptiveViT.from_pretrained(folder)


def price_minded(net: Supernet) -> AdaptiveViT:
    """A model for a range of prices, which matter to it."""
    agent = prance_ppo(Interface(net.config, conditioning=PRICES))
    with torch.no_grad():
        layers: Any = agent.policy.actor
        layers[0].weight[0], layers[2].weight[0], layers[0].weight[0, -1], layers[2].weight[0, 0] = 0, 0, 4, 2
        layers[0].bias[0], layers[2].bias[0], layers[-1].bias[:] = -2, 0, 0
        layers[-1].weight *= 0.3
        layers[-1].weight[:, 0] = -1.5
    return AdaptiveViT(net, agent, conditioning=PRICES, names=list("abcdefghij"))


def pixels(settings: EnvSettings, count: int = IMAGES) -> torch.Tensor:
    """The first images of a data set."""
    return settings.engine().dataset.fetch(np.arange(count))


def says(model: AdaptiveViT, images: torch.Tensor, budget: Any = None) -> tuple[Any, ...]:
    """Everything that a model says about images, for `==`; logits without their last bits."""
    found = model(images, budget)
    chosen = found.subnet.to_json()
    return found.labels.tolist(), found.macs.tolist(), found.patches.tolist(), chosen
