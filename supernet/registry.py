"""Supernets by name: the paper's spaces, Digits', and those that users register."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, overload

from .config import SearchSpace, SupernetConfig
from .extension import Registry

Configuration = Callable[[], SupernetConfig]

SUPERNETS: Registry[Configuration] = Registry("supernet", "register_supernet", "supernet")


@overload
def register_supernet(name: str, config: Configuration) -> Configuration: ...


@overload
def register_supernet(name: str, config: None = None) -> Callable[[Configuration], Configuration]: ...


def register_supernet(name: str, config: Configuration | None = None) -> Any:
    """Makes `create_supernet(name)` known.

    As a function, `register_supernet("mine", make)`; as a decorator of the function that makes the configuration,
    `@register_supernet("mine")`.

    Args:
        name: Its name.
        config: Makes the configuration; None: this is a decorator.

    Returns:
        `config`; as a decorator, what was decorated.

    Raises:
        ValueError: If the name is taken by another configuration.
    """
    if config is None:
        return lambda decorated: register_supernet(name, decorated)
    return SUPERNETS.add(name, config, lambda a, b: a() == b())


def list_supernets() -> list[str]:
    """Names that `create_supernet` knows."""
    return sorted(SUPERNETS.names())


def supernet_config(name: str) -> SupernetConfig:
    """The configuration registered under `name`.

    Raises:
        ValueError: If the name is unknown.
    """
    if name not in SUPERNETS:
        raise ValueError(
            f"Unknown supernet {name!r}; registered are {list_supernets()}. "
            "Add yours with register_supernet(name, config)."
        )
    return SUPERNETS[name]()


# The search spaces of PRANCE (arXiv 2407.05010, table of search spaces; configs of the public repository).


@register_supernet("prance_vit_tiny")
def _tiny() -> SupernetConfig:
    return SupernetConfig(SearchSpace((3, 3, 3, 3), (176, 192, 216, 240), (2, 4, 6), (3,)))


@register_supernet("prance_vit_small")
def _small() -> SupernetConfig:
    return SupernetConfig(SearchSpace((3, 3, 3, 3), (320, 352, 368, 384, 400, 416), (2, 3.5, 5), (7,)))


@register_supernet("prance_vit_base")
def _base() -> SupernetConfig:
    return SupernetConfig(SearchSpace((3, 3, 3, 3), (672, 696, 720, 744, 768), (2, 3.5, 5), (12,)))


@register_supernet("digits")
def _digits() -> SupernetConfig:
    return SupernetConfig(
        space=SearchSpace((1, 3, 3, 3), (16, 32, 48, 64), (0.5, 1.0, 2.0), (1, 2, 3, 4), min_keep_rate=1 / 16),
        img_size=48,
        patch_size=12,
        in_chans=1,
        num_classes=10,
        head_dim=16,
        mean=(0.2,),
        std=(0.35,),
    )
