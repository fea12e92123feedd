"""timm's plain Vision Transformers as supernets: the same function at full width, elastic below it."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import Tensor, nn

from ..config import SearchSpace, SupernetConfig
from ..vit import Supernet
from .timm_kinds import check_family, check_kind, config_of
from .timm_models import create_model
from .timm_weights import converted, simplify
from .unwrap import check_weights, evaluation_copy, unwrapped

TOLERANCE = 1e-3


def from_timm(
    name_or_module: str | nn.Module,
    space: SearchSpace | None = None,
    *,
    pretrained: bool = False,
    lln: bool = False,
    weights: str | Path | None = None,
    num_classes: int | None = None,
    img_size: int | None = None,
    in_chans: int | None = None,
    stem: str | None = None,
) -> Supernet:
    """Makes a plain ViT of timm elastic: ViT, DeiT, DeiT-3, AugReg, DINOv2, CLIP's and SigLIP's towers and their like.

    Layer scales are folded into the layers before them. Weights are copied. Narrower subnets are useful only after
    training (a pretrained network was not trained to be cut).

    Args:
        name_or_module: A model name of timm (`timm.list_models("vit_*")`), or a module of class `VisionTransformer`, in
            any precision, on any device, compiled or wrapped for several devices. Layers of others that are linear in
            evaluation (LoRA, parametrised, with dropout) become linear layers.
        space: What can be chosen; its largest choices must be the model's sizes. None: `default_space`.
        pretrained: Whether to download the weights of a model given by name.
        lln: Whether to add the linear maps over group boundaries, as identities, for training.
        weights: A file with weights of the model of that name, such as a fine-tuned checkpoint: safetensors, or what
            `torch.save` wrote (read with `weights_only=True`).
        num_classes: Classes of a model given by name; None: as in `weights`, else timm's number.
        img_size: Its image size in pixels, for which positions are resampled; None: as in `weights`, else timm's.
        in_chans: Channels of its images; None: as in `weights`, else timm's.
        stem: Name of the patch embedding, if it is one of your own (`register_stem`).

    Returns:
        The supernet in evaluation mode, on the CPU in float32. Float images must be normalised as for the model; uint8
        images are normalised with the mean and std of its `pretrained_cfg`, which also says how images are cropped.

    Raises:
        ValueError: If the model is of another kind (the message says what stands in the way) or does not fit `space`,
            or the file does not hold its weights.
        FileNotFoundError: If there is no such file.
        RuntimeError: If timm does not know the name, or the weights cannot be downloaded.
    """
    if isinstance(name_or_module, str):
        _check_sizes(num_classes=num_classes, img_size=img_size, in_chans=in_chans)
        model = create_model(name_or_module, pretrained, weights, num_classes, img_size, in_chans)
        check_family(model)
        check_weights(model)
        model = model.eval()
    elif pretrained or any(given is not None for given in (weights, num_classes, img_size, in_chans)):
        raise ValueError("pretrained, weights, classes and sizes are for models that are given by name.")
    else:
        model = unwrapped(name_or_module)
        check_family(model)
        model = evaluation_copy(model)
    check_kind(model)
    images, expected = _answers(model)
    simplify(model)
    net = Supernet(config_of(model, space, lln, stem))
    net.load_state_dict(converted(model, net))
    _verify(net.eval(), images, expected)
    return net


def _check_sizes(**sizes: int | None) -> None:
    for argument, value in sizes.items():
        least = 0 if argument == "num_classes" else 1
        if value is not None and value < least:
            said = "; 0 is a network without a classifier" if argument == "num_classes" else ""
            raise ValueError(f"{argument}={value} must be {least} or more{said}.")


def timm_config(model: nn.Module, space: SearchSpace | None = None, *, stem: str | None = None) -> SupernetConfig:
    """The configuration of the supernet that `from_timm` would make.

    Args:
        model: A model of timm; its weights may be on the device "meta", where models of any size are made in no time.
        space: What can be chosen; None: `default_space`.
        stem: Name of the patch embedding, if it is one of your own.

    Raises:
        ValueError: If `from_timm` would refuse it for what it is made of.
    """
    model = unwrapped(model)
    check_family(model)
    check_kind(model)
    model = copy.deepcopy(model)
    simplify(model)
    return config_of(model, space, False, stem)


@torch.no_grad()
def _answers(model: nn.Module) -> tuple[Tensor, Tensor]:
    """Noise, and what the model makes of it.

    Raises:
        ValueError: If it does not run.
    """
    embed, generator = model.get_submodule("patch_embed"), torch.Generator().manual_seed(0)
    height, width = embed.img_size  # type: ignore[misc]
    channels = next(m.in_channels for m in embed.modules() if isinstance(m, nn.Conv2d))
    images = torch.randn(2, channels, height, width, generator=generator)
    try:
        return images, model(images).float()
    except Exception as e:  # whatever a model of any make answers
        raise ValueError(f"The model does not run on images of the shape {tuple(images.shape)}: {e}") from e


@torch.no_grad()
def _verify(net: Supernet, images: Tensor, expected: Tensor) -> None:
    """Both must agree; what the checks of parts do not know of would show here."""
    found = net(images)
    if found.shape != expected.shape:
        raise ValueError(
            f"The supernet gives {tuple(found.shape)} for two images, and the model {tuple(expected.shape)}; it is no "
            "plain ViT."
        )
    error = float((found - expected).abs().max() / expected.abs().max().clamp_min(1))
    if not error <= TOLERANCE:
        raise ValueError(f"The supernet's output differs from the model's by {error:.1e}; it is no plain ViT.")
