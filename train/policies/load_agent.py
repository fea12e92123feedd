"""Agents by name or path."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agents.authors_selector import WIDTHS_PER_ACTION, PranceSelector, load_prance_selector
from agents.baselines import BaselineAgent, FullAgent, RandomAgent
from agents.fitting import Interface, fitted
from agents.prance_ppo.algorithm import PrancePPO
from agents.prance_ppo.files import WEIGHTS
from agents.protocol import Agent
from agents.sb3.policy_file import POLICY, load_policy
from agents.sb3.saved import load_model
from prance_env.settings import EnvSettings
from supernet.staging import finish_commit

from ..runs.folder import read_config
from ..runs.trust import check_trusted
from .registry import ALGORITHMS


def load_agent(name: str, settings: EnvSettings, seed: int = 0, trust: bool = False) -> Agent:
    """An agent by name or path.

    Args:
        name: "full", "random", a run folder of `train_agent`, a JSON file that a baseline saved, a zip file that a
            model of SB3 saved, a folder that `PrancePPO.save` wrote, a file that `PranceSelector.save` wrote, or the
            authors' selector as a `.pth` file. SB3's zip files hold pickled objects, and so does a `vecnormalize.pkl`
            beside one, through which its agent then looks. A run folder with a `policy.safetensors` needs neither.
        settings: Environment that the agent is to act in.
        seed: Seed of the random agent.
        trust: Whether to unpickle what this user has not written on this machine.

    Raises:
        FileNotFoundError: If there is nothing at that path.
        ValueError: If the agent was made for other spaces, or behind wrappers that are not known here; or if it would
            be unpickled, is somebody else's, and `trust` is False.
    """
    config = settings.config()
    if name in ("full", "random"):
        if name == "full":
            return FullAgent(config, settings.observation, settings.normalize_actions)
        return RandomAgent(config, settings.observation, settings.normalize_actions, seed)
    path = Path(name)
    agent = BaselineAgent.load(path) if path.suffix == ".json" else _load_trained(path, settings, trust)
    try:
        return fitted(agent, Interface.of(settings))
    except ValueError as e:
        raise ValueError(f"{name}: {e}") from e


def _load_trained(path: Path, settings: EnvSettings, trust: bool) -> Any:
    """An agent with weights, by what is at `path`."""
    if path.suffix == ".safetensors":
        return PranceSelector.load(path)
    if path.suffix in (".pth", ".pt"):
        num_rates = settings.config().space.action_size - WIDTHS_PER_ACTION
        return load_prance_selector(path, num_rates, settings.normalize_actions)
    if path.suffix == ".zip" and path.is_file():
        check_trusted(path, trust)
        return load_model(path)
    finish_commit(path)
    if (path / WEIGHTS).is_file():
        return PrancePPO.load(path)
    if any(path.glob("model*")):
        noted = read_config(path)
        algorithm = ALGORITHMS[noted["algo"]]
        if (model := path / f"model{algorithm.suffix}").exists():
            _check_noted(path, noted, settings)
            if algorithm.pickles and (policy := path / POLICY).is_file():
                return load_policy(policy)
            if algorithm.pickles:
                check_trusted(model, trust)
            return algorithm.load(model)
    raise FileNotFoundError(
        f"{str(path)!r} is no agent: pass 'full', 'random', a .json file, a run folder with a model, a folder that "
        "PrancePPO.save has written, a zip file of Stable-Baselines3, a selector's .safetensors, or the .pth file of "
        "PRANCE's authors."
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
