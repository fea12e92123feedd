"""Patch embeddings by name: the two of this package, those of timm's models as they are, and those of users."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, overload

from torch import nn

from .extension import Registry
from .layers import PatchEmbed

OWN_STEMS = ("patch", "conv")
TIMM = "timm/"
Stem = Callable[[Any], nn.Module]
"""Makes a module from a `SupernetConfig`: images (B, in_chans, S, S) to patches (B, num_patches, embed_dim)."""

STEMS: Registry[Stem] = Registry("stem", "register_stem", "stem")


@overload
def register_stem(name: str, make: Stem) -> Stem: ...


@overload
def register_stem(name: str, make: None = None) -> Callable[[Stem], Stem]: ...


def register_stem(name: str, make: Stem | None = None) -> Any:
    """Makes a patch embedding of your own known as `SupernetConfig(stem=name)`.

    It always runs at full width, as it is; its weights are saved with the supernet's, and its multiply-accumulates are
    counted by PyTorch's flop counter, on the device "meta".

    Args:
        name: Its name.
        make: From the configuration to a module that takes normalised images (B, in_chans, img_size, img_size) and
            gives patches (B, num_patches, embed_dim), row by row. None: this is a decorator.

    Returns:
        `make`; as a decorator, what was decorated.

    Raises:
        ValueError: If the name is taken, by another function or by this package.
    """
    if make is None:
        return lambda decorated: register_stem(name, decorated)
    if name in OWN_STEMS or name.startswith(TIMM):
        raise ValueError(f"stem={name!r} is one of this package's ({OWN_STEMS}, {TIMM}...); choose another name.")
    return STEMS.add(name, make)


def own_stem(stem: str) -> Stem | None:
    """What a user has registered under that name; None for the stems of this package and of timm."""
    if stem not in STEMS:
        return None
    return STEMS[stem]


def check_stem(stem: str, patch_size: int, embed_dim: int) -> None:
    """Checks what can be checked without making it.

    Raises:
        ValueError: If there is no such stem, or none for patches of that size or of that width.
    """
    if stem not in OWN_STEMS and not stem.startswith(TIMM) and stem not in STEMS:
        raise ValueError(
            f"stem={stem!r} is unknown; choose one of {OWN_STEMS}, '{TIMM}NAME' of a model of timm, or one that was "
            f"added with {STEMS.how} ({STEMS.names()})."
        )
    if stem == "conv" and patch_size % 4:
        raise ValueError(f"stem='conv' needs a patch_size that is a multiple of 4, not {patch_size}.")
    if stem == "conv" and embed_dim < 4:
        raise ValueError(
            f"stem='conv' needs an embed_dim of 4 or more, not {embed_dim}: it begins with a quarter of it."
        )


def make_stem(config: Any) -> nn.Module:
    """The patch embedding of a supernet: images (B, in_chans, S, S) to patches (B, num_patches, embed_dim).

    Args:
        config: Its `SupernetConfig`.

    Raises:
        ValueError: If it is the one of a model that this version of timm cannot make.
    """
    if config.stem in OWN_STEMS:
        return PatchEmbed(config.stem, config.patch_size, config.in_chans, config.embed_dim)
    if config.stem.startswith(TIMM):
        return _timm_stem(config.stem.removeprefix(TIMM), config)
    return STEMS[config.stem](config)


def _timm_stem(name: str, config: Any) -> nn.Module:
    # timm takes seconds to import, and few stems are its own.
    import timm

    sizes = {"img_size": config.img_size, "in_chans": config.in_chans, "embed_dim": config.embed_dim}
    try:
        # One block and one head: all but the stem is thrown away.
        model: Any = timm.create_model(name, depth=1, num_heads=1, num_classes=0, **sizes)
    except (RuntimeError, TypeError, AssertionError, ValueError) as e:
        raise ValueError(
            f"stem='{TIMM}{name}' with {sizes} cannot be made by timm {timm.__version__}: {e}; use the version with "
            "which the model was imported."
        ) from e
    stem: nn.Module = model.patch_embed
    return stem
