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
from supernet.runtime.packing import runs, take_rows

# What each observation consists of, in order.
_COUNTERS = ("embed_dim", "decision", "patches_left", "macs_spent")
OBSERVATION_PARTS = {
    "cls": ("class_token", "log_norm", "max_prob", "entropy", *_COUNTERS),
    "cls_only": ("class_token", "log_norm", *_COUNTERS),
    "constant": ("decision",),
    "key_mean": ("key_mean",),
}
OBSERVATIONS = tuple(OBSERVATION_PARTS)
LOG_NORM_BOUND = 5.0
# Far beyond what trained networks give; it is there so that the Box is finite.
KEY_MEAN_BOUND = 100.0


def action_space(space: SearchSpace, normalize_actions: bool) -> gym.spaces.Box:
    """Box(-1, 1) or, not normalised, the paper's Box(0, 1): mlp_ratio and embed_dim of every block, then keep rates."""
    return gym.spaces.Box(-1.0 if normalize_actions else 0.0, 1.0, (space.action_size,), np.float32)


def action_names(space: SearchSpace) -> list[str]:
    """What every entry of an action is for; blocks are those of the coming group, counted from 1."""
    blocks = range(1, space.blocks_per_decision + 1)
    rates = ["keep_rate"] if space.num_rates == 1 else [f"keep_rate {i + 1}" for i in range(space.num_rates)]
    return [*(f"mlp_ratio {i}" for i in blocks), *(f"embed_dim {i}" for i in blocks), *rates]


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


def encode_actions(unit: NDArray[np.float64], normalize_actions: bool) -> NDArray[np.float32]:
    """Inverse of `decode_actions`: [0, 1] to the Box."""
    return (2 * unit - 1 if normalize_actions else unit).astype(np.float32)


def observation_layout(config: SupernetConfig, observation: str, cost_conditioning: bool = False) -> dict[str, slice]:
    """Name and slice of every part of the observation vector, in order.

    Args:
        config: The supernet.
        observation: One of `OBSERVATIONS`.
        cost_conditioning: Whether the price of computation is observed, as the last entry.

    Raises:
        ValueError: If `observation` is unknown.
    """
    space = config.space
    if observation not in OBSERVATIONS:
        raise ValueError(f"observation={observation!r} is unknown; choose one of {OBSERVATIONS}.")
    sizes = {"class_token": config.embed_dim, "embed_dim": len(space.embed_dims), "decision": space.num_decisions}
    sizes["key_mean"] = config.num_tokens
    layout, end = {}, 0
    for name in (*OBSERVATION_PARTS[observation], *(["macs_weight"] if cost_conditioning else [])):
        layout[name] = slice(end, end + sizes.get(name, 1))
        end = layout[name].stop
    return layout


def observation_space(config: SupernetConfig, observation: str, cost_conditioning: bool = False) -> gym.spaces.Box:
    """Flat float32 Box with finite bounds."""
    layout = observation_layout(config, observation, cost_conditioning)
    size = max(s.stop for s in layout.values())
    low, high = np.zeros(size, dtype=np.float32), np.ones(size, dtype=np.float32)
    if "class_token" in layout:
        bound = math.sqrt(config.embed_dim)  # a layer-normed vector of D entries cannot have one above sqrt(D - 1)
        low[layout["class_token"]], high[layout["class_token"]] = -bound, bound
        low[layout["log_norm"]], high[layout["log_norm"]] = -LOG_NORM_BOUND, LOG_NORM_BOUND
    if "key_mean" in layout:
        low[layout["key_mean"]], high[layout["key_mean"]] = -KEY_MEAN_BOUND, KEY_MEAN_BOUND
    return gym.spaces.Box(low, high, dtype=np.float32)


def observe(
    net: Supernet,
    state: InferenceState,
    observation: str,
    full_macs: int,
    price: NDArray[np.float64] | None = None,
) -> Tensor:
    """Observations (B, O) float32 on the state's device.

    The class token is layer-normed over its active width and zero-padded; `log_norm` is the clipped logarithm of its
    root mean square. `max_prob` and `entropy` are those of the classifier applied to it, entropy as a fraction of the
    largest possible. `embed_dim` is the one-hot width of the last block, `decision` the one-hot coming decision (zero
    after the last). `key_mean` is the mean key of every token, clipped and zero-padded.

    Args:
        net: The supernet.
        state: The inference so far.
        observation: One of `OBSERVATIONS`.
        full_macs: MACs of the full network.
        price: (B,) price of computation in [0, 1], the last entry of the observation; None leaves it out.
    """
    config, space = net.config, net.space
    device, batch = state.tokens.device, len(state)
    decision = state.group - space.first_decided
    widths = len(space.embed_dims)
    numbers = np.zeros((batch, 3 + widths + space.num_decisions), dtype=np.float32)
    numbers[:, 0] = (state.num_tokens - config.num_prefix_tokens) / config.num_patches
    numbers[:, 1] = state.macs / full_macs
    numbers[:, 2] = 0 if price is None else price
    numbers[np.arange(batch), 3 + np.searchsorted(space.embed_dims, state.embed_dim)] = 1
    if decision < space.num_decisions:
        numbers[:, 3 + widths + decision] = 1
    host = torch.from_numpy(numbers).to(device).split([1, 1, 1, widths, space.num_decisions], dim=1)
    names = ("patches_left", "macs_spent", "macs_weight", "embed_dim", "decision")

    layout = observation_layout(config, observation, price is not None)
    parts = dict(zip(names, host, strict=True))
    if "class_token" in layout:
        parts["class_token"], parts["log_norm"] = _normalised_class_token(net, state)
    if "max_prob" in layout:
        parts["max_prob"], parts["entropy"] = _confidence(net, state)
    if "key_mean" in layout:
        parts["key_mean"] = state.padded_key_mean(config.num_tokens).clamp(-KEY_MEAN_BOUND, KEY_MEAN_BOUND)
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
