"""Which supernet and which subnet of it a command line means."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from agents.baselines import BaselineAgent, StaticAgent
from prance_env.supernets import BUNDLED
from supernet import SubnetConfig, Supernet, SupernetConfig, create_supernet, from_pretrained, list_supernets
from supernet.reading import parsed_json, read_text


def open_supernet(name_or_folder: str) -> Supernet:
    """A registered supernet, with its bundled weights or, without any, random ones; or the one that
    `save_pretrained` wrote to a folder.

    Raises:
        ValueError: If it is neither, or the folder is damaged.
        FileNotFoundError: If the folder holds no supernet.
    """
    if name_or_folder in list_supernets():
        return create_supernet(name_or_folder, BUNDLED.get(name_or_folder))
    if Path(name_or_folder).is_dir():
        return from_pretrained(name_or_folder)
    raise ValueError(
        f"supernet={name_or_folder!r} is neither one of {list_supernets()} nor a folder written by save_pretrained."
    )


def is_untrained(name_or_folder: str) -> bool:
    """Whether `open_supernet` draws the weights at random: of a registered supernet that none are bundled of."""
    return name_or_folder in list_supernets() and name_or_folder not in BUNDLED


def choose_subnet(
    config: SupernetConfig,
    subnet: str | None = None,
    keep_rate: Sequence[float] = (),
    embed_dim: int | None = None,
    mlp_ratio: float | None = None,
) -> SubnetConfig:
    """One subnet from what was typed.

    Args:
        config: The supernet.
        subnet: "full", "min", JSON text of `SubnetConfig.to_json`, a file of it, or a file that a `StaticAgent` saved.
            None: as the other arguments say.
        keep_rate: Keep rate of every decision; one, or one for each stage of the token mode. Empty: 1.
        embed_dim: Width of every decided block; None is the full one.
        mlp_ratio: Hidden width of every decided MLP over its width; None is the full one.

    Raises:
        FileNotFoundError: If `subnet` names a file that does not exist.
        ValueError: If both `subnet` and sizes are given, or it is not exactly one subnet of the search space.
    """
    sizes = {"keep_rate": [*keep_rate] or None, "embed_dim": embed_dim, "mlp_ratio": mlp_ratio}
    given = [f"{name}={value}" for name, value in sizes.items() if value is not None]
    if subnet is not None and given:
        raise ValueError(f"subnet={subnet!r} and {', '.join(given)} were both given; choose one of the two ways.")
    chosen = _uniform(config, keep_rate, embed_dim, mlp_ratio) if subnet is None else _named(config, subnet)
    if len(chosen) != 1:
        raise ValueError(f"subnet={subnet!r} holds {len(chosen)} subnets; pass exactly one.")
    chosen.validate(config.space)
    return chosen


def _uniform(
    config: SupernetConfig, keep_rate: Sequence[float], embed_dim: int | None, mlp_ratio: float | None
) -> SubnetConfig:
    space, full = config.space, SubnetConfig.full(config.space)
    decided = torch.arange(space.depth) >= space.blocks(space.first_decided).start
    if len(keep_rate) not in (0, 1, space.num_rates):
        raise ValueError(
            f"keep_rate={[*keep_rate]} has {len(keep_rate)} entries; token_mode={space.token_mode!r} takes one for all "
            f"stages or {space.num_rates}."
        )
    rates = full.keep_rate
    if keep_rate:
        rates = torch.tensor(keep_rate, dtype=torch.float64).expand_as(rates)
    return SubnetConfig(
        full.embed_dim if embed_dim is None else torch.where(decided, embed_dim, full.embed_dim),
        full.mlp_ratio if mlp_ratio is None else torch.where(decided, mlp_ratio, full.mlp_ratio),
        rates,
    )


def _named(config: SupernetConfig, subnet: str) -> SubnetConfig:
    if subnet in ("full", "min"):
        return getattr(SubnetConfig, subnet)(config.space)
    text = subnet
    if not subnet.lstrip().startswith("{"):
        path = Path(subnet)
        if not path.is_file():
            raise FileNotFoundError(f"subnet={subnet!r} is no file, nor 'full', 'min' or JSON text of a subnet.")
        text = read_text(path, "write it with SubnetConfig.to_json")
    data = parsed_json(text, f"subnet={subnet!r}", "write it with SubnetConfig.to_json")
    if isinstance(data, dict) and "agent" in data:
        return _of_agent(config, Path(subnet))
    return SubnetConfig.from_json(text)


def _of_agent(config: SupernetConfig, path: Path) -> SubnetConfig:
    agent = BaselineAgent.load(path)
    if not isinstance(agent, StaticAgent):
        raise ValueError(f"{path} holds a {type(agent).__name__}; only a StaticAgent is one subnet for all images.")
    if agent.config.unnamed != config.unnamed:
        raise ValueError(f"{path} was made for another supernet; pass its folder with --supernet.")
    return agent.subnet
