"""`prance import timm` and `prance import prance`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from ..networks.importing import import_prance, import_timm


@dataclass(frozen=True)
class ImportTimm:
    """Make a plain ViT of timm elastic.

    For example:

        prance import timm deit_small_patch16_224 --pretrained --out runs/deit
    """

    model: Positional[Annotated[str, arg(metavar="MODEL")]]
    """Name of a model of timm."""
    out: Path
    """Folder for the supernet; use it with --checkpoint."""
    pretrained: bool = False
    """Download timm's weights; otherwise they are random."""

    def run(self) -> None:
        """Runs the command."""
        import_timm(self.model, self.out, self.pretrained)


@dataclass(frozen=True)
class ImportPrance:
    """Read a meta-network of PRANCE's authors.

    For example:

        prance import prance supernet-tiny.pth --out runs/prance-tiny
        prance import prance supernet-tiny.pth --out runs/prance-merge --token-mode merge
    """

    checkpoint: Positional[Annotated[Path, arg(metavar="CHECKPOINT")]]
    """Their file, or its weights as safetensors."""
    out: Path
    """Folder for the supernet; use it with --checkpoint."""
    token_mode: Literal["prune", "merge", "prune_merge"] = "prune"
    """How patches leave."""

    def run(self) -> None:
        """Runs the command."""
        import_prance(self.checkpoint, self.out, self.token_mode)
