"""The part of a block's weights that some sizes use, as views; kept, since making them costs what a layer costs."""

from __future__ import annotations

from operator import itemgetter
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from ..layers import ElasticBlock, prefix_weights
from ..plain import HOOKS, REPLACED, check_block

MOST_KEPT = 64
Pair = tuple[Tensor, Tensor]


class BlockSize(NamedTuple):
    """Sizes at which a block is computed: channels read, its own, heads' channels, hidden units, channels handed on."""

    reads: int
    width: int
    inner: int
    hidden: int
    gives: int
    carries: bool


class Cut(NamedTuple):
    """Weight and bias of every layer of a block; weights (in, out) of what is added to the residual, else (out, in)."""

    size: BlockSize
    norm1: Pair
    qkv: Pair
    proj: Pair
    norm2: Pair
    fc1: Pair
    fc2: Pair
    lln: Pair | None


class _Kept(NamedTuple):
    """The cuts of a block, and what shows whether they still hold: its layers, where and how weights lie, who calls."""

    layers: list[nn.Module | None]
    kinds: list[type]
    addresses: list[int]
    # Of square weights, which may be turned where they lie.
    squares: list[dict[str, Any]]
    strides: list[tuple[int, ...]]
    hooks: list[dict[Any, Any]]
    attributes: list[dict[str, Any]]
    cuts: dict[BlockSize, Cut]


_KEPT: WeakKeyDictionary[ElasticBlock, _Kept] = WeakKeyDictionary()
_WEIGHT, _BIAS = itemgetter("weight"), itemgetter("bias")


def cut_of(block: ElasticBlock, number: int, size: BlockSize) -> Cut:
    """The weights that a block of that size uses, views of its own; never of weights that it had before.

    Args:
        block: The block.
        number: Its number, for messages.
        size: Of all its layers.

    Raises:
        ValueError: If the block or a layer has hooks, or must be called for another reason.
    """
    kept, addresses = _KEPT.get(block), _addresses(block, number)
    # Other layers may have the same weights.
    layers = [*block._modules.values()]
    kinds = [*map(type, layers)]
    same = kept is not None and kept.layers == layers and kept.kinds == kinds and kept.addresses == addresses
    same = same and kept is not None and kept.strides == _strides(kept.squares)
    if kept is None or not same or any(kept.hooks) or any(map(REPLACED, kept.attributes)):
        check_block(block, number)
        modules = [block, *filter(None, block.children())]
        hooks = [module.__dict__[name] for module in modules for name in HOOKS]
        weights: list[dict[str, Any]] = [layer._parameters for layer in _own_layers(block)]
        squares = [own for own in weights if len({*own["weight"].shape}) == 1 < own["weight"].ndim]
        attributes = [module.__dict__ for module in modules]
        kept = _KEPT[block] = _Kept(layers, kinds, addresses, squares, _strides(squares), hooks, attributes, {})
    cut = kept.cuts.get(size)
    if cut is None:
        if len(kept.cuts) >= MOST_KEPT:
            kept.cuts.clear()
        cut = kept.cuts[size] = _cut(block, size)
    return cut


def _addresses(block: ElasticBlock, number: int) -> list[int]:
    """Where the weights lie.

    Past `nn.Module.__getattr__`, which would take as long as making the views.
    """
    layers = [layer._parameters for layer in _own_layers(block)]
    try:
        return [*map(Tensor.data_ptr, map(_WEIGHT, layers)), *map(Tensor.data_ptr, map(_BIAS, layers))]
    except KeyError:
        check_block(block, number)
        raise


def _own_layers(block: ElasticBlock) -> list[nn.Module]:
    return [layer for name, layer in block._modules.items() if name != "reduce" and layer is not None]


def _strides(layers: list[dict[str, Any]]) -> list[tuple[int, ...]]:
    return [*map(Tensor.stride, map(_WEIGHT, layers))]


def _cut(block: ElasticBlock, size: BlockSize) -> Cut:
    def added(layer: nn.Linear, out_features: int, in_features: int) -> Pair:
        weight, bias = prefix_weights(layer, out_features, in_features)
        return weight.t(), bias

    return Cut(
        size,
        _norm(block.norm1, size.reads),
        prefix_weights(block.qkv, 3 * size.inner, size.reads),
        added(block.proj, size.width, size.inner),
        _norm(block.norm2, size.width),
        prefix_weights(block.fc1, size.hidden, size.width),
        added(block.fc2, size.gives, size.hidden),
        prefix_weights(block.lln, size.gives, size.width) if size.carries and block.lln is not None else None,
    )


def _norm(layer: nn.Module, width: int) -> Pair:
    assert isinstance(layer, nn.LayerNorm)
    return layer.weight[:width], layer.bias[:width]
