"""`prance import timm` and `prance import prance`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from ..networks.importance import Score
from ..networks.importing import import_prance, import_timm
from ..options import DatasetOption


@dataclass(frozen=True)
class ImportTimm:
    """Make a plain ViT of timm elastic.

    For example:

        prance import timm deit_small_patch16_224 --pretrained --out runs/deit
        prance import timm deit_small_patch16_224 --pretrained --order taylor --dataset pictures --out runs/deit
    """

    model: Positional[Annotated[str, arg(metavar="MODEL")]]
    """Name of a model of timm."""
    out: Path
    """Folder for the supernet; use it with --checkpoint."""
    pretrained: bool = False
    """Download timm's weights; otherwise they are random."""
    order: Score | None = None
    """Sort the units by importance, so that narrow subnets hold the best of them (prance order); needs --dataset."""
    dataset: DatasetOption | None = None
    """Images for --order: digits, a folder in ImageNet's layout, a timm name, or JSON (docs/images.md)."""

    def run(self) -> None:
        """Runs the command."""
        import_timm(self.model, self.out, self.pretrained, self.order, self.dataset)


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
