"""Images to tokens: what a ViT does before its first block, elastic or static."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .config import SupernetConfig
from .layers import make_norm
from .stems import make_stem


class ImageStem(nn.Module):
    """Patch embedding, class token, registers, positions and CLIP's norm, always at full width.

    Args:
        config: Architecture.
    """

    def __init__(self, config: SupernetConfig) -> None:
        super().__init__()
        self.mean: Tensor
        self.std: Tensor
        self.config, d = config, config.embed_dim
        self.patch_embed = make_stem(config)
        self.patch_norm = make_norm(config.norm, d, config.norm_eps) if config.patch_norm else nn.Identity()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, d)) if config.class_token else None
        self.reg_token = nn.Parameter(torch.zeros(1, config.reg_tokens, d)) if config.reg_tokens else None
        self.pos_embed = nn.Parameter(torch.zeros(1, config.num_tokens, d))
        self.norm_pre = make_norm(config.norm, d, config.norm_eps) if config.pre_norm else nn.Identity()
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
            remedy = "Resize them, or create the supernet with img_size=."
            if images.ndim == 4 and images.shape[1] != c.in_chans:
                remedy = f"It takes {c.in_chans} channel(s): convert them, or create the supernet with in_chans=."
            raise ValueError(
                f"images have the shape {tuple(images.shape)}; this network takes (B, {c.in_chans}, {c.img_size}, "
                f"{c.img_size}) with B >= {least}. {remedy}"
            )
        if images.dtype == torch.uint8:
            return (images.to(self.pos_embed.dtype) / 255 - self.mean) / self.std
        if not images.is_floating_point():
            raise ValueError(f"images are {images.dtype}; pass uint8 in 0..255, or normalised floats.")
        return images

    def tokens_of(self, images: Tensor) -> Tensor:
        """(B, num_tokens, embed_dim) tokens before the first block, of `normalised` images.

        The class token is first, then registers, then the patches row by row.
        """
        x = self.patch_norm(self.patch_embed(images.to(self.pos_embed.dtype)))
        first = [t.expand(x.shape[0], -1, -1) for t in (self.cls_token, self.reg_token) if t is not None]
        if first:
            x = torch.cat([*first, x], dim=1)
        out: Tensor = self.norm_pre(x + self.pos_embed)
        return out
