"""`prance headroom`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from ..options import Effort, Threads, narrowed, set_threads
from ..own_modules import Imports
from ..yardsticks.headroom import HeadroomSettings, run_headroom


@dataclass(frozen=True, kw_only=True)
class Headroom(HeadroomSettings):
    """Measure what there is to win by looking, before an agent is trained.

    The best static subnet for all images against the best one for few, some and many digits, and against one for each
    third of the images, by what is seen of them.

    With --effort small: --num-subnets 60.

    For example:

        prance headroom
        prance headroom --checkpoint runs/supernet-0 runs/supernet-1 --out runs/headroom
        prance headroom --token-mode merge
        prance headroom --env Prance-Tiny-v0 --checkpoint runs/supernet --dataset /data/imagenet --images 1000
        prance headroom --effort small
    """

    out: Path | None = None
    """Folder for headroom.json."""
    threads: Threads = 0
    effort: Effort = "full"
    imports: Imports = ()
    small: ClassVar[str] = "--num-subnets 60"

    def run(self) -> None:
        """Runs the command."""
        set_threads(self.threads)
        run_headroom(narrowed(self, HeadroomSettings), self.out)
