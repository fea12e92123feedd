"""A model that looks, as a folder: `model.safetensors`, `config.json` and a model card; nothing pickled."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prance_env.rewards.prices import CostConditioning
from prance_env.supernets import DTYPES
from supernet import Supernet, SupernetConfig, freeze
from supernet.files import WEIGHTS, check_tensors, read_safetensors, write_tensors
from supernet.reading import read_json
from supernet.staging import finish_commit, staged

from ..fitting import Interface
from .budgets import Calibration
from .convert import Plain, describe, from_description
from .menu import MenuPlan
from .pictures import Preprocessing

CONFIG, CARD, FORMAT = "config.json", "README.md", 1
KIND = "prance-env AdaptiveViT"
SAVED_DTYPES = {**DTYPES, "float64": torch.float64}
REMEDY = "save the model again"
RUN = "config.yml"
"""What tells that a folder holds a run of a command: its settings."""


@dataclass(frozen=True)
class Parts:
    """What a folder holds.

    Attributes:
        net: The supernet, frozen.
        agent: The policy.
        interface: What the policy sees.
        preprocessing: Of pictures.
        names: Of the classes.
        calibration: What it spends at which price; None: not measured.
        menu: Its menu; None: it has none.
    """

    net: Supernet
    agent: Plain
    interface: Interface
    preprocessing: Preprocessing
    names: tuple[str, ...]
    calibration: Calibration | None
    menu: MenuPlan | None = None


def write(parts: Parts, card: str, folder: Path) -> None:
    """Writes a model, all files or none.

    Args:
        parts: The model.
        card: Its model card.
        folder: Created if missing. A README.md that no model of ours brought is kept.

    Raises:
        FileExistsError: If something else than a model lies there, such as a run, a supernet or an export.
    """
    finish_commit(folder)
    if (folder / RUN).exists():
        # Where a model lies, commands take it, and would no longer see the agent of the run.
        raise FileExistsError(f"{folder} holds a run ({RUN}); pass another folder, such as {folder / 'saved'}.")
    again = bool(described(folder))
    if others := [] if again else [name for name in (WEIGHTS, CONFIG) if (folder / name).exists()]:
        raise FileExistsError(
            f"{folder} holds {' and '.join(others)} of something else than an AdaptiveViT; pass another folder, or "
            "remove what is there."
        )
    parts.net.check_classifier()
    conditioning, net = parts.interface.conditioning, parts.net
    prices = None if conditioning is None else (conditioning.low, conditioning.high, conditioning.fixed)
    data = {
        "format": FORMAT,
        "kind": KIND,
        "supernet": net.config.to_dict(),
        "dtype": str(net.pos_embed.dtype).removeprefix("torch."),
        "interface": {
            "observation": parts.interface.observation,
            "normalize_actions": parts.interface.normalize_actions,
            "prices": None if prices is None else [v for v in prices if v is not None],
        },
        "policy": describe(parts.agent),
        "pictures": parts.preprocessing.to_dict(),
        "classes": [*parts.names],
        "spent": None if parts.calibration is None else parts.calibration.to_dict(),
        "choices": None if parts.menu is None else parts.menu.to_dict(),
    }
    tensors = {k: v.detach().cpu().contiguous() for k, v in _modules(parts.net, parts.agent).state_dict().items()}
    with staged(folder) as stage:
        write_tensors(tensors, stage / WEIGHTS)
        (stage / CONFIG).write_text(json.dumps(data, indent=2) + "\n")
        if again or not (folder / CARD).exists():
            (stage / CARD).write_text(card)


def described(folder: str | Path) -> dict[str, Any]:
    """What `config.json` says of a saved model; empty if the folder holds none."""
    try:
        data = read_json(Path(folder) / CONFIG, dict[str, Any], REMEDY)
    except (OSError, ValueError):
        return {}
    return data if data.get("kind") == KIND else {}


def read(folder: Path) -> Parts:
    """What `write` wrote, on the CPU.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If one is damaged or does not fit; nothing is half-loaded.
    """
    finish_commit(folder)
    if not (folder / CONFIG).is_file():
        raise FileNotFoundError(f"{folder} holds no {CONFIG}; pass a folder that AdaptiveViT.save_pretrained wrote.")
    data = read_json(folder / CONFIG, dict[str, Any], REMEDY)
    try:
        if data.get("kind") != KIND or data["format"] != FORMAT:
            raise ValueError(f"kind={data.get('kind')!r}, format={data.get('format')!r}")
        config, seen = SupernetConfig.from_dict(data["supernet"]), data["interface"]
        conditioning = CostConditioning.from_plain(seen["prices"])
        interface = Interface(config, seen["observation"], seen["normalize_actions"], conditioning)
        shapes = _shapes(config, data["policy"], interface)
        calibration = None if data["spent"] is None else Calibration.from_dict(data["spent"])
        if data["dtype"] not in SAVED_DTYPES:
            raise ValueError(f"dtype={data['dtype']!r} must be one of {[*SAVED_DTYPES]}")
        pictures, names = Preprocessing(**data["pictures"]), tuple(data["classes"])
        menu = None if data["choices"] is None else MenuPlan.from_dict(data["choices"], config.space)
    except (AttributeError, KeyError, OverflowError, RuntimeError, TypeError, ValueError) as e:
        raise ValueError(f"{folder / CONFIG} does not describe an AdaptiveViT ({e!r}); {REMEDY}.") from e
    found, _ = read_safetensors(folder / WEIGHTS)
    check_tensors(found, shapes, str(folder / WEIGHTS))
    with torch.random.fork_rng(devices=[]):
        net, agent = freeze(Supernet(config)), from_description(data["policy"], interface)
    modules = _modules(net.to(SAVED_DTYPES[data["dtype"]]), agent)
    modules.load_state_dict(found)
    return Parts(net, agent, interface, pictures, names, calibration, menu)


def _shapes(config: SupernetConfig, policy: dict[str, Any], interface: Interface) -> dict[str, tuple[int, ...]]:
    """Name and shape of every weight that is described; none is made before the file's are known to be these.

    Raises:
        ValueError: If the policy is of no known kind.
    """
    # Baselines are tables of choices, which are read, and have no weights.
    with torch.device("meta" if policy.get("kind") == "network" else "cpu"):
        agent = from_description(policy, interface)
    with torch.device("meta"):
        modules = _modules(Supernet(config), agent)
    return {k: tuple(v.shape) for k, v in modules.state_dict().items()}


def _modules(net: Supernet, agent: Plain) -> nn.ModuleDict:
    """What has weights, under the names of the file."""
    return nn.ModuleDict({"net": net, **({"agent": agent} if isinstance(agent, nn.Module) else {})})
