"""Saving and loading `PrancePPO`: a folder with `config.json` and `model.safetensors`, nothing pickled.

`config.json` holds what does not change in training: settings, seed, spaces, the range of the prices.
`model.safetensors` holds what does: weights, moments of the optimiser, the generator, counters.
Both change at once: a killed process leaves the old or the new agent.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import SyncVectorEnv, VectorEnv
from torch import Tensor
from typing_extensions import NotRequired, TypedDict

from prance_env.rewards.prices import CostConditioning
from prance_env.settings import EnvSettings
from supernet.files import WEIGHTS, check_shapes, check_tensors, read_safetensors, shapes_in, write_tensors
from supernet.reading import STRICT, read_json
from supernet.staging import finish_commit, staged

from .config import PrancePPOConfig
from .policy import GaussianPolicy

CONFIG = "config.json"
BOX_KEYS = ("low", "high")


class Trained(Protocol):
    """What is saved of a `PrancePPO`."""

    config: PrancePPOConfig
    seed: int
    device: torch.device
    policy: GaussianPolicy
    optimizer: torch.optim.Adam
    generator: torch.Generator
    num_timesteps: int
    n_updates: int
    observation_space: Any
    action_space: Any
    price_range: tuple[float, float] | None


class Bounds(TypedDict):
    """A box."""

    low: list[float]
    high: list[float]


class Written(TypedDict):
    """What `config.json` holds."""

    agent: Literal["PrancePPO"]
    config: dict[str, Any]
    seed: int
    observation_space: Bounds
    action_space: Bounds
    cost_conditioning: NotRequired[list[float]]


Bounds.__pydantic_config__ = STRICT  # type: ignore[attr-defined]
Written.__pydantic_config__ = STRICT  # type: ignore[attr-defined]


class Saved(NamedTuple):
    """What `config.json` says: settings, seed, observation and action space, the range of the prices if it names one,
    and the file's digest."""

    config: PrancePPOConfig
    seed: int
    spaces: tuple[gym.spaces.Box, gym.spaces.Box]
    price_range: tuple[float, float] | None
    digest: str


def price_range(conditioning: CostConditioning | None) -> tuple[float, float] | None:
    """Lowest and highest price; None if there is but one."""
    return None if conditioning is None else (conditioning.low, conditioning.high)


def price_range_in(env: VectorEnv[Any, Any, Any], noted: tuple[float, float] | None) -> tuple[float, float] | None:
    """`price_range` of the environments in a batch, a native one or Gymnasium's; `noted` if they are others' and say
    nothing of prices."""
    inner: Any = env.unwrapped
    if isinstance(inner, SyncVectorEnv):
        inner = inner.envs[0].unwrapped
    settings = getattr(inner, "settings", None)
    return price_range(settings.conditioning) if isinstance(settings, EnvSettings) else noted


def save(agent: Trained, folder: Path) -> None:
    """Writes `agent` to `folder`, which is created if missing; both files or none of them."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; PrancePPO is saved as a folder, so pass another path.")
    text = (
        json.dumps(
            {
                "agent": "PrancePPO",
                "config": agent.config.to_dict(),
                "seed": agent.seed,
                "observation_space": {k: getattr(agent.observation_space, k).tolist() for k in BOX_KEYS},
                "action_space": {k: getattr(agent.action_space, k).tolist() for k in BOX_KEYS},
                **({} if agent.price_range is None else {"cost_conditioning": agent.price_range}),
            },
            indent=2,
        )
        + "\n"
    )
    tensors = {name: t.detach().cpu().contiguous() for name, t in _state(agent).items()}
    header = json.dumps({"config_sha256": _digest(text), "device": agent.device.type})
    with staged(folder) as stage:
        (stage / CONFIG).write_text(text)
        write_tensors(tensors, stage / WEIGHTS, {"PrancePPO": header})


def read(folder: Path) -> Saved:
    """What a folder says about its agent, without the weights.

    Raises:
        FileNotFoundError: If the folder or a file in it is missing.
        ValueError: If the configuration is damaged.
    """
    text = _read_text(folder)
    data: Any = read_json(folder / CONFIG, Written, "save the agent again")
    try:
        config = PrancePPOConfig.from_dict(data["config"])
        observation, action = (
            gym.spaces.Box(np.float32(data[name]["low"]), np.float32(data[name]["high"]), dtype=np.float32)
            for name in ("observation_space", "action_space")
        )
        conditioning = CostConditioning.from_plain(data.get("cost_conditioning"))
    except (AssertionError, AttributeError, KeyError, OverflowError, RuntimeError, TypeError, ValueError) as e:
        raise damaged(folder, e) from e
    _check_sizes(folder, config, observation, action)
    return Saved(config, data["seed"], (observation, action), price_range(conditioning), _digest(text))


def _check_sizes(folder: Path, config: PrancePPOConfig, observation: gym.spaces.Box, action: gym.spaces.Box) -> None:
    """Compares the networks that a configuration asks for with the header of the weights, before they are made.

    Raises:
        ValueError: If shapes differ.
    """
    try:
        with torch.device("meta"):
            policy = GaussianPolicy(int(observation.shape[0]), action, config.hidden)
    except (IndexError, RuntimeError) as e:
        raise damaged(folder, e) from e
    found = {k: shape for k, shape in shapes_in(folder / WEIGHTS).items() if k.startswith("policy.")}
    expected = {f"policy.{k}": tuple(v.shape) for k, v in policy.state_dict().items()}
    check_shapes(found, expected, str(folder / WEIGHTS))


def damaged(folder: Path, error: Exception) -> ValueError:
    """What to raise about a configuration that no agent can be made of."""
    return ValueError(f"{folder / CONFIG} is not a PrancePPO's configuration ({error!r}); save the agent again.")


def _read_text(folder: Path) -> str:
    if not folder.exists():
        raise FileNotFoundError(f"There is no folder {folder}; pass one that PrancePPO.save has written.")
    if not folder.is_dir():
        raise ValueError(f"{folder} is a file; pass a folder that PrancePPO.save has written. SB3's .zip and other "
                         "pickled files are not loaded here.")  # fmt: skip
    finish_commit(folder)
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} holds no {name}; pass a folder that PrancePPO.save has written.")
    try:
        return (folder / CONFIG).read_text()
    except UnicodeDecodeError as e:
        raise ValueError(f"{folder / CONFIG} is not text ({e}); save the agent again.") from e


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _state(agent: Trained) -> dict[str, Tensor]:
    """Everything that training changes, by name; the tensors are the agent's own where it has them as tensors."""
    tensors = {f"policy.{k}": v for k, v in agent.policy.state_dict().items()}
    names = {p: k for k, p in agent.policy.named_parameters()}
    for group in agent.optimizer.param_groups:
        for parameter in group["params"]:
            state = agent.optimizer.state[parameter]
            zeros = {"step": torch.zeros(()), "exp_avg": parameter * 0, "exp_avg_sq": parameter * 0}
            tensors |= {f"adam.{names[parameter]}.{k}": state.get(k, zeros[k]) for k in zeros}
    tensors["generator"] = agent.generator.get_state()
    tensors["counters"] = torch.tensor([agent.num_timesteps, agent.n_updates])
    return tensors


def restore(agent: Trained, folder: Path, digest: str) -> None:
    """Reads the state into `agent`, completely or not at all; `digest` is that of its configuration.

    Raises:
        ValueError: If the file is damaged, or belongs to another configuration.
    """
    path = folder / WEIGHTS
    kind = "a PrancePPO's safetensors file"
    found, texts = read_safetensors(path, kind=kind)
    try:
        header = json.loads(texts["PrancePPO"])
    except (KeyError, ValueError) as e:
        raise ValueError(f"{path} is damaged or not {kind} ({e}); save the agent again.") from e
    if header.get("config_sha256") != digest:
        raise ValueError(f"{path} does not belong to the {CONFIG} beside it; copy both from the same folder.")
    expected = _state(agent)
    if header.get("device") != agent.device.type:  # its generators are of another kind
        expected["generator"] = found.get("generator", torch.empty(0))
    shapes = {k: tuple(v.shape) for k, v in expected.items()}
    dtypes = {k: v.dtype for k, v in expected.items()}
    check_tensors(found, shapes, str(path), dtypes, owner="agent")
    agent.policy.load_state_dict({k.removeprefix("policy."): v for k, v in found.items() if k.startswith("policy.")})
    names = {p: k for k, p in agent.policy.named_parameters()}
    for group in agent.optimizer.param_groups:
        for p in group["params"]:
            keys = ("step", "exp_avg", "exp_avg_sq")
            agent.optimizer.state[p] = {k: found[f"adam.{names[p]}.{k}"].to(agent.device) for k in keys}
    agent.num_timesteps, agent.n_updates = found["counters"].tolist()
    if header.get("device") == agent.device.type:
        agent.generator.set_state(found["generator"])
    else:
        agent.generator.manual_seed(agent.seed + agent.num_timesteps)
