"""Tokens to logits: what a ViT does after its last block, elastic or static."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .arrays import Ints
from .config import SupernetConfig
from .layers import activate, linear, make_norm, prefix_norm, set_width
from .plan import hidden_dims
from .runtime.packing import first_rows, take_rows
from .runtime.pooling import attend_once, by_width, mean_patches, patches_alike
from .state import InferenceState
from .stem import ImageStem
from .zero_shot import ZeroShotHead, classify, head_layers, init_head, make_classifier

CLASSIFIERS = ("head", "head_dist")


class AttentionPool(nn.Module):
    """A learned query attends to the patches of an image, and an MLP follows (SigLIP, Zhai et al. 2023).

    It is as large as a full block, whatever the width of the tokens: only the channels that it reads are cut.

    Args:
        config: Architecture.
        width: Channels of the tokens that it reads.
    """

    def __init__(self, config: SupernetConfig, width: int) -> None:
        super().__init__()
        d = config.embed_dim
        hidden = int(hidden_dims(np.array(d), np.array(config.space.mlp_ratios[-1])))
        self.num_heads, self.act = d // config.head_dim, config.act
        self.query = nn.Parameter(torch.zeros(1, 1, d))
        self.kv = nn.Linear(width, 2 * d)
        self.proj = nn.Linear(d, d)
        self.norm = make_norm(config.norm, d, config.norm_eps)
        self.fc1 = nn.Linear(d, hidden)
        self.fc2 = nn.Linear(hidden, d)

    def forward(self, x: Tensor, size: Tensor | None) -> Tensor:
        """Pools images of equally many tokens.

        Args:
            x: (B, N, width) patches.
            size: (B, N) how many patches each stands for, which counts as often; None: one each.

        Returns:
            (B, embed_dim).
        """
        batch, n, d = *x.shape[:2], self.proj.in_features
        k, v = self.kv(x).view(batch, n, 2, self.num_heads, d // self.num_heads).permute(2, 0, 3, 1, 4)
        q = self.query.view(1, 1, self.num_heads, -1).transpose(1, 2).expand(batch, -1, -1, -1)
        mask = None if size is None else size.log().to(x.dtype)[:, None, None, :]
        return self._refined(F.scaled_dot_product_attention(q, k, v, attn_mask=mask).reshape(batch, d))

    def packed(self, rows: Tensor, width: Ints, lengths: Ints, size: Tensor | None) -> Tensor:
        """Pools a packed batch.

        Args:
            rows: (R, C) patches, image after image.
            width: (R,) active channels of each.
            lengths: (B,) patches per image.
            size: (R,) how many patches each stands for, which counts as often; None: one each.

        Returns:
            (B, embed_dim).
        """
        kv = by_width(rows, width, lambda x, _: linear(self.kv, x, self.kv.out_features))
        k, v = kv.view(len(kv), 2, self.num_heads, -1).unbind(1)
        query = self.query.view(self.num_heads, -1)
        return self._refined(attend_once(query, k, v, lengths, None if size is None else size.log()))

    def _refined(self, pooled: Tensor) -> Tensor:
        x = self.proj(pooled)
        out: Tensor = x + self.fc2(activate(self.act, self.fc1(self.norm(x))))
        return out

    @torch.no_grad()
    def init_weights(self) -> None:
        """As blocks draw theirs: variance 1 / fan-in, zero biases; the query like a class token."""
        nn.init.trunc_normal_(self.query, std=0.02)
        for layer in (self.kv, self.proj, self.fc1, self.fc2):
            nn.init.trunc_normal_(layer.weight, std=layer.in_features**-0.5)
            nn.init.zeros_(layer.bias)


class ImageClassifier(ImageStem):
    """Both ends of a ViT: all but its blocks, which the two kinds of ViT make between `__init__` and `make_head`.

    Args:
        config: Architecture.
    """

    def make_head(self, width: int, narrower: tuple[int, ...] = ()) -> None:
        """Makes the last norm, the pooling and the classifiers.

        Args:
            width: Channels of the tokens after the last block.
            narrower: Fewer channels that they may have, too, in a supernet.
        """
        c = self.config
        self.last_width, self.features = width, c.embed_dim if c.global_pool == "map" else width
        self.norm = make_norm(c.norm, width, c.norm_eps) if c.final_norm else nn.Identity()
        self.pool = AttentionPool(c, width) if c.global_pool == "map" else None
        self.head = make_classifier(c, self.features, narrower)
        self.head_dist = nn.Linear(self.features, c.num_classes) if c.num_classes and c.distilled else None

    def init_classifier(self) -> None:
        """Draws the classifiers: truncated normal with std .02, zero biases, as in ViT; of zero-shot ones see there."""
        for layer in (self.head, self.head_dist):
            init_head(layer)

    def reset_classifier(self, num_classes: int) -> None:
        """Puts a new linear classifier in the place of the old one; `config.num_classes` follows.

        Args:
            num_classes: Its classes; 0: none, the network then gives its pooled features.

        Raises:
            ValueError: If the number is negative.
        """
        self.config = replace(self.config, num_classes=num_classes, class_names=(), text_dim=None, text_fitted=False)
        like = self.pos_embed
        for name in CLASSIFIERS:
            wanted = num_classes and (name == "head" or self.config.distilled)
            new = nn.Linear(self.features, num_classes, device=like.device, dtype=like.dtype) if wanted else None
            setattr(self, name, None if new is None else new.train(self.training))
        self.init_classifier()

    def check_classifier(self) -> None:
        """Checks that the classifiers are those of the configuration: users may have put others in their place.

        Raises:
            ValueError: If one is missing, is of another kind than the configuration says, or has other sizes.
        """
        classes = self.config.num_classes
        if self.config.text_dim is not None:
            if classes and not (isinstance(self.head, ZeroShotHead) and len(self.head.text) == classes):
                raise ValueError(
                    f"net.head is {self.head}, but the configuration says {classes} classes as texts (text_dim="
                    f"{self.config.text_dim}). Put texts in with supernet.convert.clip.with_texts, or call "
                    "net.reset_classifier(num_classes) for a linear classifier."
                )
            return
        for name in CLASSIFIERS:
            layer, wanted = getattr(self, name), classes if name == "head" or self.config.distilled else 0
            if layer is not None and not (isinstance(layer, nn.Linear) and layer.in_features == self.features):
                raise ValueError(
                    f"net.{name} is {layer}, but a supernet runs a slice of it: it must be an nn.Linear of "
                    f"{self.features} inputs. Call net.reset_classifier(num_classes), and train or copy its weights."
                )
            found = 0 if layer is None else layer.out_features
            if found != wanted:
                raise ValueError(
                    f"net.{name} has {found} classes, but the configuration says {wanted} (num_classes={classes}). "
                    f"Call net.reset_classifier({found or wanted}) and copy your weights into the layer that it makes."
                )


def end_layers(net: nn.Module) -> dict[str, nn.Module | None]:
    """Layers after the last block whose weights are cut to size or copied, by name."""
    children = net._modules  # past named_children(), which would take as long as the layers themselves
    pool = children.get("pool")
    layers = {} if pool is None else {f"pool.{name}": layer for name, layer in pool.named_children()}
    return {**layers, "norm": children.get("norm"), **head_layers({name: children.get(name) for name in CLASSIFIERS})}


# ---- a packed batch -------------------------------------------------------------------------------------------------


def pooled(config: SupernetConfig, state: InferenceState) -> Tensor:
    """(B, C) class tokens, or means of the patches, before the last norm."""
    return state.class_token if config.global_pool == "token" else _mean_patches(config, state, state.tokens)


def packed_logits(net: ImageClassifier, state: InferenceState) -> Tensor:
    """Last norm, pooling and classifier on a packed batch, each image at its own width.

    Args:
        net: Whose they are, at full width.
        state: Any state.

    Returns:
        (B, num_classes) logits; without a classifier (B, embed_dim) features, zero beyond an image's width.
    """
    logits = _classified(net.head, *_features(net, state))
    if not net.config.distilled:
        return logits
    second = by_width(state.token(1), state.token_dim, partial(_normed, net))
    return (logits + _classified(net.head_dist, second, state.token_dim)) / 2


def _features(net: ImageClassifier, state: InferenceState) -> tuple[Tensor, Ints]:
    """(B, embed_dim) what the classifier sees, and (B,) how many of its channels are active."""
    c, normed = net.config, partial(_normed, net)
    if c.global_pool == "token" or c.fc_norm:
        return by_width(pooled(c, state), state.token_dim, normed), state.token_dim
    dims = np.repeat(state.token_dim, state.num_tokens)
    rows = by_width(state.tokens, dims, normed)
    if net.pool is None:
        return _mean_patches(c, state, rows), state.token_dim
    full = np.full(len(state), c.embed_dim, dtype=np.int64)
    alike = patches_alike(rows, state.size, state.num_tokens, c.num_prefix_tokens)
    if alike is not None and (state.token_dim == net.last_width).all():
        return net.pool(*alike), full
    patches = np.delete(np.arange(len(rows)), first_rows(state.num_tokens, c.num_prefix_tokens))
    size = None if state.size is None else take_rows(state.size, patches)
    lengths = state.num_tokens - c.num_prefix_tokens
    return net.pool.packed(take_rows(rows, patches), dims[patches], lengths, size), full


def _classified(head: nn.Module | None, features: Tensor, width: Ints) -> Tensor:
    return features if head is None else by_width(features, width, lambda rows, _: classify(head, rows))


def _normed(net: ImageClassifier, x: Tensor, width: int) -> Tensor:
    return set_width(prefix_norm(net.norm, x, net.config.zoom(width)), net.config.embed_dim)


def _mean_patches(config: SupernetConfig, state: InferenceState, rows: Tensor) -> Tensor:
    return mean_patches(rows, state.num_tokens, state.size, config.num_prefix_tokens)
