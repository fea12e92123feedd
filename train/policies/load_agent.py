"""Agents by name or path."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from agents.authors_selector import WIDTHS_PER_ACTION, PranceSelector, load_prance_selector
from agents.baselines import BaselineAgent, FullAgent, RandomAgent
from agents.prance_ppo.algorithm import PrancePPO
from agents.prance_ppo.files import WEIGHTS
from agents.protocol import Agent
from prance_env.settings import EnvSettings

from ..runs.folder import read_config
from .registry import ALGORITHMS


def load_agent(name: str, settings: EnvSettings, seed: int = 0) -> Agent:
    """An agent by name or path.

    Args:
        name: "full", "random", a run folder of `train_agent`, a JSON file that a baseline saved, a folder that
            `PrancePPO.save` wrote, a file that `PranceSelector.save` wrote, or the authors' selector as a `.pth` file.
            SB3's `model.zip` holds pickled objects: load only what you trust.
        settings: Environment that the agent is to act in.
        seed: Seed of the random agent.

    Raises:
        FileNotFoundError: If there is nothing at that path.
        ValueError: If the agent was made for other spaces.
    """
    config = settings.config()
    if name in ("full", "random"):
        if name == "full":
            return FullAgent(config, settings.observation, settings.normalize_actions)
        return RandomAgent(config, settings.observation, settings.normalize_actions, seed)
    path = Path(name)
    if path.suffix == ".json":
        agent = BaselineAgent.load(path)
        if agent.config != config:
            raise ValueError(f"{name} was made for another supernet than this environment's.")
        return agent
    model = _load_trained(path, settings)
    observation_space, action_space = settings.spaces()
    seen, taken = (getattr(model, f"{name}_space", None) for name in ("observation", "action"))
    fits = seen in (None, observation_space) and taken in (None, action_space)
    if isinstance(model, PranceSelector):
        fits = model.observation_space.shape == observation_space.shape and taken == action_space
    if not fits:
        raise ValueError(
            f"{name} was trained for observations {seen} and actions {taken}; this environment has "
            f"{observation_space} and {action_space}. Use the settings it was trained with."
        )
    return model


def _load_trained(path: Path, settings: EnvSettings) -> Any:
    """An agent with weights, by what is at `path`."""
    if path.suffix == ".safetensors":
        return PranceSelector.load(path)
    if path.suffix in (".pth", ".pt"):
        num_rates = settings.config().space.action_size - WIDTHS_PER_ACTION
        return load_prance_selector(path, num_rates, settings.normalize_actions)
    if (path / WEIGHTS).is_file():
        return PrancePPO.load(path)
    if any(path.glob("model*")):
        algorithm = ALGORITHMS[read_config(path)["algo"]]
        if (model := path / f"model{algorithm.suffix}").exists():
            return algorithm.load(model)
    raise FileNotFoundError(
        f"{str(path)!r} is no agent: pass 'full', 'random', a .json file, a run folder with a model, a folder that "
        "PrancePPO.save has written, a selector's .safetensors, or the .pth file of PRANCE's authors."
    )
