"""Images to tokens: what a ViT does before its first block, elastic or static."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .config import SupernetConfig
from .layers import PatchEmbed


class ImageStem(nn.Module):
    """Patch embedding, class token, positions and CLIP's norm, always at full width; the base of both kinds of ViT.

    Args:
        config: Architecture.
    """

    def __init__(self, config: SupernetConfig) -> None:
        super().__init__()
        self.mean: Tensor
        self.std: Tensor
        self.config, d = config, config.embed_dim
        self.patch_embed = PatchEmbed(config.stem, config.patch_size, config.in_chans, d)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, d)) if config.class_token else None
        self.pos_embed = nn.Parameter(torch.zeros(1, config.num_tokens, d))
        self.norm_pre = nn.LayerNorm(d, config.norm_eps) if config.pre_norm else nn.Identity()
        self.register_buffer("mean", torch.tensor(config.mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config.std).view(1, -1, 1, 1), persistent=False)

    def normalised(self, images: Tensor, least: int = 0) -> Tensor:
        """Images as the patch embedding takes them: checked, and normalised with mean and std if they are uint8.

        Args:
            images: (B, in_chans, img_size, img_size) uint8, or floats that are normalised already.
            least: Smallest B that is allowed.

        Raises:
            ValueError: If shape or dtype is wrong.
            TypeError: If the images are no tensor.
        """
        if not isinstance(images, Tensor):
            kind = type(images)
            raise TypeError(
                f"images are a {kind.__module__}.{kind.__qualname__}; pass a torch.Tensor, for example "
                "torch.from_numpy(array)."
            )
        c = self.config
        fits = images.ndim == 4 and tuple(images.shape[1:]) == (c.in_chans, c.img_size, c.img_size)
        if not fits or (least and len(images) < least):
            raise ValueError(
                f"images have the shape {tuple(images.shape)}; this network takes (B, {c.in_chans}, {c.img_size}, "
                f"{c.img_size}) with B >= {least}. Resize them, or create the supernet with img_size=."
            )
        if images.dtype == torch.uint8:
            return (images.to(self.pos_embed.dtype) / 255 - self.mean) / self.std
        if not images.is_floating_point():
            raise ValueError(f"images are {images.dtype}; pass uint8 in 0..255, or normalised floats.")
        return images

    def tokens_of(self, images: Tensor) -> Tensor:
        """(B, num_tokens, embed_dim) tokens before the first block, the class token first, of `normalised` images."""
        x = self.patch_embed(images.to(self.pos_embed.dtype))
        if self.cls_token is not None:
            x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1)
        out: Tensor = self.norm_pre(x + self.pos_embed)
        return out
