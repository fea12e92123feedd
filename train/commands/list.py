"""`prance list`."""

from __future__ import annotations

from dataclasses import dataclass

import gymnasium as gym
import numpy as np
from rich.console import Console

from prance_env.images.config import TIMM_READERS
from prance_env.images.loading import list_datasets
from prance_env.observations import list_observations
from prance_env.spaces import action_space, observation_space
from prance_env.supernets import BUNDLED, token_modes
from supernet import SubnetConfig, SupernetConfig, list_supernets, supernet_config, token_mode
from supernet.convert.clip_tags import CLIP_TAGS, RESULTS
from supernet.macs import remaining_macs, stem_macs, subnet_params

from ..own_modules import Imports
from ..policies.registry import ALGORITHMS
from ..report.tables import Table


@dataclass(frozen=True)
class List:
    """Show the registered environments, supernets, and agents.

    For example:

        prance list
    """

    imports: Imports = ()

    def run(self) -> None:
        """Runs the command."""
        console = Console()
        console.print(_environments())
        console.print(_supernets())
        console.print(_clip_tags())
        modes = [f"{m} (two keep rates)" if token_mode(m).num_rates == 2 else m for m in token_modes(SupernetConfig())]
        console.print(f"Observations (observation=): {', '.join(list_observations())}")
        console.print(f"Token modes (token_mode=): {', '.join(modes)}")
        sources = [*list_datasets(), "a folder", *(f"{reader}/..." for reader in TIMM_READERS)]
        console.print(f"Data sets (dataset=): {', '.join(sources)}")
        algorithms = ", ".join(ALGORITHMS)
        console.print(f"Agents: full, random (prance eval); algorithms: {algorithms} (prance train agent)")


def _environments() -> Table:
    """The registered environments, with their spaces and what they need."""
    table = Table(title="Environments (gym.make, gym.make_vec, make_sb3_env)")
    table.add_column("environment")
    for column in ("observation", "action", "supernet", "needs"):
        table.add_column(column)
    for spec in gym.registry.values():
        if spec.vector_entry_point == "prance_env.vector_env:PranceVectorEnv":
            given = {"supernet": "digits", "dataset": "digits", **spec.kwargs}
            config = supernet_config(given["supernet"])
            action = action_space(config.space, given.get("normalize_actions", True))
            observation = observation_space(config, given.get("observation", "cls"))
            needs = [] if given["supernet"] in BUNDLED or given.get("checkpoint") else ["checkpoint="]
            needs += [] if given["dataset"] else ["dataset="]
            table.add_row(
                spec.id,
                f"Box{observation.shape}",
                f"Box({action.low.min():g}, {action.high.max():g}, {action.shape})",
                given["supernet"],
                ", ".join(needs) or "nothing",
            )
    return table


def _supernets() -> Table:
    """The registered supernets, with their spaces and sizes."""
    table = Table(title="Supernets")
    table.add_column("supernet")
    for column in ("groups", "embed_dim", "mlp_ratio", "heads", "image", "MMACs", "params (M)"):
        table.add_column(column, justify="right" if column in ("MMACs", "params (M)") else "left")
    for name in list_supernets():
        config = supernet_config(name)
        space = config.space
        tokens = np.array([config.num_tokens])
        full_macs = stem_macs(config) + remaining_macs(config, 0, tokens).item()
        table.add_row(
            name,
            "+".join(map(str, space.groups)),
            " ".join(map(str, space.embed_dims)),
            " ".join(f"{r:g}" for r in space.mlp_ratios),
            " ".join(map(str, space.num_heads)),
            f"{config.in_chans}x{config.img_size}x{config.img_size}",
            f"{full_macs / 1e6:.4g}" if full_macs < 1e9 else f"{full_macs / 1e6:.0f}",
            f"{subnet_params(config, SubnetConfig.full(space)).item() / 1e6:.1f}",
        )
    return table


def _clip_tags() -> Table:
    """Weights of CLIP, with what they were trained on."""
    title = "Weights of CLIP (prance import clip MODEL --pretrained TAG)"
    table = Table(title=title, caption=f"Zero-shot accuracies of {RESULTS}")
    for column in ("model", "tag"):
        table.add_column(column)
    for column in ("trained on", "ImageNet"):
        table.add_column(column)
    for tag in CLIP_TAGS:
        table.add_row(tag.model, tag.tag, tag.data, f"{tag.top1:.2f} %")
    return table
