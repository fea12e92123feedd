"""Elastic layers: modules that own full-size weights, functions that use a prefix of them as a view."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "silu": F.silu,
}
Norm = nn.LayerNorm | nn.RMSNorm
NORMS = ("layer", "rms")


def activate(name: str, x: Tensor) -> Tensor:
    """An activation of `ACTIVATIONS`, in place where it can be: the hidden layer is the largest tensor there is."""
    if name == "gelu" and not torch.is_grad_enabled():
        return torch.ops.aten.gelu_(x)
    return ACTIVATIONS[name](x)


def linear(layer: nn.Linear, x: Tensor, out_features: int) -> Tensor:
    """The first `out_features` rows of `layer`, over as many inputs as `x` has.

    Args:
        layer: Full-size linear layer.
        x: (..., C) with C at most the layer's inputs.
        out_features: Outputs to compute.

    Returns:
        (..., out_features).
    """
    return F.linear(x, *prefix_weights(layer, out_features, x.shape[-1]))


def prefix_weights(layer: nn.Linear, out_features: int, in_features: int) -> tuple[Tensor, Tensor]:
    """Weight (out_features, in_features) and bias (out_features,), views of the layer's."""
    weight, bias = layer.weight, layer.bias
    if weight.shape == (out_features, in_features):
        return weight, bias
    return weight[:out_features, :in_features], bias[:out_features]


def make_norm(kind: str, channels: int, eps: float) -> Norm:
    """A norm over so many channels, of a kind in `NORMS`."""
    return nn.LayerNorm(channels, eps) if kind == "layer" else nn.RMSNorm(channels, eps)


def prefix_norm(layer: nn.Module, x: Tensor, zoom: float = 1.0) -> Tensor:
    """Norm over the C active channels of `x` (..., C); its gain is multiplied by `zoom`. Identities change nothing."""
    if isinstance(layer, nn.Identity):
        return x
    c = x.shape[-1]
    assert isinstance(layer, Norm)
    weight: Tensor = layer.weight if c == layer.weight.shape[0] else layer.weight[:c]
    weight = weight if zoom == 1 else weight * zoom
    if isinstance(layer, nn.RMSNorm):
        return F.rms_norm(x, (c,), weight, layer.eps)
    bias: Tensor = layer.bias
    # Past F.layer_norm, whose checks take as long as the norm of a few tokens.
    return torch.layer_norm(x, (c,), weight, bias if c == bias.shape[0] else bias[:c], layer.eps)


def set_width(x: Tensor, width: int) -> Tensor:
    """Truncates or zero-pads the channels of `x` (..., C) to (..., width)."""
    given = x.shape[-1]
    if given == width:
        return x
    return x[..., :width] if given > width else F.pad(x, (0, width - given))


class PatchEmbed(nn.Sequential):
    """Image (B, in_chans, S, S) to patches (B, N, C); "patch" is one convolution, "conv" three with batch norm."""

    def __init__(self, stem: str, patch_size: int, in_chans: int, embed_dim: int) -> None:
        if stem == "patch":
            super().__init__(nn.Conv2d(in_chans, embed_dim, patch_size, patch_size))
            return
        last = patch_size // 4
        super().__init__(
            nn.Conv2d(in_chans, embed_dim // 4, 3, 2, 1, bias=False),
            nn.BatchNorm2d(embed_dim // 4),
            nn.Hardswish(),
            nn.Conv2d(embed_dim // 4, embed_dim // 2, 3, 2, 1, bias=False),
            nn.BatchNorm2d(embed_dim // 2),
            nn.Hardswish(),
            nn.Conv2d(embed_dim // 2, embed_dim, max(last, 3), last, 0 if last >= 3 else 1, bias=False),
            nn.BatchNorm2d(embed_dim),
        )

    def forward(self, images: Tensor) -> Tensor:
        if images.is_cuda and len(self) == 1:
            return patches_by_product(cast(nn.Conv2d, self[0]), images)
        x = super().forward(images)
        if x.requires_grad and x.shape[0] == 1:
            # PyTorch's CPU batch norm misreads the strides of the gradient of a batch of one (seen in 2.15).
            x.register_hook(torch.Tensor.contiguous)
        return x.flatten(2).transpose(1, 2)


def patches_by_product(conv: nn.Conv2d, images: Tensor) -> Tensor:
    """A convolution of patches that do not overlap, as one matrix product: (B, C, S, S) to (B, N, out_channels).

    On an H100 in bfloat16, 256 images of 224 pixels: 0.20 ms instead of 1.74, since cuDNN takes a kernel without tensor
    cores.
    """
    side = conv.kernel_size[0]
    batch, channels, size, _ = images.shape
    count = size // side
    cut = images.reshape(batch, channels, count, side, count, side).permute(0, 2, 4, 1, 3, 5)
    return F.linear(cut.reshape(batch, count * count, channels * side * side), conv.weight.flatten(1), conv.bias)


class ElasticBlock(nn.Module):
    """Weights of one pre-norm transformer block.

    The rows of `qkv` are ordered (head, q|k|v, head_dim), so that the first h heads are a prefix of the weight: a view,
    not a copy.

    Args:
        embed_dim: Full width.
        hidden_dim: Hidden width of the MLP.
        num_heads: Heads at full width.
        head_dim: Channels per head.
        norm_eps: Epsilon of the norms.
        lln: Whether a linear map carries the residual over the end of the block's group.
        reduce: The module that reduces tokens between attention and MLP, if the token mode has learned parameters and
            a decision precedes this block.
        norm: Kind of the norms, one of `NORMS`.
        glu: Whether the MLP is gated.
        qk_norm: Whether queries and keys are normed, each head alone.
        scale_norm: Whether a norm precedes `proj` and another one `fc2`.
    """

    def __init__(
        self,
        embed_dim: int,
        hidden_dim: int,
        num_heads: int,
        head_dim: int,
        norm_eps: float,
        lln: bool,
        reduce: nn.Module | None = None,
        *,
        norm: str = "layer",
        glu: bool = False,
        qk_norm: bool = False,
        scale_norm: bool = False,
    ) -> None:
        super().__init__()
        self.norm1 = make_norm(norm, embed_dim, norm_eps)
        self.qkv = nn.Linear(embed_dim, 3 * num_heads * head_dim)
        self.q_norm = make_norm(norm, head_dim, norm_eps) if qk_norm else None
        self.k_norm = make_norm(norm, head_dim, norm_eps) if qk_norm else None
        self.attn_norm = make_norm(norm, num_heads * head_dim, norm_eps) if scale_norm else None
        self.proj = nn.Linear(num_heads * head_dim, embed_dim)
        self.norm2 = make_norm(norm, embed_dim, norm_eps)
        self.gate = nn.Linear(embed_dim, hidden_dim) if glu else None
        self.fc1 = nn.Linear(embed_dim, hidden_dim)
        self.mlp_norm = make_norm(norm, hidden_dim, norm_eps) if scale_norm else None
        self.fc2 = nn.Linear(hidden_dim, embed_dim)
        self.lln = nn.Linear(embed_dim, embed_dim) if lln else None
        self.reduce = reduce
        self.drop_path = 0.0
        """Chance that an image skips one of the block's halves; for training, as long as a recipe sets it."""

    @torch.no_grad()
    def init_weights(self) -> None:
        """Variance 1 / fan-in, residual branches damped by .2, zero biases, identity boundary map."""
        for layer, gain in ((self.qkv, 1.0), (self.fc1, 1.0), (self.gate, 1.0), (self.proj, 0.2), (self.fc2, 0.2)):
            if layer is None:
                continue
            nn.init.trunc_normal_(layer.weight, std=gain * layer.in_features**-0.5)
            nn.init.zeros_(layer.bias)
        if self.lln is not None:
            nn.init.eye_(self.lln.weight)
            nn.init.zeros_(self.lln.bias)


def normed_heads(block: ElasticBlock, qkv: Tensor, num_heads: int) -> Tensor:
    """Norms the queries and keys of every head, if the block does so.

    Args:
        block: The block.
        qkv: (T, num_heads * 3 * head_dim), ordered (head, q|k|v, channel).
        num_heads: Heads that there are.
    """
    if block.q_norm is None or block.k_norm is None:
        return qkv
    q, k, v = qkv.view(len(qkv), num_heads, 3, -1).unbind(2)
    return torch.stack([prefix_norm(block.q_norm, q), prefix_norm(block.k_norm, k), v], dim=2).view_as(qkv)


def hidden_units(block: ElasticBlock, act: str, x: Tensor, units: int) -> Tensor:
    """The first `units` activations (T, units) of the block's MLP on normed tokens (T, C)."""
    if block.gate is None:
        return activate(act, linear(block.fc1, x, units))
    return activate(act, linear(block.gate, x, units)) * linear(block.fc1, x, units)
