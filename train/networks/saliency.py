"""How much a loss notices that a unit of a static network is taken out, by derivatives.

A gate multiplies all weights of a unit; it is 1. With G the derivative of the loss by the gates and H the matrix of its
second derivatives:

* `taylor` is NViT's saliency as published (arXiv 2110.04869, equation 6): G squared, for every batch, and added up.
  The paper calls it Hessian-aware; it is a first-order quantity.
* `hutchinson` is what the paper's equation 5 begins with: the mean of (H z) squared over random signs z, by which
  amount the derivatives move if all gates move a little. One z is drawn for each batch.

The weights of a unit: of a head its rows of `qkv`; of a channel of queries and keys the rows of `qkv` of all heads'
queries (NViT looks at queries alone), of one of values likewise; of a hidden unit its row of `fc1` (and `gate`); of an
embedding channel the rows of the patch embedding, `proj` and `fc2` that write it and the columns of `qkv` and `fc1`
(and `gate`) that read it. Tokens that a static network may drop by `prune` have gates as well, by their rank; this is
ours, in no paper (`gated_tokens`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from supernet.cutting import Units, width_of
from supernet.ordering import stem_output
from supernet.static_vit import StaticBlock, StaticViT
from supernet.subnet import HOST
from supernet.tokens.modes import ranking, ranks_of

Saliency = Literal["taylor", "hutchinson"]
SALIENCIES: tuple[Saliency, ...] = ("taylor", "hutchinson")
Batches = Iterable[tuple[Tensor, Tensor]]
Loss = Callable[[Tensor, Tensor], Tensor]


def saliency(
    static: StaticViT, batches: Batches, kind: Saliency = "taylor", loss: Loss = F.cross_entropy, seed: int = 0
) -> Units:
    """One number for every unit, a mean over batches.

    Args:
        static: The network; its weights stay as they are, their gradients do not.
        batches: Images as the network takes them, and labels.
        kind: "taylor" or "hutchinson".
        loss: Of (B, K) logits and (B,) labels.
        seed: Of the random signs.

    Raises:
        ValueError: If there are no batches, or the kind is unknown.
    """
    if kind not in SALIENCIES:
        raise ValueError(f"saliency={kind!r} is unknown; choose one of {SALIENCIES}.")
    generator, total, count = torch.Generator(HOST).manual_seed(seed), None, 0
    for images, labels in batches:
        # Fused attention has no second derivative.
        with sdpa_kernel(SDPBackend.MATH) if kind == "hutchinson" else nullcontext():
            found = _by_gates(static, images, labels, loss, generator if kind == "hutchinson" else None)
        squared = each(lambda x: x.detach().square(), found)
        total = squared if total is None else each(torch.add, total, squared)
        count += 1
    if total is None:
        raise ValueError("There are no images to score the units with; pass some.")
    return each(lambda x: x / count, total)


def _by_gates(
    static: StaticViT, images: Tensor, labels: Tensor, loss: Loss, generator: torch.Generator | None
) -> Units:
    """Derivatives of the loss by all gates; with a generator, of the sum of these with random signs."""
    logits, tokens = gated_tokens(static, images)
    first = _derivatives(static, tokens, loss(logits, labels), create_graph=generator is not None)
    if generator is None:
        return first
    signs = each(lambda x: (torch.randint(0, 2, x.shape, generator=generator, device=HOST) * 2 - 1).to(x), first)
    along = torch.cat([part for parts in each(torch.mul, first, signs).values() for part in parts]).sum()
    second = _derivatives(static, tokens, along)
    # A gate enters each of its own weights once, so that its second derivative by itself has no term of first order.
    own = each(lambda h, g, z: h - g * z, second, first, signs)
    return {kind: second[kind] if kind == "tokens" else parts for kind, parts in own.items()}


def _derivatives(static: StaticViT, tokens: tuple[Tensor, ...], loss: Tensor, create_graph: bool = False) -> Units:
    weights = dict(static.named_parameters())
    gates = [gate for gate in tokens if len(gate)]
    wanted = [*weights.values(), *gates]
    grads = torch.autograd.grad(loss, wanted, create_graph=create_graph, materialize_grads=True)
    products = {name: w * g for (name, w), g in zip(weights.items(), grads, strict=False)}
    found = dict(_unit_sums(static, products))
    if gates:
        by_gate = iter(grads[len(weights) :])
        found["tokens"] = tuple(next(by_gate) if len(gate) else gate.detach() for gate in tokens)
    return found


def gated_tokens(
    static: StaticViT, images: Tensor, given: Sequence[Tensor] | None = None
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Logits, and of every block that reduces tokens by `prune` the gates of those that are left, by their rank.

    A gate is what a token counts in attention from the next block on, and in means: at 0 it is as if it had been
    dropped, since nothing else reads it. So it says what the last ranks are worth. Other blocks have none.

    Args:
        static: The network.
        images: As it takes them.
        given: Gates; None: ones.
    """
    gates = [torch.zeros(0, device=static.pos_embed.device)] * len(static.blocks)
    if static.config.space.token_mode != "prune":
        return static(images), (*gates,)
    x, size = static.tokens_of(static.normalised(images)), None
    for number, (block, sizes) in enumerate(zip(static.blocks, static.block_sizes, strict=True)):
        assert isinstance(block, StaticBlock)
        attended = block.attention(x, size)
        x, _ = block.reduce_and_mlp(attended)
        if attended.scores is not None:
            ranks = ranks_of(ranking(attended.scores, np.array([sizes.tokens]), static.config.num_prefix_tokens))
            stays = ranks < sizes.left
            gates[number] = x.new_ones(sizes.left, requires_grad=True) if given is None else given[number]
            before = torch.ones_like(attended.x[..., 0]) if size is None else size
            size = gates[number][ranks[stays]].view(len(x), -1) * before[stays].view(len(x), -1)
    return static.forward_head(x, size), (*gates,)


def each(function: Callable[..., Tensor], *units: Units) -> Units:
    """Applies a function to corresponding tensors."""
    return {kind: tuple(function(*parts) for parts in zip(*(u[kind] for u in units), strict=True)) for kind in units[0]}


def _unit_sums(static: StaticViT, products: Mapping[str, Tensor]) -> Units:
    """Weight times gradient, summed over each unit's weights."""

    def rows(name: str) -> Tensor:
        bias = products.get(f"{name}.bias")
        weight = products[f"{name}.weight"].flatten(1).sum(1)
        return weight if bias is None else weight + bias

    width = width_of(static.block_sizes)

    def padded(channels: Tensor) -> Tensor:
        return F.pad(channels[:width], (0, max(0, width - len(channels))))

    embed_dim = static.pos_embed.new_zeros(width)
    for layer in stem_output(static)[:1]:
        embed_dim = embed_dim + padded(rows(f"patch_embed.{layer}"))
    heads, qk, v, hidden = [], [], [], []
    gates = ("fc1", "gate") if static.config.glu else ("fc1",)
    for i, sizes in enumerate(static.block_sizes):
        block = f"blocks.{i}."
        embed_dim = embed_dim + padded(rows(f"{block}proj")) + padded(rows(f"{block}fc2"))
        for name in ("qkv", *gates):
            embed_dim = embed_dim + padded(products[f"{block}{name}.weight"].sum(0))
        channels = rows(f"{block}qkv").view(sizes.num_heads, -1)
        heads.append(channels.sum(1))
        qk.append(channels[:, : sizes.qk_dim].sum(0))
        v.append(channels[:, 2 * sizes.qk_dim :].sum(0))
        hidden.append(torch.stack([rows(f"{block}{name}") for name in gates]).sum(0))
    return {"embed_dim": (embed_dim,), "heads": (*heads,), "qk": (*qk,), "v": (*v,), "hidden": (*hidden,)}
