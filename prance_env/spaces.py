"""Action and observation spaces, and what an observation is made of."""

from __future__ import annotations

import math

import gymnasium as gym
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from supernet import InferenceState, SearchSpace, Supernet, SupernetConfig
from supernet.ragged import runs, take_rows

OBSERVATIONS = ("cls", "cls_only", "constant")
LOG_NORM_BOUND = 5.0


def action_space(space: SearchSpace, normalize_actions: bool) -> gym.spaces.Box:
    """Box(-1, 1) or, not normalised, the paper's Box(0, 1); one mlp_ratio and one embed_dim a block, one keep_rate."""
    return gym.spaces.Box(-1.0 if normalize_actions else 0.0, 1.0, (space.action_size,), np.float32)


def decode_actions(actions: NDArray[np.floating], normalize_actions: bool) -> NDArray[np.float64]:
    """Actions (B, A) of the Box to [0, 1]; what lies outside is clipped.

    Raises:
        ValueError: If an entry is NaN.
    """
    unit = np.asarray(actions, dtype=np.float64)
    if np.isnan(unit).any():
        lane = int(np.flatnonzero(np.isnan(unit).any(axis=1))[0])
        raise ValueError(f"The action of environment {lane} holds NaN: {unit[lane]}; check the policy for divergence.")
    return np.clip((unit + 1) / 2 if normalize_actions else unit, 0, 1)


def observation_layout(config: SupernetConfig, observation: str) -> dict[str, slice]:
    """Name and slice of every part of the observation vector, in order.

    Raises:
        ValueError: If `observation` is unknown.
    """
    space = config.space
    sizes = {
        "class_token": config.embed_dim,
        "log_norm": 1,
        "max_prob": 1,
        "entropy": 1,
        "embed_dim": len(space.embed_dims),
        "decision": space.num_decisions,
        "patches_left": 1,
        "macs_spent": 1,
    }
    if observation not in OBSERVATIONS:
        raise ValueError(f"observation={observation!r} is unknown; choose one of {OBSERVATIONS}.")
    if observation == "constant":
        sizes = {"decision": space.num_decisions}
    elif observation == "cls_only":
        del sizes["max_prob"], sizes["entropy"]
    ends = np.cumsum(list(sizes.values())).tolist()
    return {name: slice(end - size, end) for (name, size), end in zip(sizes.items(), ends, strict=True)}


def observation_space(config: SupernetConfig, observation: str) -> gym.spaces.Box:
    """Flat float32 Box with finite bounds."""
    layout = observation_layout(config, observation)
    size = max(s.stop for s in layout.values())
    low, high = np.zeros(size, dtype=np.float32), np.ones(size, dtype=np.float32)
    if "class_token" in layout:
        bound = math.sqrt(config.embed_dim)  # a layer-normed vector of D entries cannot have one above sqrt(D - 1)
        low[layout["class_token"]], high[layout["class_token"]] = -bound, bound
        low[layout["log_norm"]], high[layout["log_norm"]] = -LOG_NORM_BOUND, LOG_NORM_BOUND
    return gym.spaces.Box(low, high, dtype=np.float32)


def observe(net: Supernet, state: InferenceState, observation: str, full_macs: int) -> Tensor:
    """Observations (B, O) float32 on the state's device.

    The class token is layer-normed over its active width and zero-padded; `log_norm` is the clipped logarithm of its
    root mean square. `max_prob` and `entropy` are those of the classifier applied to it, entropy as a fraction of the
    largest possible. `embed_dim` is the one-hot width of the last block, `decision` the one-hot coming decision (zero
    after the last).
    """
    config, space = net.config, net.space
    device, batch = state.tokens.device, len(state)
    decision = state.group - 1
    numbers = np.zeros((batch, 2 + len(space.embed_dims) + space.num_decisions), dtype=np.float32)
    numbers[:, 0] = (state.num_tokens - 1) / config.num_patches
    numbers[:, 1] = state.macs / full_macs
    numbers[np.arange(batch), 2 + np.searchsorted(space.embed_dims, state.embed_dim)] = 1
    if decision < space.num_decisions:
        numbers[:, 2 + len(space.embed_dims) + decision] = 1
    host = torch.from_numpy(numbers).to(device)
    one_hots = host[:, 2:].split([len(space.embed_dims), space.num_decisions], dim=1)

    layout = observation_layout(config, observation)
    parts = {"embed_dim": one_hots[0], "decision": one_hots[1], "patches_left": host[:, :1], "macs_spent": host[:, 1:2]}
    if "class_token" in layout:
        parts["class_token"], parts["log_norm"] = _normalised_class_token(net, state)
    if "max_prob" in layout:
        parts["max_prob"], parts["entropy"] = _confidence(net, state)
    return torch.cat([parts[name] for name in layout], dim=1).float()


def _normalised_class_token(net: Supernet, state: InferenceState) -> tuple[Tensor, Tensor]:
    """(B, D) layer-normed class token and (B, 1) log of its root mean square."""
    token, width = net.pooled(state)
    token = token.float()
    normed = torch.zeros(len(state), net.config.embed_dim, device=token.device)
    log_norm = torch.zeros(len(state), 1, device=token.device)
    order = np.argsort(width, kind="stable")
    for a, b in runs(width[order]):
        w = int(width[order[a]])
        rows = take_rows(token, order[a:b])[:, :w]
        index = torch.from_numpy(order[a:b]).to(token.device)
        normed[index, :w] = F.layer_norm(rows, (w,))
        log_norm[index] = rows.square().mean(1, keepdim=True).clamp_min(1e-12).sqrt().log()
    return normed, log_norm.clamp(-LOG_NORM_BOUND, LOG_NORM_BOUND)


def _confidence(net: Supernet, state: InferenceState) -> tuple[Tensor, Tensor]:
    """(B, 1) maximum probability and (B, 1) relative entropy of the classifier on the class token."""
    log_p = net.forward_head(state).float().log_softmax(-1)
    p = log_p.exp()
    entropy = -(p * log_p).sum(1, keepdim=True) / math.log(net.config.num_classes)
    return p.amax(1, keepdim=True).clamp(0, 1), entropy.clamp(0, 1)
