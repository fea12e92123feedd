"""Saving and loading supernets: a folder with `model.safetensors` and `config.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from .config import SupernetConfig
from .files import (
    WEIGHTS,
    check_kinds,
    check_shapes,
    check_tensors,
    read_safetensors,
    shapes_in,
    state_of,
    write_tensors,
)
from .plain import check_names
from .reading import read_json
from .registry import supernet_config
from .staging import finish_commit, staged
from .vit import Supernet

CONFIG = "config.json"


def save_pretrained(net: Supernet, folder: str | Path, dtype: torch.dtype = torch.float32) -> None:
    """Writes weights and configuration, both or none of them.

    Args:
        net: The supernet.
        folder: Created if missing.
        dtype: Of floating-point weights in the file; loading always gives float32.

    Raises:
        ValueError: If layers were replaced or parametrised, or the classifier is not the one of the configuration, so
            that the folder could not be loaded.
    """
    net.check_classifier()
    with torch.device("meta"):
        plain = Supernet(net.config)
    check_names(net.state_dict(), plain.state_dict(), "This supernet")
    tensors = {
        k: (v.to(dtype) if v.is_floating_point() else v).detach().cpu().contiguous()
        for k, v in net.state_dict().items()
    }
    with staged(Path(folder)) as stage:
        write_tensors(tensors, stage / WEIGHTS)
        (stage / CONFIG).write_text(json.dumps(net.config.to_dict(), indent=2) + "\n")


def load_config(folder: Path) -> SupernetConfig:
    """The configuration in a folder that `save_pretrained` wrote, without the weights.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is damaged, or the weights beside it are of other sizes.
    """
    finish_commit(folder)
    if not (folder / CONFIG).is_file():
        raise FileNotFoundError(f"{folder} holds no {CONFIG}; pass a folder written by save_pretrained.")
    config = read_json(folder / CONFIG, SupernetConfig, "save the supernet again")
    if (folder / WEIGHTS).is_file():
        _check_sizes(config, config.stands_for, folder / WEIGHTS, state_of(folder / WEIGHTS))
    return config


@lru_cache(maxsize=64)
def _check_sizes(config: SupernetConfig, stands_for: Any, weights: Path, state: Any) -> None:
    """Compares a configuration with the header of a file, before memory is taken for what it says.

    Raises:
        ValueError: If names or shapes differ, with the differences.
    """
    # `state`, as a file that is written again is looked at again; `stands_for`, as a name may get another meaning.
    check_shapes(shapes_in(weights), _shapes(config, stands_for), str(weights))


@lru_cache(maxsize=64)
def _shapes(config: SupernetConfig, stands_for: Any) -> dict[str, tuple[int, ...]]:
    """Name and shape of every weight of a supernet, none of which is made.

    Raises:
        ValueError: If they are too large for numbers.
    """
    try:
        with torch.device("meta"):
            net = Supernet(config)
    except RuntimeError as e:
        raise ValueError(f"There can be no supernet of {config}: {str(e).splitlines()[0]}.") from e
    return {k: tuple(v.shape) for k, v in net.state_dict().items()}


def from_pretrained(folder: str | Path) -> Supernet:
    """Loads what `save_pretrained` wrote, in evaluation mode on the CPU in float32.

    Raises:
        FileNotFoundError: If the folder or one of the two files is missing.
        ValueError: If a file is damaged or does not fit; nothing is half-loaded.
    """
    folder = Path(folder)
    # Initial weights, soon overwritten, must not move the random numbers of whoever loads a network in between.
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        net = Supernet(load_config(folder))
    load_weights(net, folder / WEIGHTS)
    return net.eval()


def load_weights(net: Supernet, path: str | Path) -> None:
    """Loads a safetensors file into `net`, completely or not at all.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged, holds NaN, or its keys, shapes or kinds of numbers differ; the differences
            are listed.
    """
    state, _ = read_safetensors(Path(path))
    own = net.state_dict()
    check_tensors(state, {k: tuple(v.shape) for k, v in own.items()}, str(path))
    check_kinds(state, own, str(path))
    net.load_state_dict(state)


def create_supernet(name: str, checkpoint: str | Path | None = None, **overrides: Any) -> Supernet:
    """A supernet by registered name.

    Args:
        name: One of `list_supernets()`.
        checkpoint: Folder written by `save_pretrained` (its configuration then counts), or a safetensors file with
            weights of exactly this configuration. None: random weights.
        overrides: Fields of `SupernetConfig` to replace, such as `num_classes=100`; of a mapping for `space` those of
            its search space, such as `space={"token_mode": "merge"}`.

    Raises:
        ValueError: If the name or an override is unknown, or the checkpoint does not fit.
        FileNotFoundError: If the checkpoint does not exist.
    """
    named, space = supernet_config(name).to_dict(), overrides.get("space")
    of_space = {"space": {**named["space"], **space}} if isinstance(space, Mapping) else {}
    config = SupernetConfig.from_dict({**named, **overrides, **of_space})
    if checkpoint is not None and Path(checkpoint).is_dir():
        net = from_pretrained(checkpoint)
        if overrides and net.config != config:
            raise ValueError(f"{checkpoint} was saved with another configuration than {name!r} with {overrides!r}.")
        return net
    net = Supernet(config)
    if checkpoint is not None:
        load_weights(net, checkpoint)
    return net.eval()
