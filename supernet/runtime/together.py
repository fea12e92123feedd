"""A few images in one piece: all of them at the widest of them, what is not an image's own set to zero.

Where little is to be multiplied, calls are what costs, and one product for all images is cheaper than one for every
size. The contract is that of `runtime.blocks`; images stay in their order and nothing is gathered. A lone image has no
surplus: it runs as a plain ViT of its sizes.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..arrays import Ints
from ..config import SupernetConfig
from ..eager import transformed
from ..layers import ElasticBlock, activate, set_width
from ..plan import GroupPlan
from .attention import attention, attention_of_first, packed_class_scores
from .cuts import BlockSize, Cut, Pair, cut_of
from .devices import device_costs
from .packing import Packed
from .reduction import places_after, reduce_tokens


def cheaper_together(plan: GroupPlan, device_type: str) -> bool:
    """Whether one product for all images of a group may be, and costs less than one for every size of theirs.

    Args:
        plan: What the group computes.
        device_type: `torch.device.type`.
    """
    if transformed():
        return False
    if len(plan.widths) == 1:
        return True
    costs = device_costs(device_type)
    numbers = int(plan.num_tokens.sum()) * int(max(plan.hidden.max(), 3 * plan.widths.max()))
    return numbers <= costs.working_set and _surplus(plan) <= costs.piece * _segments_saved(plan)


def _surplus(plan: GroupPlan) -> int:
    """Multiply-accumulates of linear layers that images would compute beyond their own."""
    tokens, width = plan.num_left, plan.widths
    own = tokens @ (width * (4 * width + plan.hidden) + plan.hidden * plan.gives)
    width, hidden, gives = plan.widths.max(0), plan.hidden.max(0), plan.gives.max(0)
    most = width * (4 * width + hidden) + hidden * gives
    return int(tokens.sum() * most.sum() - own.sum())


def _segments_saved(plan: GroupPlan) -> int:
    """Segments that the images of all blocks' halves fall into, beyond one each."""
    halves = (plan.reads << 20 | plan.widths), (plan.hidden << 40 | plan.gives << 20 | plan.widths)
    return sum(len(set(sizes)) - 1 for half in halves for sizes in half.T.tolist())


def run_together(
    config: SupernetConfig,
    blocks: nn.ModuleList,
    plan: GroupPlan,
    packed: Packed,
    patch_token: Tensor,
    with_key_mean: bool = False,
    head_only: bool = False,
) -> tuple[Packed, Tensor, Tensor | None, GroupPlan]:
    """Runs one group; arguments and results are those of `blocks.run_blocks`. No gradients."""
    mode, key_mean = config.token_mode, None
    indices, sizes = config.space.blocks(plan.group), _block_sizes(config, plan)
    own = None if _alike(plan) else _Own(config, plan)
    for i, block in enumerate(islice(blocks, indices.start, indices.stop)):
        assert isinstance(block, ElasticBlock)
        cut = cut_of(block, indices[i], sizes[i])
        reducing, carries_keys = i == 0 and plan.counts is not None, with_key_mean and i == len(sizes) - 1
        with_scores, with_keys = reducing and mode.uses_scores, carries_keys or (reducing and mode.metric == "keys")
        masks = None if own is None else own.of(i, cut, packed)
        alone = head_only and i == len(sizes) - 1 and own is None and not (reducing or carries_keys)
        packed, scores, keys = _attention_half(config, cut, packed, with_scores, with_keys, masks, alone)
        if carries_keys and keys is not None:
            key_mean = keys.mean(1)
        if reducing:
            packed, into, key_mean, plan = reduce_tokens(config, block.reduce, plan, packed, scores, keys, key_mean)
            patch_token = places_after(patch_token, into)
            masks = None if own is None else own.of(i, cut, packed)
        packed = _mlp_half(config, cut, packed, masks)
    return packed, patch_token, None if key_mean is None else key_mean.float(), plan


def _block_sizes(config: SupernetConfig, plan: GroupPlan) -> list[BlockSize]:
    """Of every block, the largest sizes of the images."""
    sizes = (plan.reads, plan.widths, plan.num_heads * config.head_dim, plan.hidden, plan.gives)
    most = zip(*[(s[0] if len(s) == 1 else s.max(0)).tolist() for s in sizes], strict=True)
    last = plan.widths.shape[1] - 1
    return [BlockSize(r, w, n, h, g, plan.carries and i == last) for i, (r, w, n, h, g) in enumerate(most)]


def _alike(plan: GroupPlan) -> bool:
    """Whether all images have the same sizes."""
    sizes = (plan.reads, plan.widths, plan.num_heads, plan.hidden, plan.gives)
    return len(plan.widths) == 1 or all((s == s[0]).all() for s in sizes)


@dataclass(frozen=True, eq=False)
class _Masks:
    """Which channels of a block are a token's own: (T, most) bool; None if all are.

    Attributes:
        reads: Channels read.
        width: Channels of the block.
        heads: Heads.
        hidden: Hidden units.
        gives: Channels handed on.
        zoom: `SupernetConfig.zoom` of the block: one factor, or (T, 1).
    """

    reads: Tensor | None
    width: Tensor | None
    heads: Tensor | None
    hidden: Tensor | None
    gives: Tensor | None
    zoom: float | Tensor


def _attention_half(
    config: SupernetConfig,
    cut: Cut,
    packed: Packed,
    with_scores: bool,
    with_keys: bool,
    own: _Masks | None = None,
    alone: bool = False,
) -> tuple[Packed, Tensor | None, Tensor | None]:
    """Residual attention.

    Args:
        config: The supernet's.
        cut: Weights of the block.
        packed: Tokens.
        with_scores: Whether to compute the class attention.
        with_keys: Whether to compute the mean of the keys over heads.
        own: What of it is a token's own; None: everything.
        alone: Whether to hand on the class tokens alone, if all images have as many tokens.

    Returns:
        Tokens; (T,) class attention and (T, head_dim) keys, None if not asked for.
    """
    size, x, lengths = cut.size, packed.x, packed.lengths
    heads = size.inner // config.head_dim
    if x.shape[1] != size.reads:
        x = set_width(x, size.reads)
    if own is None:
        normed = _norm(x, cut.norm1, config.norm_eps, config.zoom(size.width))
    else:
        x = x if own.reads is None else x * own.reads
        normed = _norm(x, cut.norm1, config.norm_eps, own.zoom, own.reads)
    qkv = F.linear(normed, *cut.qkv)
    bias = None if packed.size is None else packed.size.log()
    scores = keys = None
    if with_scores or with_keys:
        scores, keys = _looked_at(config, qkv, lengths, heads, bias, own, with_scores, with_keys)
    if alone and (lengths == lengths[0]).all():
        out, x = attention_of_first(qkv, len(lengths), heads, bias), x[:: int(lengths[0])]
        packed = Packed(x, np.ones_like(lengths), None, packed.images)
    else:
        out = attention(qkv, lengths, heads, bias)
    if own is not None and own.heads is not None:
        _mask(out.view(len(out), heads, config.head_dim), own.heads[..., None])
    x = _plus_linear(x if x.shape[1] == size.width else set_width(x, size.width), cut.proj, out)
    return packed.holding(x if own is None else _mask(x, own.width)), scores, keys


def _looked_at(
    config: SupernetConfig,
    qkv: Tensor,
    lengths: Ints,
    heads: int,
    bias: Tensor | None,
    own: _Masks | None,
    with_scores: bool,
    with_keys: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """Class attention and keys of `_attention_half`, from its queries, keys and values (T, 3 * inner)."""
    share = None if own is None or own.heads is None else own.heads / own.heads.sum(1, keepdim=True).to(qkv.dtype)
    scores = keys = None
    if with_scores:
        scores = packed_class_scores(qkv, lengths, heads, bias, config.class_token, config.reg_tokens, share)
    if with_keys:
        each = qkv.view(len(qkv), heads, 3, config.head_dim)[:, :, 1]
        keys = each.mean(1) if share is None else (each * share[..., None]).sum(1)
    return scores, keys


def _mlp_half(config: SupernetConfig, cut: Cut, packed: Packed, own: _Masks | None) -> Packed:
    """Residual MLP, and the map over a group boundary; the arguments are those of `_attention_half`."""
    x, size = packed.x, cut.size
    if own is None:
        normed = _norm(x, cut.norm2, config.norm_eps, config.zoom(size.width))
    else:
        normed = _norm(x, cut.norm2, config.norm_eps, own.zoom, own.width)
    hidden = activate(config.act, F.linear(normed, *cut.fc1))
    if own is not None:
        hidden = _mask(hidden, own.hidden)
    if cut.lln is not None:
        x = F.linear(x, *cut.lln)
    elif size.gives != size.width:
        x = set_width(x, size.gives)
    out = _plus_linear(x, cut.fc2, hidden)
    return packed.holding(out if own is None else _mask(out, own.gives))


class _Own:
    """Makes the masks of a group's blocks."""

    def __init__(self, config: SupernetConfig, plan: GroupPlan) -> None:
        self._config, self._plan = config, plan

    def of(self, i: int, cut: Cut, packed: Packed) -> _Masks:
        """Those of block i, for the tokens that there are now."""
        plan, size = self._plan, cut.size
        rows = np.repeat(np.arange(len(packed.lengths)), packed.lengths)

        def mask(sizes: Ints, most: int) -> Tensor | None:
            own = sizes[:, i]
            if int(own.min()) == most:
                return None
            return torch.from_numpy((np.arange(most) < own[:, None])[rows]).to(packed.x.device)

        return _Masks(
            mask(plan.reads, size.reads),
            mask(plan.widths, size.width),
            mask(plan.num_heads, size.inner // self._config.head_dim),
            mask(plan.hidden, size.hidden),
            mask(plan.gives, size.gives),
            self._zoom(plan.widths[:, i], rows, packed),
        )

    def _zoom(self, widths: Ints, rows: Ints, packed: Packed) -> float | Tensor:
        if self._config.prance_embed_dim is None or (widths == widths[0]).all():
            return self._config.zoom(int(widths[0]))
        factors = np.array([self._config.zoom(width) for width in widths.tolist()])[rows, None]
        return torch.from_numpy(factors).to(packed.x.device, packed.x.dtype)


def _mask(x: Tensor, own: Tensor | None) -> Tensor:
    """`x`, with zeros written where it is not a token's own."""
    return x if own is None else x.mul_(own)


def _norm(x: Tensor, layer: Pair, eps: float, zoom: float | Tensor, own: Tensor | None = None) -> Tensor:
    """Layer norm over a token's own channels of `x` (T, C), the others being zero, with a gain times `zoom`."""
    weight, bias = layer
    if own is None:
        # Past F.layer_norm, whose checks take as long as the norm of a few tokens.
        if isinstance(zoom, float):
            return torch.layer_norm(x, weight.shape, weight if zoom == 1 else weight * zoom, bias, eps)
        return torch.layer_norm(x, weight.shape, None, None, eps) * (weight * zoom) + bias
    # In single precision, as the kernel computes it.
    values, mask = x.float(), own.float()
    count = mask.sum(1, keepdim=True)
    centred = torch.addcmul(values, values.sum(1, keepdim=True) / count, mask, value=-1)
    scale = (centred.square().sum(1, keepdim=True) / count + eps).rsqrt() * zoom
    return torch.addcmul(bias * mask, centred * scale, weight).to(x.dtype)


def _plus_linear(x: Tensor, layer: Pair, y: Tensor) -> Tensor:
    """x (T, C) + y times the weight (in, C) + bias."""
    weight, bias = layer
    total = x + bias
    return torch.addmm(total, y, weight, out=total)
