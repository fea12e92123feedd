"""Agents by name or path."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from agents.authors_selector import WIDTHS_PER_ACTION, PranceSelector, load_prance_selector
from agents.baselines import BaselineAgent, FullAgent, RandomAgent, StaticAgent, differences
from agents.deployed.files import read as read_deployed
from agents.fitting import Interface, fitted
from agents.prance_ppo.algorithm import PrancePPO
from agents.prance_ppo.files import WEIGHTS
from agents.protocol import Agent
from agents.sb3.policy_file import POLICY, holds_policy, load_policy
from agents.sb3.saved import load_model, pickles
from prance_env.settings import EnvSettings
from supernet import SubnetConfig
from supernet.checkpoint import CONFIG as SUPERNET
from supernet.extract import DESCRIPTION as STATIC
from supernet.reading import read_json
from supernet.staging import finish_commit

from ..runs.folder import CONFIG, read_config
from ..runs.trained import deployed_interface, trained_settings
from ..runs.trust import check_trusted
from .registry import ALGORITHMS


def load_agent(name: str, settings: EnvSettings, seed: int = 0, trust: bool = False) -> Agent:
    """An agent by name or path.

    Args:
        name: "full", "random", a run folder of `train_agent` or any model or checkpoint in it, a JSON file that a
            baseline or `SubnetConfig.to_json` saved, a zip file that a model of SB3 saved, a folder that
            `PrancePPO.save` or `AdaptiveViT.save_pretrained` wrote, a file that `PranceSelector.save` wrote, or the
            authors' selector as a `.pth` file. SB3's zip files hold pickled objects, and so does a `vecnormalize.pkl`
            beside one or in the folder of its name, through which its agent then looks. A run folder with a
            `policy.safetensors` needs neither.
        settings: Environment that the agent is to act in.
        seed: Seed of the random agent.
        trust: Whether to unpickle what this user has not written on this machine.

    Raises:
        FileNotFoundError: If there is nothing at that path.
        ValueError: If the agent was made for other spaces, or behind wrappers that are not known here, or was deployed
            with another supernet; or if it would be unpickled, is somebody else's, and `trust` is False.
    """
    config = settings.config()
    if name in ("full", "random"):
        if name == "full":
            return FullAgent(config, settings.observation, settings.normalize_actions)
        return RandomAgent(config, settings.observation, settings.normalize_actions, seed)
    path = Path(name)
    if noted := trained_settings(name):
        _check_noted(path, noted, settings)
    agent = _load_json(path, settings) if path.suffix == ".json" else _load_trained(path, settings, trust)
    try:
        return fitted(agent, Interface.of(settings))
    except ValueError as e:
        raise ValueError(f"{name}: {e}") from e


def _load_trained(path: Path, settings: EnvSettings, trust: bool) -> Any:
    """An agent with weights, by what is at `path`."""
    if path.name == WEIGHTS:
        path = path.parent
    if path.suffix == ".safetensors":
        return load_policy(path) if holds_policy(path) else PranceSelector.load(path)
    if path.suffix in (".pth", ".pt"):
        num_rates = settings.config().space.action_size - WIDTHS_PER_ACTION
        return load_prance_selector(path, num_rates, settings.normalize_actions)
    if path.suffix == ".zip" and path.is_file():
        for pickled in pickles(path):
            check_trusted(pickled, trust)
        return load_model(path)
    finish_commit(path)
    if deployed_interface(str(path)):
        return _load_deployed(path, settings)
    if (path / WEIGHTS).is_file() and not _is_network(path):
        return PrancePPO.load(path)
    if any(path.glob("model*")) and "algo" in (noted := read_config(path) if (path / CONFIG).is_file() else {}):
        algorithm = ALGORITHMS[noted["algo"]]
        if (model := path / f"model{algorithm.suffix}").exists():
            if algorithm.pickles and (policy := path / POLICY).is_file():
                return load_policy(policy)
            if algorithm.pickles:
                check_trusted(model, trust)
            return algorithm.load(model)
    raise FileNotFoundError(_no_agent(path))


def _load_json(path: Path, settings: EnvSettings) -> BaselineAgent:
    """What a baseline saved, or a subnet as the agent that always chooses it."""
    data = read_json(path, dict[str, Any], "save the agent again")
    if "agent" not in data and "keep_rate" in data:
        return StaticAgent(SubnetConfig.from_json(json.dumps(data)), settings.config())
    return BaselineAgent.from_dict(data, str(path))


def _load_deployed(path: Path, settings: EnvSettings) -> Any:
    """The agent of a folder that `AdaptiveViT.save_pretrained` wrote.

    Raises:
        ValueError: If the supernet in it is another one than the environment's.
    """
    parts = read_deployed(path)
    # The names of classes are no part of what is computed.
    saved, now = parts.net.config.unnamed, settings.config().unnamed
    if saved != now:
        raise ValueError(
            f"{path} was saved with another supernet than this environment's: {differences(saved, now)}. Evaluate it "
            "without --token-mode and --decide-first-group, on its own, with the --checkpoint that it was made from."
        )
    own, here = (dict(n.state_dict()) for n in (parts.net, settings.engine().net))
    same = own.keys() == here.keys() and all(torch.equal(here[k].cpu(), v.to(here[k].dtype)) for k, v in own.items())
    if not same:
        raise ValueError(
            f"{path} was saved with another supernet than this environment's; pass the --checkpoint that it was made "
            "from, or evaluate the run folder of its agent."
        )
    return parts.agent


def _is_network(path: Path) -> bool:
    """Whether a folder holds a supernet or a static network."""
    try:
        saved = read_json(path / SUPERNET, dict[str, Any], "save it again")
    except (OSError, ValueError):
        return (path / STATIC).is_file()
    return "space" in saved


def _no_agent(path: Path) -> str:
    """What is at a path instead of an agent, and what to do."""
    if "algo" in trained_settings(str(path)) and (last := sorted(path.glob("last*"))):
        begun = f"its training is not done: evaluate its checkpoint, --agent {last[0]}, or go on with it"
        return f"{path} holds no agent yet, as {begun}: prance train agent --resume --out {path}"
    if _is_network(path):
        return f"{path} is a network, and no agent; environments take a supernet as --checkpoint {path}."
    near = difflib.get_close_matches(str(path), ("full", "random"), n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return (
        f"{str(path)!r} is no agent: pass 'full', 'random', a .json file, a run folder with a model, a folder that "
        "PrancePPO.save or AdaptiveViT.save_pretrained has written, a zip file of Stable-Baselines3, a policy's or "
        f"selector's .safetensors, or the .pth file of PRANCE's authors.{hint}"
    )


def _check_noted(path: Path, noted: Mapping[str, Any], settings: EnvSettings) -> None:
    """Compares what a run says of its environment with what spaces need not show."""
    conditioning, price = settings.conditioning, noted.get("macs_weight")
    pairs = {
        "observation": (noted.get("observation", "cls"), settings.observation),
        "cost_conditioning": (
            list(price) if isinstance(price, list) else None,
            None if conditioning is None else [conditioning.low, conditioning.high],
        ),
    }
    if differing := [f"{k}={a!r} instead of {b!r}" for k, (a, b) in pairs.items() if a != b]:
        raise ValueError(f"{path} was trained with {', '.join(differing)}; pass the settings that it was trained with.")
