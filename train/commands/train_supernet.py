"""`prance train supernet`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from ..networks.loop import train_supernet
from ..networks.recipes.digits import PRESETS
from ..options import Device, SaveFreq, Threads, choice, set_threads
from ..runs.pace import SAVE_FREQ

Preset = Annotated[str, choice(lambda: PRESETS)]


@dataclass(frozen=True)
class TrainSupernet:
    """Stage 1: train the supernet of the Digits task.

    For example:

        prance train supernet --preset digits --out runs/supernet
        prance train supernet --preset digits-quick --out runs/quick
        prance train supernet --preset digits --out runs/supernet --resume
    """

    out: Path
    """Run folder."""
    preset: Preset = "digits"
    """digits: the bundled supernet's recipe; digits-quick: the same in a few minutes."""
    seed: int = 0
    """Fixes everything."""
    steps: int | None = None
    """Optimiser steps, instead of the preset's."""
    resume: bool = False
    """Continue an interrupted run; the result is the same as without interruption."""
    save_freq: SaveFreq = SAVE_FREQ
    device: Device = "cpu"
    threads: Threads = 1

    def run(self) -> None:
        """Runs the command."""
        set_threads(self.threads)
        recipe = replace(PRESETS[self.preset], seed=self.seed)
        if self.steps is not None:
            recipe = replace(recipe, steps=self.steps)
        train_supernet(recipe, self.out, self.device, self.resume, self.save_freq)
        print(f"Supernet written to {self.out}; use it with --checkpoint {self.out}")
