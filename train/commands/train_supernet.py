"""`prance train supernet`."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from typing_extensions import Self
from tyro.conf import arg

from ..networks.loop import train_supernet
from ..networks.presets import PRESETS, recipe_of
from ..networks.recipes.images import ImagesRecipe
from ..options import Device, SaveFreq, Threads, choice, override_options, set_threads
from ..own_modules import Imports
from ..runs.folder import CONFIG, noted_settings
from ..runs.pace import SAVE_FREQ
from ..runs.trust import check_own_or_local

Preset = Annotated[str, choice(lambda: PRESETS)]
Changes = Annotated[
    dict[str, Any], arg(constructor_factory=lambda: override_options(ImagesRecipe, ("source",)), name="")
]


@dataclass(frozen=True)
class TrainSupernet:
    """Stage 1: train a supernet, Digits' or your own.

    For example:

        prance train supernet --preset digits --out runs/supernet
        prance train supernet --preset digits-quick --out runs/quick
        prance train supernet --preset pretrained-light --from runs/deit --dataset pictures --out runs/supernet
        prance train supernet --preset finetune --from timm:deit_small_patch16_224 --dataset pictures \\
            --num-classes 2 --out runs/tuned
        prance train supernet --out runs/quick --resume
    """

    out: Path
    """Run folder."""
    preset: Preset = "digits"
    """digits, digits-quick: the bundled supernet's recipe, in hours or minutes; finetune: the full network alone;
    pretrained-light: a network that comes with weights; scratch: one that does not; prance-...-imagenet: the paper's
    spaces (docs/scale.md)."""
    source: Annotated[str | None, arg(name="from", metavar="RUN|NAME|timm:NAME")] = None
    """Network to begin with: a folder (of a run, or written by save_pretrained), timm:NAME, or a registered name."""
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
        source = noted.pop("source", None)
        return cls(out, "digits" if source is None else "scratch", source, noted, resume=True)

    def run(self) -> None:
        """Runs the command."""
        set_threads(self.threads)
        changes = dict(self.changes) | ({} if self.source is None else {"source": self.source})
        train_supernet(
            recipe_of(self.preset, changes), self.out, self.device, self.resume, self.save_freq, self.max_hours
        )
        if int(os.environ.get("RANK", "0")) == 0:
            print(f"Supernet written to {self.out}; use it with --checkpoint {self.out}")
