"""Layers whose weights are used without calling them, and what must not be done to those."""

from __future__ import annotations

from collections.abc import Iterable
from operator import methodcaller

from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

# Of these, weight and bias say all there is to say.
PLAIN = frozenset({nn.Linear, nn.LayerNorm, nn.RMSNorm, nn.Identity})
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
REPLACED = methodcaller("__contains__", "forward")
"""Whether somebody has put another `forward` into a layer, by its `__dict__`."""

PERMANENT = "prune.remove, remove_parametrizations, merge_and_unload, handle.remove"
REMEDY = (
    "A supernet cuts the weights of its layers to size and does not call them, so that this would be ignored. Do it to "
    f"a subnet, net.extract(subnet), whose layers are called; or make it permanent first ({PERMANENT})."
)


def is_plain(layer: nn.Module) -> bool:
    """Whether calling a layer does nothing but what its weight and bias say.

    A call does more if the layer is of another class (parametrised, quantised, LoRA), has hooks (counters of MACs,
    pruning, the older weight norm), or if somebody has put another `forward` into it.
    """
    own = layer.__dict__  # every layer is looked at in every inference
    return type(layer) in PLAIN and not any(own[hooks] for hooks in HOOKS) and "forward" not in own


def plain_weights(layer: nn.Module) -> tuple[Tensor, Tensor] | None:
    """Weight (out_features, in_features) and bias of a linear layer, for who uses them instead of calling it.

    None if it must be called: it is not plain, is quantised, has no bias, or all calls of the process are watched.
    """
    if type(layer) is not nn.Linear or not is_plain(layer) or _has_any_global_hook():
        return None
    weight, bias = layer._parameters.get("weight"), layer._parameters.get("bias")
    return None if type(weight) is not nn.Parameter or bias is None else (weight, bias)


def check_plain(layers: dict[str, nn.Module | None], where: str = "") -> None:
    """Refuses layers that must be called where they are not.

    Args:
        layers: By name; None is no layer, and "reduce" is called.
        where: What the names begin with.

    Raises:
        ValueError: If one is not plain, with its name and the remedy.
    """
    for name, layer in layers.items():
        if layer is not None and not is_plain(layer) and name != "reduce":
            kind = type(layer)
            what = "has hooks" if kind in PLAIN else f"is a {kind.__module__}.{kind.__qualname__}"
            raise ValueError(f"The layer {where}{name} {what}. {REMEDY}")


def check_blocks(blocks: nn.ModuleList, numbers: Iterable[int]) -> None:
    """Refuses hooks of blocks, which are not called themselves, and layers of them that are not plain.

    Args:
        blocks: All blocks of a supernet.
        numbers: Which of them to look at.

    Raises:
        ValueError: If there are any, with the name and the remedy.
    """
    for i in numbers:
        check_block(blocks[i], i)


def check_block(block: nn.Module, number: int) -> None:
    """`check_blocks` of one.

    Raises:
        ValueError: As there.
    """
    if any(getattr(block, hooks) for hooks in HOOKS):
        raise ValueError(f"blocks.{number} has hooks. {REMEDY}")
    check_plain(block._modules, f"blocks.{number}.")


def check_names(found: Iterable[str], expected: Iterable[str], owner: str) -> None:
    """Refuses to write or copy weights under names that nobody would find again.

    Args:
        found: Names of the weights.
        expected: Names that there should be.
        owner: What the weights are of, for the message.

    Raises:
        ValueError: If they differ, with the first names and the remedy.
    """
    lacking, extra = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    if lacking or extra:
        raise ValueError(
            f"{owner} lacks the weights {lacking[:4]} and has {extra[:4]}: layers were replaced, parametrised, pruned "
            f"or wrapped. Make that permanent first ({PERMANENT}), or pass the module inside the wrapper."
        )
