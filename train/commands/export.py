"""`prance export`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..networks.export import ExportSettings, run_export
from ..options import narrowed


@dataclass(frozen=True, kw_only=True)
class Export(ExportSettings):
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

    def run(self) -> None:
        """Runs the command."""
        run_export(narrowed(self, ExportSettings), self.out)
