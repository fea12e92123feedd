"""What several test files need: small engines, played episodes, recorded rollouts."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cache
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from prance_env import InferenceEngine, RewardConfig
from prance_env.episodes import Episodes
from prance_env.images.source import ImageDataset
from prance_env.settings import EnvSettings
from supernet import SearchSpace, SubnetConfig, Supernet, SupernetConfig, freeze

ENV_ID = "Prance-Digits-v0"
INFO_KEYS = [
    "index",
    "label",
    "decision",
    "embed_dim",
    "mlp_ratio",
    "keep_rate",
    "num_tokens",
    "macs",
    "macs_fraction",
    "reward_accuracy",
    "reward_macs",
    "reward_tokens",
    "prediction",
    "is_success",
]
Actions = NDArray[np.float64]
PATIENCE = 900.0
"""Seconds after which another process or thread counts as hanging: far more than the busiest machine makes it need."""


def count_flops(net: nn.Module, image: torch.Tensor) -> tuple[int, int]:
    """PyTorch's count for one image: everything, and the batched products of attention.

    Attention is unfused for it: before 2.15 the counter does not know the CPU's fused kernel and counts it as nothing.
    """
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        net(image)
    operators = counter.get_flop_counts()["Global"]
    return counter.get_total_flops(), sum(n for op, n in operators.items() if "bmm" in str(op))


def random_net(config: SupernetConfig) -> Supernet:
    """A frozen supernet with random weights of std .2, so that its outputs are not degenerate."""
    return copy.deepcopy(_random_net(config))  # tests may change theirs


@cache
@torch.no_grad()
def _random_net(config: SupernetConfig) -> Supernet:
    net = freeze(Supernet(config))
    generator = torch.Generator().manual_seed(0)
    for parameter in net.parameters():
        parameter.normal_(0, 0.2, generator=generator)
    for module in net.modules():
        if isinstance(module, nn.LayerNorm | nn.RMSNorm | nn.BatchNorm2d):
            module.weight.add_(1)
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None and module.running_var is not None:
            module.running_mean.normal_(0, 0.2, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
    return net


@torch.inference_mode()
def make_engine(net: Supernet, num_images: int = 64, key_mean: bool = False) -> InferenceEngine:
    """An engine over noise of varying contrast; the full network is right about every other image."""
    c = net.config
    generator = torch.Generator().manual_seed(1)
    noise = torch.rand(num_images, c.in_chans, c.img_size, c.img_size, generator=generator)
    contrast = torch.rand(num_images, 1, 1, 1, generator=generator)
    images = (255 * noise * contrast).to(torch.uint8)
    number = torch.arange(num_images)
    labels = (net(images).argmax(1) + number % 2) % c.num_classes
    return InferenceEngine(net, ImageDataset(images, labels, number % 3, "remainder"), key_mean=key_mean)


def unit_actions(space: SearchSpace, batch_size: int, seed: int = 0) -> Actions:
    """(batch, T, A) uniform actions in [0, 1]; the first image keeps everything, the second as little as possible."""
    actions = np.random.default_rng(seed).random((batch_size, space.num_decisions, space.action_size))
    actions[:2] = np.array([1.0, 0.0])[:batch_size, None, None]
    return actions


def played(engine: InferenceEngine, actions: Actions, reward: RewardConfig) -> list[Episodes]:
    """The episodes before and after every decision, on the images 0, 1, 2, ..."""
    path = [engine.start(np.arange(len(actions)))]
    for decision in range(actions.shape[1]):
        path.append(engine.step(path[-1], actions[:, decision], reward))
    return path


def partial_subnet(space: SearchSpace, actions: Actions, decisions: int) -> SubnetConfig:
    """The subnets after some decisions, later ones at full size."""
    actions = actions.copy()
    actions[:, decisions:] = 1
    return SubnetConfig.from_actions(space, torch.from_numpy(actions))


def comparable(value: Any) -> Any:
    """Plain data that `==` compares bit for bit, with types."""
    if isinstance(value, dict):
        return {k: comparable(v) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return [comparable(v) for v in value]
    if isinstance(value, np.ndarray):
        return ("array", str(value.dtype), comparable(value.tolist()))
    return (type(value).__name__, value)


def transcript(env: gym.Env[Any, Any], seed: int | None, steps: int = 7) -> list[Any]:
    """Everything that an environment returns in a rollout of fixed random actions."""
    box: Any = env.action_space
    actions = np.random.default_rng(0).uniform(box.low, box.high, (steps, *box.shape)).astype(np.float32)
    rows = [comparable(env.reset(seed=seed))]
    for action in actions:
        step = env.step(action)
        rows.append(comparable(step))
        if step[2]:
            rows.append(comparable(env.reset()))
    return rows


def assert_equal_policies(a: Any, b: Any) -> None:
    """Two trained agents, or their policies alone, have the same weights, bit for bit."""
    states = [getattr(agent, "policy", agent).state_dict() for agent in (a, b)]
    for (name, x), y in zip(states[0].items(), states[1].values(), strict=True):
        assert torch.equal(x, y), name


@dataclass(frozen=True, kw_only=True)
class FixedSettings(EnvSettings):
    """Settings whose engine is given."""

    fixed: InferenceEngine

    def engine(self) -> InferenceEngine:
        """The given one."""
        return self.fixed

    def config(self) -> SupernetConfig:
        """That of its supernet."""
        return self.fixed.config


def settings_for(engine: InferenceEngine, observation: str = "cls", normalize_actions: bool = True) -> EnvSettings:
    """What `evaluate` needs to run an agent on `engine`."""
    return FixedSettings(split="val", observation=observation, normalize_actions=normalize_actions, fixed=engine)
