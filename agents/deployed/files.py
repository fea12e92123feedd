"""A model that looks, as a folder: `model.safetensors`, `config.json` and a model card; nothing pickled."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from prance_env.rewards.prices import CostConditioning
from supernet import Supernet, SupernetConfig, freeze
from supernet.files import WEIGHTS, check_tensors, read_safetensors
from supernet.staging import finish_commit, staged

from ..fitting import Interface
from .budgets import Calibration
from .convert import Plain, describe, from_description
from .menu import MenuPlan
from .pictures import Preprocessing

CONFIG, CARD, FORMAT = "config.json", "README.md", 1
KIND = "prance-env AdaptiveViT"
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
        save_file(tensors, stage / WEIGHTS, {"format": "pt"})
        (stage / CONFIG).write_text(json.dumps(data, indent=2) + "\n")
        if again or not (folder / CARD).exists():
            (stage / CARD).write_text(card)


def described(folder: str | Path) -> dict[str, Any]:
    """What `config.json` says of a saved model; empty if the folder holds none."""
    try:
        data: dict[str, Any] = json.loads((Path(folder) / CONFIG).read_text())
        return data if data["kind"] == KIND else {}
    except (OSError, ValueError, TypeError, KeyError):
        return {}


def read(folder: Path) -> Parts:
    """What `write` wrote, on the CPU.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If one is damaged or does not fit; nothing is half-loaded.
    """
    finish_commit(folder)
    if not (folder / CONFIG).is_file():
        raise FileNotFoundError(f"{folder} holds no {CONFIG}; pass a folder that AdaptiveViT.save_pretrained wrote.")
    try:
        data: Mapping[str, Any] = json.loads((folder / CONFIG).read_text())
        if data.get("kind") != KIND or data["format"] != FORMAT:
            raise ValueError(f"kind={data.get('kind')!r}, format={data.get('format')!r}")
        config, seen = SupernetConfig.from_dict(data["supernet"]), data["interface"]
        conditioning = CostConditioning.from_plain(seen["prices"])
        interface = Interface(config, seen["observation"], seen["normalize_actions"], conditioning)
        with torch.random.fork_rng(devices=[]):
            net, agent = freeze(Supernet(config)), from_description(data["policy"], interface)
        calibration = None if data["spent"] is None else Calibration.from_dict(data["spent"])
        pictures, dtype = Preprocessing(**data["pictures"]), getattr(torch, data["dtype"])
        names = tuple(data["classes"])
        menu = None if data["choices"] is None else MenuPlan.from_dict(data["choices"], config.space)
    except (AttributeError, KeyError, TypeError, ValueError) as e:
        raise ValueError(f"{folder / CONFIG} does not describe an AdaptiveViT ({e!r}); save the model again.") from e
    modules = _modules(net.to(dtype), agent)
    found, _ = read_safetensors(folder / WEIGHTS)
    check_tensors(found, {k: tuple(v.shape) for k, v in modules.state_dict().items()}, str(folder / WEIGHTS))
    modules.load_state_dict(found)
    return Parts(net, agent, interface, pictures, names, calibration, menu)


def _modules(net: Supernet, agent: Plain) -> nn.ModuleDict:
    """What has weights, under the names of the file."""
    return nn.ModuleDict({"net": net, **({"agent": agent} if isinstance(agent, nn.Module) else {})})
