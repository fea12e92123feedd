"""Modules as people have them, wrapped, compiled, in half precision, with adapters: what they compute in evaluation.

A supernet copies weights, so what else happens in a call of a layer must be known: it is folded into weights where that
is exact, and refused by name otherwise.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from timm.layers import DropPath, PatchDropout
from torch import Tensor, nn

from ..plain import PERMANENT

WRAPPERS = {
    "OptimizedModule": "_orig_mod",
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "AveragedModel": "module",
    "ModelEma": "ema",
    "ModelEmaV2": "module",
    "ModelEmaV3": "module",
}
"""Classes of modules that call another one and change nothing of its result, and where they hold it."""

NOTHING = (nn.Identity, nn.Dropout, DropPath, PatchDropout)
TOLERANCE = 1e-4


def unwrapped(module: nn.Module) -> nn.Module:
    """The module inside `torch.compile`, `DataParallel`, `DistributedDataParallel` and moving averages of weights."""
    while isinstance(inner := getattr(module, WRAPPERS.get(type(module).__name__, ""), None), nn.Module):
        module = inner
    return module


def evaluation_copy(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode, in float32 on the CPU, whose children are unwrapped.

    Args:
        model: Unchanged.

    Raises:
        ValueError: If a part of it has hooks or another `forward` put into it, or has no weights.
    """
    for name, part in model.named_modules():
        own = vars(part)
        if own["_forward_hooks"] or own["_forward_pre_hooks"]:
            raise ValueError(
                f"{name or 'The model'} has hooks, which a supernet would not call. Remove them or make what they do "
                f"permanent first ({PERMANENT}, remove_weight_norm)."
            )
        if "forward" in own and type(part).__name__ not in WRAPPERS:
            raise ValueError(
                f"The method forward of {name or 'the model'} was replaced, which a supernet would not call; pass the "
                "model without it (of accelerate: unwrap_model(model, keep_fp32_wrapper=False))."
            )
    check_weights(model)
    copied = copy.deepcopy(model).float().cpu().eval()
    for part in copied.modules():
        for name, child in part.named_children():
            if (inner := unwrapped(child)) is not child:
                setattr(part, name, inner)
    return copied


def check_weights(model: nn.Module) -> None:
    """Whether there are any.

    Raises:
        ValueError: If some of the model's are on the device "meta".
    """
    if meta := [name for name, tensor in model.state_dict().items() if tensor.is_meta]:
        raise ValueError(f"The model has no weights: {meta[0]} is on the device 'meta'. Load them first.")


def does_nothing(module: Any) -> bool:
    """Whether a module, or none, gives in evaluation what it is given."""
    return module is None or type(module) in NOTHING


def effective(module: nn.Module) -> nn.Module:
    """The one module of a `Sequential` that does anything in evaluation; the module itself if it is something else."""
    while type(module) is nn.Sequential:
        parts = [part for part in module if not does_nothing(part)]
        if len(parts) > 1:
            break
        module = parts[0] if parts else nn.Identity()
    return module


def linear_of(module: nn.Module, where: str, features: int) -> nn.Linear:
    """The linear layer that a module is in evaluation, whatever it is made of: LoRA, parametrised, with dropout.

    Args:
        module: Takes (N, features).
        where: Its name, for the message.
        features: Inputs.

    Raises:
        ValueError: If it computes anything else.
    """
    module = effective(module)
    if type(module) is nn.Linear:
        return module
    found = _probed(module, features)
    if found is None:
        raise ValueError(
            f"{where} of type {type(module).__name__} is no linear layer in evaluation; merge it into one "
            f"({PERMANENT}) or replace it."
        )
    return found


@torch.no_grad()
def _probed(module: nn.Module, features: int) -> nn.Linear | None:
    """The linear layer that gives the same, by what the module makes of unit vectors; None if there is none."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(8, features, generator=generator)
    try:
        bias: Tensor = module(torch.zeros(1, features))[0]
        rows: Tensor = module(torch.eye(features)) - bias
        answers: Tensor = module(noise)
    except Exception:  # whatever a module of any kind answers to what it does not take
        return None
    if rows.shape != (features, len(bias)):
        return None
    layer = nn.Linear(features, len(bias))
    layer.weight.copy_(rows.T)
    layer.bias.copy_(bias)
    wanted = layer(noise)
    return layer if (answers - wanted).abs().max() <= TOLERANCE * wanted.abs().max().clamp_min(1) else None
