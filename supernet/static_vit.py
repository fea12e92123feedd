"""A Vision Transformer of fixed sizes: what a subnet is without its supernet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .block_sizes import BlockSizes, check_sizes, sizes_macs, sizes_of_one
from .config import SupernetConfig
from .eager import transformed
from .heads import ImageClassifier
from .layers import activate, make_norm, set_width
from .plain import plain_weights
from .runtime.attention import class_scores
from .runtime.devices import working_rows
from .runtime.pooling import mean_alike
from .subnet import SubnetConfig
from .tokens.modes import combine, token_mode, total_size


class Attended(NamedTuple):
    """Tokens in the middle of a block: after attention, before they are reduced.

    Attributes:
        x: (B, N, C) tokens.
        size: (B, N) patches that each stands for; None: one each.
        scores: (B, N) class attention, None if no token mode reads it here.
        metric: (B, N, M) what the token mode compares, None if it compares nothing here.
    """

    x: Tensor
    size: Tensor | None
    scores: Tensor | None
    metric: Tensor | None


class StaticBlock(nn.Module):
    """One block of fixed sizes.

    Args:
        config: Architecture of the supernet.
        sizes: Everything that is fixed of the block.
    """

    def __init__(self, config: SupernetConfig, sizes: BlockSizes) -> None:
        super().__init__()
        self.sizes, self.act, self.mode = sizes, config.act, config.token_mode
        self.class_token, self.reg_tokens = config.class_token, config.reg_tokens
        self.mode_name, self.authors = config.space.token_mode, config.prance_embed_dim is not None
        width, inner = sizes.embed_dim, sizes.num_heads * sizes.v_dim
        norm = partial(make_norm, config.norm, eps=config.norm_eps)
        self.norm1 = norm(sizes.reads)
        self.qkv = nn.Linear(sizes.reads, sizes.qkv_dim)
        self.q_norm = norm(sizes.qk_dim) if config.qk_norm else nn.Identity()
        self.k_norm = norm(sizes.qk_dim) if config.qk_norm else nn.Identity()
        self.attn_norm = norm(inner) if config.scale_norm else nn.Identity()
        self.proj = nn.Linear(inner, width)
        self.norm2 = norm(width)
        self.gate = nn.Linear(width, sizes.hidden_dim) if config.glu else None
        self.fc1 = nn.Linear(width, sizes.hidden_dim)
        self.mlp_norm = norm(sizes.hidden_dim) if config.scale_norm else nn.Identity()
        self.fc2 = nn.Linear(sizes.hidden_dim, sizes.gives)
        self.lln = nn.Linear(width, sizes.gives) if sizes.lln else None
        learned = self.mode.module if sizes.counts is not None else None
        self.reduce = None if learned is None else learned(config, width)

    def forward(self, x: Tensor, size: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Tokens (B, N, C) and sizes (B, N), None for ones, to (B, kept, C') and (B, kept)."""
        return self.reduce_and_mlp(self.attention(x, size))

    def attention(self, x: Tensor, size: Tensor | None) -> Attended:
        """The first half: residual attention, and what the token mode will want to know; arguments as of `forward`."""
        x, q, k, v, bias = self._projected(x, size)
        x = self._attended(x, q, k, v, bias)
        if self.sizes.counts is None:
            return Attended(x, size, None, None)
        scores = class_scores(q, k, bias, self.class_token, self.reg_tokens) if self.mode.uses_scores else None
        metric = k.mean(1) if self.mode.metric == "keys" else x if self.mode.metric == "tokens" else None
        return Attended(x, size, scores, metric)

    def reduce_and_mlp(self, attended: Attended) -> tuple[Tensor, Tensor | None]:
        """The second half: the token mode, if it runs here, and the residual MLP; returns what `forward` does."""
        x, size = attended.x, attended.size
        if (counts := self.sizes.counts) is not None:
            x, size = self._reduce(attended, self.sizes.tokens, counts, counts[-1])
        return self._mlp(x), size

    def class_token_alone(self, x: Tensor, size: Tensor | None) -> Tensor:
        """What `forward` makes of the class token, (B, 1, C'): all that counts of a last block, at a part of the price.

        Args:
            x: (B, N, C) tokens, the class token first.
            size: (B, N) patches that each stands for; None: one each.
        """
        x, q, k, v, bias = self._projected(x, size)
        return self._mlp(self._attended(x[:, :1], q[:, :, :1], k, v, bias))

    def _projected(self, x: Tensor, size: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
        """The tokens as the block reads them, (B, H, N, channels) queries, keys and values, and the bias of keys."""
        x, qk, v_dim = set_width(x, self.sizes.reads), self.sizes.qk_dim, self.sizes.v_dim
        parts = self.qkv(self.norm1(x)).view(*x.shape[:2], self.sizes.num_heads, 2 * qk + v_dim).transpose(1, 2)
        q, k, v = parts.split((qk, qk, v_dim), dim=-1)
        return x, self.q_norm(q), self.k_norm(k), v, None if size is None else size.log()

    def _attended(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        """(B, M, C) tokens after the attention of their M queries."""
        mask = None if bias is None else bias.to(x.dtype)[:, None, None, :]
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)
        return _add_linear(x[..., : self.sizes.embed_dim], self.proj, self.attn_norm(out))

    def _mlp(self, x: Tensor) -> Tensor:
        residual = set_width(x if self.lln is None else self.lln(x), self.sizes.gives)
        return _add_linear(residual, self.fc2, self.mlp_norm(self._hidden(self.norm2(x))))

    def _hidden(self, x: Tensor) -> Tensor:
        if self.gate is None:
            return activate(self.act, self.fc1(x))
        return activate(self.act, self.gate(x)) * self.fc1(x)

    def _reduce(self, attended: Attended, tokens: Any, counts: Any, kept: int) -> tuple[Tensor, Tensor | None]:
        """`kept` tokens and their sizes, of `tokens`, int or (1,), after stages with `counts`, ints or (1, stages)."""
        mode, prefix = self.mode, int(self.class_token) + self.reg_tokens
        x, size, scores, metric = attended
        if size is None:
            size = torch.ones_like(x[..., 0], dtype=torch.float32)
        fixed = isinstance(tokens, int)
        if fixed and self.reduce is None:
            into, weight = _places(scores, metric, size, self.mode_name, self.authors, tokens, tuple(counts), prefix)
        else:
            if fixed and not getattr(self.reduce, "takes_ints", False):
                tokens, counts = np.array([tokens]), np.array([counts])
            into, weight, _ = mode.assignment(self.reduce, scores, metric, size, tokens, counts, prefix)
        x = combine(x, into, kept, weight, mode.normalise, prefix)
        return x, total_size(size, into, kept) if mode.sized else None


# A compiler takes numpy's arrays for tensors, whose values it does not know; behind this it sees operators only.
@torch.compiler.allow_in_graph
def _places(
    scores: Tensor | None,
    metric: Tensor | None,
    size: Tensor,
    name: str,
    authors: bool,
    tokens: int,
    counts: tuple[int, ...],
    prefix: int,
) -> tuple[Tensor, Tensor | None]:
    """Where tokens go by a mode without parameters, and their weights; plain data but for the first three."""
    mode, fixed = token_mode(name, authors), (np.array([tokens]), np.array([counts]))
    return mode.assignment(None, scores, metric, size, *fixed, prefix)[:2]


def _add_linear(x: Tensor, layer: nn.Module, y: Tensor) -> Tensor:
    """x + layer(y)."""
    # Autocast wants the layer itself, and so does what users put in its place or hang on it.
    own = plain_weights(layer)
    if own is None or torch.is_autocast_enabled(x.device.type):
        return x + layer(y)
    weight, bias = own
    total = (x + bias).flatten(0, 1)
    # In place it is a pass over the tokens less.
    place = total if _only_computes() else None
    return torch.addmm(total, y.flatten(0, 1), weight.t(), out=place).view_as(x)


def _only_computes() -> bool:
    """Whether nothing records or transforms what is computed: neither autograd nor an exporter nor `torch.func`."""
    records = torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.jit.is_tracing()
    return not records and not transformed()


class StaticEnds(ImageClassifier):
    """Both ends of a ViT whose last block has one width: tokens of images, and logits of tokens.

    Args:
        config: Architecture of the supernet.
        width: Channels of the tokens after the last block.
    """

    def __init__(self, config: SupernetConfig, width: int) -> None:
        super().__init__(config)
        self.make_head(width)

    def forward_head(self, x: Tensor, size: Tensor | None) -> Tensor:
        """(B, num_classes) logits, or features without a classifier.

        Args:
            x: (B, N, C) tokens; channels beyond the width are left out.
            size: (B, N) patches that each stands for; None: one each.
        """
        x = x[..., : self.last_width]
        features = self._features(x, size)
        logits = features if self.head is None else self.head(features)
        if not self.config.distilled:
            return logits
        second = self.norm(x[:, 1])
        return (logits + (second if self.head_dist is None else self.head_dist(second))) / 2

    def _features(self, x: Tensor, size: Tensor | None) -> Tensor:
        """What the classifier sees."""
        if self.config.global_pool == "token":
            return self.norm(x[:, 0])
        if self.config.fc_norm:
            return self.norm(self._mean(x, size))
        x = self.norm(x)
        if self.pool is None:
            return self._mean(x, size)
        first = self.config.num_prefix_tokens
        return self.pool(x[:, first:], None if size is None else size[:, first:])

    def _mean(self, x: Tensor, size: Tensor | None) -> Tensor:
        first = self.config.num_prefix_tokens
        return mean_alike(x[:, first:], None if size is None else size[:, first:])


class StaticViT(StaticEnds):
    """A ViT of fixed sizes: a subnet of a supernet with exactly its own parameters, or blocks of sizes of their own.

    `Supernet.extract` gives one with weights, `train.search.global_prune` a smaller one, and so does `load_static`,
    without a supernet.

    Args:
        config: Architecture of the supernet; of its space, only the full width and the token mode count where `subnet`
            is sizes of blocks.
        subnet: Exactly one subnet, or the sizes of all blocks.
        device: Where the parameters are made, which are random; "meta" if others are going to be assigned.

    Attributes:
        subnet: The subnet, None if there is none.
        block_sizes: (depth,) sizes of the blocks.

    Raises:
        ValueError: If `subnet` holds more than one, is not in the search space, or reduces tokens by thresholds; or if
            blocks do not follow on each other.
        TypeError: If it is neither a SubnetConfig nor sizes of blocks.
    """

    def __init__(
        self, config: SupernetConfig, subnet: SubnetConfig | Sequence[BlockSizes], device: str = "cpu"
    ) -> None:
        sizes = [*subnet] if isinstance(subnet, Sequence) else sizes_of_one(config, subnet)
        check_sizes(config, sizes)
        with torch.device(device):
            super().__init__(config, sizes[-1].gives)
            self.subnet, self.block_sizes = None if isinstance(subnet, Sequence) else subnet, sizes
            self.blocks = nn.ModuleList(StaticBlock(config, s) for s in sizes)
            widest = [s.tokens * max(s.hidden_dim, s.qkv_dim) for s in sizes]
            self._numbers_per_image = sum(widest) // len(sizes)

    def forward(self, images: Tensor) -> Tensor:
        """Classifies images.

        Args:
            images: (B, in_chans, img_size, img_size); uint8, which is normalised here, or floats that are normalised
                already with `mean` and `std`.

        Returns:
            (B, num_classes) logits; without a classifier (B, width of the last block) features.

        Raises:
            ValueError: If shape or dtype is wrong.
        """
        images = self.normalised(images)
        # Exported graphs keep the batch whole, and so do gradients, whose activations outgrow the caches anyway.
        if not _only_computes():
            return self._logits(images)
        count = round(len(images) / working_rows(self._numbers_per_image, images.device.type))
        return torch.cat([self._logits(part) for part in images.tensor_split(max(count, 1))])

    def _logits(self, images: Tensor) -> Tensor:
        size: Tensor | None = None
        x = self.tokens_of(images)
        for block in self.blocks:
            x, size = block(x, size)
        return self.forward_head(x, size)

    def macs(self) -> int:
        """Multiply-accumulates for one image.

        Raises:
            ValueError: If the classifier is not the one of the configuration, which is what is counted.
        """
        self.check_classifier()
        return sizes_macs(self.config, self.block_sizes)

    def params(self) -> int:
        """Number of parameters."""
        return sum(p.numel() for p in self.parameters())

    def sizes(self) -> list[dict[str, Any]]:
        """`BlockSizes` of every block as plain data."""
        return [asdict(sizes) for sizes in self.block_sizes]
