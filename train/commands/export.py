"""Arguments of `prance export` and `prance import`: networks out of this package and into it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg, subcommand


@dataclass
class Export:
    """Write one subnet as files that run without its supernet: ONNX, torch.export's .pt2, or safetensors.

    Every file is run on random images and compared with the supernet before it is kept. Networks take float images
    that are normalised already, with the mean and std in static.json beside them.

    For example:

        prance export --out exported
        prance export --out exported --format onnx torch safetensors --subnet min
        prance export --out exported --keep-rate 0.7 --embed-dim 48 --mlp-ratio 1
        prance export --out exported --supernet runs/supernet --subnet subnet.json --uint8
    """

    out: Path
    """Folder for model.onnx, model.pt2, model.safetensors and static.json."""
    format: tuple[Literal["onnx", "torch", "safetensors"], ...] = ("onnx",)
    """What to write; onnx needs the extra prance-env[export]. supernet.load_static loads safetensors."""
    supernet: str = "digits"
    """Registered name, or a folder written by save_pretrained; digits is the bundled one."""
    subnet: str | None = None
    """full, min, a JSON file or JSON text of one subnet (SubnetConfig.to_json), or a static agent's file."""
    keep_rate: tuple[float, ...] = ()
    """Instead of --subnet: keep rate of every decision, or one for each stage of the token mode; 1 if not given."""
    embed_dim: int | None = None
    """Instead of --subnet: width of every decided block; the full one if not given."""
    mlp_ratio: float | None = None
    """Instead of --subnet: hidden width of every decided MLP over its width; the full one if not given."""
    uint8: bool = False
    """ONNX and torch files take uint8 images and normalise them."""
    seed: int = 0
    """Of the random images."""

    def run(self) -> None:
        from ..networks.export import run_export

        run_export(
            self.out,
            self.format,
            self.supernet,
            self.subnet,
            self.keep_rate,
            self.embed_dim,
            self.mlp_ratio,
            self.uint8,
            self.seed,
        )


@dataclass
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
        from ..networks.importing import import_timm

        import_timm(self.model, self.out, self.pretrained)


@dataclass
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
        from ..networks.importing import import_prance

        import_prance(self.checkpoint, self.out, self.token_mode)


@dataclass
class Import:
    """Make a supernet out of weights from elsewhere.

    For example:

        prance import timm deit_small_patch16_224 --pretrained --out runs/deit
        prance import prance supernet-tiny.pth --out runs/prance-tiny
    """

    source: Annotated[ImportTimm, subcommand("timm")] | Annotated[ImportPrance, subcommand("prance")]

    def run(self) -> None:
        self.source.run()
