"""The elastic Vision Transformer: one set of weights, a different sub-network for every image."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import macs
from .config import SearchSpace, SupernetConfig
from .layers import ElasticBlock, PatchEmbed, layer_norm, linear, set_width
from .ragged import Ints, attention, rows_of, runs, take_rows
from .reduction import TOKEN_MODES, kept_tokens
from .state import InferenceState
from .subnet import GroupChoice, SubnetConfig


class Supernet(nn.Module):
    """Elastic ViT (PRANCE, arXiv 2407.05010).

    `net(images)` is a plain ViT of full width; `net(images, subnet)` runs every image with its own widths and patches,
    and really computes no more. `begin`, `run_group` and `finish` do the same step by step; they are pure.

    Args:
        config: Architecture and search space.
    """

    def __init__(self, config: SupernetConfig) -> None:
        super().__init__()
        if config.space.token_mode not in TOKEN_MODES:
            raise ValueError(f"token_mode={config.space.token_mode!r} is unknown; choose one of {sorted(TOKEN_MODES)}.")
        self.mean: Tensor
        self.std: Tensor
        self.config = config
        space, d = config.space, config.embed_dim
        ends = {space.blocks(g)[-1] for g in range(len(space.groups) - 1)}
        self.patch_embed = PatchEmbed(config.stem, config.patch_size, config.in_chans, d)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, d))
        self.pos_embed = nn.Parameter(torch.zeros(1, config.num_patches + 1, d))
        hidden = int(d * space.mlp_ratios[-1])
        self.blocks = nn.ModuleList(
            ElasticBlock(d, hidden, space.max_heads, config.head_dim, config.norm_eps, config.lln and i in ends)
            for i in range(space.depth)
        )
        self.norm = nn.LayerNorm(d, config.norm_eps)
        self.head = nn.Linear(d, config.num_classes)
        self.register_buffer("mean", torch.tensor(config.mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config.std).view(1, -1, 1, 1), persistent=False)
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Truncated normal with std .02 for embeddings and head (ViT); blocks as in `ElasticBlock.init_weights`."""
        for tensor in (self.cls_token, self.pos_embed, self.head.weight):
            nn.init.trunc_normal_(tensor, std=0.02)
        nn.init.zeros_(self.head.bias)
        for block in self.blocks:
            cast(ElasticBlock, block).init_weights()

    @property
    def space(self) -> SearchSpace:
        """The search space."""
        return self.config.space

    # ---- step by step -------------------------------------------------------------------------------------------

    def begin(self, images: Tensor) -> InferenceState:
        """Patch embedding, class token and the first group, which is not decided.

        Args:
            images: (B, in_chans, img_size, img_size); uint8 in 0..255 or float in 0..1. Normalised here.

        Raises:
            ValueError: If the shape or dtype is wrong.
        """
        c = self.config
        if images.ndim != 4 or tuple(images.shape[1:]) != (c.in_chans, c.img_size, c.img_size) or not len(images):
            raise ValueError(
                f"images have the shape {tuple(images.shape)}; this supernet takes (B, {c.in_chans}, {c.img_size}, "
                f"{c.img_size}) with B >= 1. Resize them, or create the supernet with img_size=."
            )
        dtype = self.pos_embed.dtype
        if images.dtype == torch.uint8:
            images = images.to(dtype) / 255
        elif not images.is_floating_point():
            raise ValueError(f"images are {images.dtype}; pass uint8 in 0..255 or floats in 0..1.")
        patches = self.patch_embed((images.to(dtype) - self.mean) / self.std)
        batch, n = len(images), c.num_patches + 1
        tokens = torch.cat([self.cls_token.expand(batch, -1, -1), patches], dim=1) + self.pos_embed
        state = InferenceState(
            group=0,
            tokens=tokens.reshape(batch * n, -1),
            num_tokens=np.full(batch, n, dtype=np.int64),
            source=torch.arange(-1, n - 1, device=tokens.device).repeat(batch),
            embed_dim=np.full(batch, c.embed_dim, dtype=np.int64),
            macs=np.full(batch, macs.stem_macs(c), dtype=np.int64),
        )
        return self.run_group(state, 0, GroupChoice.full(c.space, 0, batch))

    def run_group(self, state: InferenceState, group: int, choice: GroupChoice) -> InferenceState:
        """Runs one group of blocks.

        A boundary hands on the full width; the first block of the next group truncates it to its own. Inside a group
        the residual is truncated or zero-padded where widths change. Patches leave between attention and MLP of the
        first block.

        Args:
            state: Where the images are; unchanged.
            group: Must be `state.group`.
            choice: Sizes for every image of the state.

        Raises:
            ValueError: If the group is not the next one, the choice is for another number of images or blocks, or it is
                not in the search space.
        """
        space = self.config.space
        if group != state.group or group >= len(space.groups):
            raise ValueError(
                f"group={group} cannot run: the state is before group {state.group} of {len(space.groups)}."
            )
        if tuple(choice.embed_dim.shape) != (len(state), space.groups[group]):
            raise ValueError(
                f"The choice has the shape {tuple(choice.embed_dim.shape)}; group {group} of these images takes "
                f"({len(state)}, {space.groups[group]})."
            )
        choice.validate(space)
        spent, _ = macs.group_macs(self.config, group, choice, state.num_tokens)
        widths, ratios, keep = choice.embed_dim.numpy(), choice.mlp_ratio.numpy(), choice.keep_rate.numpy()
        last_group = group == len(space.groups) - 1

        x, lengths, source = state.tokens, state.num_tokens, state.source
        images = np.arange(len(state))  # which image stands at each place of the packed buffer
        for i, block_index in enumerate(space.blocks(group)):
            hidden = macs.hidden_dims(widths[:, i], ratios[:, i])
            order = np.lexsort((hidden[images], widths[images, i]))
            if not np.array_equal(order, np.arange(len(order))):
                rows = rows_of(order, lengths)
                x, source = take_rows(x, rows), take_rows(source, rows)
                images, lengths = images[order], lengths[order]
            w, f = widths[images, i], hidden[images]
            kept = kept_tokens(lengths, keep[images]) if group and i == 0 else lengths
            block = cast(ElasticBlock, self.blocks[block_index])
            boundary = i == len(space.blocks(group)) - 1 and not last_group

            x, scores = self._attention(block, x, lengths, w, with_class_row=bool((kept < lengths).any()))
            if scores is not None:
                survivors = TOKEN_MODES[space.token_mode](scores, lengths, kept)
                x, source, lengths = x.index_select(0, survivors), source.index_select(0, survivors), kept
            x = self._mlp(block, x, lengths, w, f, boundary)

        if not np.array_equal(images, np.arange(len(images))):
            back = np.argsort(images)
            rows = rows_of(back, lengths)
            x, source, lengths = take_rows(x, rows), take_rows(source, rows), lengths[back]
        return InferenceState(group + 1, x, lengths, source, widths[:, -1].copy(), state.macs + spent)

    def finish(self, state: InferenceState, subnet: SubnetConfig | None = None) -> Tensor:
        """Runs the rest of the network and the head: Result-to-Go.

        Args:
            state: Where the images are; unchanged.
            subnet: Sizes of the groups that are still to run (earlier ones are ignored), one per image or one for all;
                None is full size.

        Returns:
            (B, num_classes) logits.

        Raises:
            ValueError: If the subnet does not fit the images or is not in the search space.
        """
        if subnet is not None:
            subnet = self._checked(subnet).expand(len(state))
        return self.forward_head(self.run_to_end(state, subnet))

    def run_to_end(self, state: InferenceState, subnet: SubnetConfig | None = None) -> InferenceState:
        """`finish` without the head."""
        space = self.config.space
        for group in range(state.group, len(space.groups)):
            choice = GroupChoice.full(space, group, len(state)) if subnet is None else subnet.group(space, group)
            state = self.run_group(state, group, choice)
        return state

    def class_token_width(self, state: InferenceState) -> Ints:
        """(B,) active channels of the class tokens: full at a boundary, the last block's at the end."""
        if state.group == len(self.space.groups):
            return state.embed_dim
        return np.full(len(state), self.config.embed_dim)

    def forward_head(self, state: InferenceState) -> Tensor:
        """Final norm and classifier on the class tokens of any state: (B, num_classes) logits.

        At a boundary before the end this is an early exit: the class token there has full width.
        """
        cls = state.class_token
        width = self.class_token_width(state)
        order = np.argsort(width, kind="stable")
        out = [
            linear(self.head, layer_norm(self.norm, rows[:, : width[order[a]]]), self.config.num_classes)
            for a, b in runs(width[order])
            for rows in [take_rows(cls, order[a:b])]
        ]
        return take_rows(torch.cat(out), np.argsort(order))

    # ---- all at once --------------------------------------------------------------------------------------------

    def forward_features(self, images: Tensor, subnet: SubnetConfig | None = None) -> InferenceState:
        """All blocks; `forward_head` takes the result."""
        if subnet is not None:
            subnet = self._checked(subnet).expand(len(images))
        return self.run_to_end(self.begin(images), subnet)

    def forward(self, images: Tensor, subnet: SubnetConfig | None = None) -> Tensor:
        """Classifies images.

        Args:
            images: (B, in_chans, img_size, img_size); uint8 in 0..255 or float in 0..1.
            subnet: One per image, or one for all; None is the full network.

        Returns:
            (B, num_classes) logits.

        Raises:
            ValueError: If shapes do not fit or the subnet is not in the search space.
        """
        return self.forward_head(self.forward_features(images, subnet))

    def class_attention(self, state: InferenceState, choice: GroupChoice) -> Tensor:
        """(T,) packed attention of the class tokens in the block that would drop patches next, averaged over heads."""
        order = np.argsort(choice.embed_dim[:, 0].numpy(), kind="stable")
        rows = rows_of(order, state.num_tokens)
        block = cast(ElasticBlock, self.blocks[self.space.blocks(state.group)[0]])
        _, scores = self._attention(
            block,
            take_rows(state.tokens, rows),
            state.num_tokens[order],
            choice.embed_dim[:, 0].numpy()[order],
            with_class_row=True,
        )
        assert scores is not None
        return take_rows(scores, np.argsort(rows))

    # ---- costs --------------------------------------------------------------------------------------------------

    def macs(self, subnet: SubnetConfig | None = None) -> Tensor:
        """(B,) int64 multiply-accumulates per image ("FLOPs" in papers), exact; None is the full network."""
        subnet = self._checked(subnet)
        tokens = np.full(len(subnet), self.config.num_patches + 1, dtype=np.int64)
        return torch.from_numpy(macs.stem_macs(self.config) + macs.remaining_macs(self.config, 0, tokens, subnet))

    def macs_to_go(self, state: InferenceState) -> Ints:
        """(B,) MACs of the whole inference if `state` is finished at full size."""
        if state.group == len(self.space.groups):
            return state.macs + macs.head_macs(self.config, state.embed_dim)
        return state.macs + macs.remaining_macs(self.config, state.group, state.num_tokens)

    def params(self, subnet: SubnetConfig | None = None) -> Tensor:
        """(B,) int64 parameters of the networks that `extract` gives."""
        subnet = self._checked(subnet)
        return torch.from_numpy(macs.subnet_params(self.config, subnet.embed_dim.numpy(), subnet.mlp_ratio.numpy()))

    def extract(self, subnet: SubnetConfig) -> nn.Module:
        """One subnet as a plain module, see `supernet.extract.extract`."""
        from .extract import extract

        return extract(self, subnet)

    def _checked(self, subnet: SubnetConfig | None) -> SubnetConfig:
        subnet = SubnetConfig.full(self.space) if subnet is None else subnet
        subnet.validate(self.space)
        return subnet

    # ---- halves of a block on packed tokens ---------------------------------------------------------------------

    def _attention(
        self, block: ElasticBlock, x: Tensor, lengths: Ints, widths: Ints, with_class_row: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Residual attention. Images must be sorted by width; gives (T, C) of the widest and (T,) scores."""
        ends = np.cumsum(lengths)
        outs, scores = [], []
        for a, b in runs(widths):
            w, heads = int(widths[a]), self.space.heads(int(widths[a]))
            rows = x[int(ends[a] - lengths[a]) : int(ends[b - 1])]
            residual = set_width(rows, w)
            qkv = linear(block.qkv, layer_norm(block.norm1, residual), 3 * heads * self.config.head_dim)
            out, score = attention(qkv, lengths[a:b], heads, with_class_row)
            outs.append(set_width(residual + linear(block.proj, out, w), int(widths[-1])))
            scores.append(score)
        return _cat(outs), _cat([s for s in scores if s is not None]) if with_class_row else None

    def _mlp(self, block: ElasticBlock, x: Tensor, lengths: Ints, widths: Ints, hidden: Ints, boundary: bool) -> Tensor:
        """Residual MLP, and the map over a group boundary. Images must be sorted by (width, hidden)."""
        ends = np.cumsum(lengths)
        full = self.config.embed_dim
        outs = []
        for a, b in runs(widths, hidden):
            w = int(widths[a])
            out_width = full if boundary else w
            residual = x[int(ends[a] - lengths[a]) : int(ends[b - 1]), :w]
            h = F.gelu(linear(block.fc1, layer_norm(block.norm2, residual), int(hidden[a])))
            if boundary and block.lln is not None:
                residual = linear(block.lln, residual, full)
            y = set_width(residual, out_width) + linear(block.fc2, h, out_width)
            outs.append(set_width(y, full if boundary else int(widths[-1])))
        return _cat(outs)


def _cat(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def freeze(net: Supernet) -> Supernet:
    """Evaluation mode, no gradients: the form in which a supernet becomes an environment."""
    return net.eval().requires_grad_(False)


def with_space(config: SupernetConfig, **changes: Any) -> SupernetConfig:
    """The configuration with changed search-space settings."""
    return replace(config, space=replace(config.space, **changes))
