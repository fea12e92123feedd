"""`prance export`."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

from rich.console import Console

from ..deploy.export import export_model
from ..deploy.opening import open_adaptive
from ..networks.export import ExportSettings, run_export
from ..options import DatasetOption, Trust, given_flags, narrowed
from ..own_modules import Imports


@dataclass(frozen=True, kw_only=True)
class Export(ExportSettings):
    """Write one subnet as files that run without its supernet, or a whole adaptive network as one ONNX file.

    Every file is run on random images and compared with the supernet before it is kept. Networks take float images
    that are normalised already, with the mean and std in static.json beside them.

    For example:

        prance export --out exported
        prance export --out exported --format onnx torch safetensors --subnet min
        prance export --out exported --keep-rate 0.7 --embed-dim 48 --mlp-ratio 1
        prance export --out exported --supernet runs/supernet --subnet subnet.json --uint8
        prance export --adaptive runs/agent --out model.onnx
        prance export --out exported --static runs/small-0.4
    """

    out: Path
    """Folder for model.onnx, model.pt2, model.safetensors and static.json; with --adaptive also a file, NAME.onnx."""
    adaptive: str | None = None
    """Instead of a subnet: network, policy and menu of a run folder, or of a model that save_pretrained wrote."""
    checkpoint: str | None = None
    """With --adaptive, of a run: another supernet than that of the training, such as that of prance train joint."""
    dataset: DatasetOption | None = None
    """With --adaptive, of a run: where its images lie now; JSON says anew how they are prepared, too
    (docs/images.md)."""
    trust: Trust = False
    entries: int = 16
    """With --adaptive: entries of the menu for each decision, if the model has none."""
    imports: Imports = ()

    def run(self) -> None:
        """Runs the command."""
        if self.adaptive is None:
            if given := given_flags(self, ("entries", "checkpoint", "dataset")):
                raise ValueError(f"{given[0]} is for an adaptive network; pass --adaptive, or leave it out.")
            run_export(narrowed(self, ExportSettings), self.out)
            return
        if given := given_flags(self, [f.name for f in fields(ExportSettings) if f.name not in ("uint8", "seed")]):
            takes = "--checkpoint, --dataset, --entries, --uint8 and --seed"
            raise ValueError(f"{given[0]} is for one subnet; --adaptive takes {takes}.")
        opened = open_adaptive(self.adaptive, self.checkpoint, self.dataset, 0, self.entries, trust=self.trust)
        export_model(opened, self.out, self.uint8, self.seed, Console())
