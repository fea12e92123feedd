"""`prance train static`."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from typing_extensions import Self
from tyro.conf import arg

from ..networks.loop import train_supernet
from ..networks.recipes.static import StaticRecipe
from ..options import Device, SaveFreq, Threads, override_options, set_threads
from ..own_modules import Imports
from ..runs.folder import CONFIG, noted_settings
from ..runs.pace import SAVE_FREQ
from ..runs.trust import check_own_or_local

Changes = Annotated[
    dict[str, Any],
    arg(constructor_factory=lambda: override_options(StaticRecipe, ("source",), {"dataset": "required"}), name=""),
]


@dataclass(frozen=True)
class TrainStatic:
    """Fine-tune a static network, such as a pruned one, with the trainer of stage 1.

    For example:

        prance prune --supernet runs/supernet --dataset pictures --target 0.5 --out runs/pruned
        prance train static --from runs/pruned/0.5 --dataset pictures --teacher runs/supernet --teacher-weight 1 \\
            --out runs/small
        prance export --static runs/small --out exported
    """

    out: Path
    """Run folder."""
    source: Annotated[str, arg(name="from", metavar="FOLDER")] = ""
    """Folder of the network: of prance prune, prance train static, or prance export --format safetensors."""
    changes: Changes = field(default_factory=dict)
    resume: bool = False
    """Continue an interrupted run; the result is the same as without interruption."""
    save_freq: SaveFreq = SAVE_FREQ
    max_hours: float | None = None
    """Stop with a checkpoint after so many hours; --resume goes on."""
    device: Device = "cpu"
    threads: Threads = 1
    imports: Imports = ()

    @classmethod
    def resumed(cls, out: Path) -> Self | None:
        """The options of the run in a folder; None if there is none."""
        noted = noted_settings(out)
        if noted is None:
            return None
        check_own_or_local(noted.get("dataset"), out / CONFIG)
        return cls(out, noted.pop("source"), noted, resume=True)

    def run(self) -> None:
        """Runs the command.

        Raises:
            ValueError: If no network is named.
        """
        if not self.source:
            raise ValueError("--from is missing: pass the folder of a static network, such as prance prune writes.")
        set_threads(self.threads)
        recipe = StaticRecipe(source=self.source, **self.changes)
        train_supernet(recipe, self.out, self.device, self.resume, self.save_freq, self.max_hours)
        if int(os.environ.get("RANK", "0")) == 0:
            print(f"Network written to {self.out}; load it with supernet.load_static, or prance export --static.")
