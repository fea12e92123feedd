"""Policies of Stable-Baselines3 as safetensors: what acts, without the pickled objects of SB3's own zip files."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import BasePolicy

from supernet.files import check_tensors, read_safetensors, write_tensors

from .hyperparams import algorithm_class

POLICY = "policy.safetensors"
"""Name of the file beside SB3's zip file."""
HEADER = "sb3_policy"
SPACES = ("observation_space", "action_space")
BOUNDS = ("low", "high")


def save_policy(model: BaseAlgorithm, path: Path, policy_kwargs: dict[str, Any]) -> None:
    """Writes the weights of a model's policy, and what it takes to make it again.

    Args:
        model: Of one of `ALGORITHMS`, for observations and actions that are boxes.
        path: The file.
        policy_kwargs: Arguments of its policy's class, as a preset has them: plain data.
    """
    tensors = {f"policy.{k}": v.detach().cpu().contiguous() for k, v in model.policy.state_dict().items()}
    tensors |= {
        f"{name}.{bound}": torch.from_numpy(getattr(getattr(model, name), bound).copy())
        for name in SPACES
        for bound in BOUNDS
    }
    header = {"algorithm": type(model).__name__.lower(), "policy_kwargs": policy_kwargs, "use_sde": model.use_sde}
    # Clones, as optimisers of shared networks hold the same weights under two names.
    write_tensors({k: v.clone() for k, v in tensors.items()}, path, {HEADER: json.dumps(header)})


def holds_policy(path: Path) -> bool:
    """Whether `save_policy` wrote a file; what is missing or damaged is none."""
    try:
        with safe_open(path, framework="pt") as f:
            texts = f.metadata() or {}
    except (OSError, SafetensorError):
        return False
    return HEADER in json.dumps(texts)


def load_policy(path: Path) -> BasePolicy:
    """The policy that `save_policy` wrote; its `predict` is the model's.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged.
        ModuleNotFoundError: If it is of sb3-contrib, which is not installed.
    """
    kind = "a policy of Stable-Baselines3"
    found, texts = read_safetensors(path, kind=kind)
    try:
        header = json.loads(texts[HEADER])
        arguments = dict(header["policy_kwargs"])
        bounds = [[found.pop(f"{name}.{bound}").numpy() for bound in BOUNDS] for name in SPACES]
        spaces = [gym.spaces.Box(low, high, dtype=np.float32) for low, high in bounds]
        cls: Any = algorithm_class(header["algorithm"]).policy_aliases["MlpPolicy"]
        if "use_sde" in inspect.signature(cls).parameters:
            arguments["use_sde"] = header["use_sde"]
        # What others draw does not depend on whether a policy was loaded.
        with torch.random.fork_rng(devices=[]):
            policy: BasePolicy = cls(*spaces, lambda progress: 0.0, **arguments)
    except (AssertionError, AttributeError, KeyError, TypeError, ValueError, RuntimeError) as e:
        raise ValueError(f"{path} is damaged or not {kind} ({e!r}); train the agent again.") from e
    weights = {k.removeprefix("policy."): v for k, v in found.items()}
    check_tensors(weights, {k: tuple(v.shape) for k, v in policy.state_dict().items()}, str(path), owner="policy")
    policy.load_state_dict(weights)
    policy.set_training_mode(False)
    return policy
