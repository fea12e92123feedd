"""`prance distill`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from ..networks.distill import TOLERATED, DistillSettings, check_distill, run_distill
from ..networks.logit_store import DESCRIPTION
from ..options import Device, Threads, narrowed, set_threads
from ..own_modules import Imports


@dataclass(frozen=True, kw_only=True)
class Distill(DistillSettings):
    """Store what a teacher says about augmented images, for trainings to read (TinyViT's fast distillation).

    For example:

        prance distill --teacher timm:deit3_base_patch16_224 --student runs/deit --dataset pictures --out store
        prance distill --teacher runs/big --student runs/small --dataset pictures --out store
        prance train supernet --preset pretrained-light --from runs/small --dataset pictures --teacher store:store \\
            --crop-scale 0.08 1 --flip 0.5 --rand-augment rand-m9-mstd0.5-inc1 --out runs/supernet
    """

    out: Path
    """Folder of the store."""
    resume: bool = False
    """Go on with a store that was begun."""
    check: int | None = None
    """Ask the teacher again about so many stored views, and write nothing."""
    num_workers: int = 0
    """Processes that draw views."""
    device: Device = "cpu"
    threads: Threads = 1
    imports: Imports = ()
    begun: ClassVar[str] = DESCRIPTION

    def run(self) -> None:
        """Runs the command."""
        set_threads(self.threads)
        settings = narrowed(self, DistillSettings)
        if self.check is not None:
            found = check_distill(settings, self.out, self.check, self.device, self.num_workers)
            print(
                f"{found.records} records asked again: probabilities differ by {found.difference:.1e} on average, by "
                f"more than {TOLERATED} in {found.differing:.2%} of the records; {found.mismatched:.2%} of the classes "
                "are others."
            )
            return
        store = run_distill(settings, self.out, self.resume, self.device, self.num_workers)
        print(
            f"{store.info.num_images} images, {store.info.epochs} view(s) each, {store.info.num_bytes:,} bytes in "
            f"{self.out}; train with --teacher store:{self.out}"
        )
