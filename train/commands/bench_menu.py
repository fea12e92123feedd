"""`prance bench-menu`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from ..deploy.opening import open_adaptive
from ..options import DatasetOption, Threads, Trust, check_file, given_flags, set_threads
from ..own_modules import Imports
from ..report.tables import write_json
from ..timing.menu import menu_latency, menu_losses, print_latency, print_losses, untrained


@dataclass(frozen=True, kw_only=True)
class BenchMenu:
    """What a menu loses against free choice, and how long one image takes with it.

    With --agent, menus of several sizes are made on validation images and judged on test images. With --timm, a
    network of that size with random weights, a random policy and a menu around --share of the MACs is timed, one image
    at a time, beside timm's full network and beside onnxruntime's.

    For example:

        prance bench-menu --agent runs/agent
        prance bench-menu --timm deit_small_patch16_224 --out menu.json
    """

    agent: str | None = None
    """Run folder of an agent."""
    timm: str | None = None
    """Name of a ViT of timm."""
    entries: tuple[int, ...] = (4, 8, 16, 32)
    """Entries for each decision; --timm takes the one nearest to 16."""
    macs_weight: tuple[float, ...] = (0.02, 0.05, 0.1)
    """Prices to judge at, of agents that were trained for a range of them."""
    share: float = 0.5
    """Of the full network's MACs, that a menu for --timm is around."""
    repeats: int = 25
    """Rounds of --timm."""
    images: int = 1024
    """Validation images that menus are made of, and 4 times as many test images to judge them; all, if there are
    fewer."""
    checkpoint: str | None = None
    """Of --agent: another supernet than that of the training, such as that of prance train joint."""
    dataset: DatasetOption | None = None
    """Of --agent: where its images lie now; JSON says anew how they are prepared, too (docs/images.md)."""
    trust: Trust = False
    threads: Threads = 1
    out: Path | None = None
    """JSON file for what was measured."""
    imports: Imports = ()

    def __post_init__(self) -> None:
        if (self.agent is None) == (self.timm is None):
            raise ValueError("Pass --agent, a run folder, or --timm, a name.")
        if self.agent is None and (given := given_flags(self, ("checkpoint", "dataset"))):
            raise ValueError(f"{given[0]} goes with --agent; leave it out.")
        if self.images < 1:
            raise ValueError(f"--images {self.images} must be at least 1.")

    def run(self) -> None:
        """Runs the command."""
        check_file(self.out, ".json")
        set_threads(self.threads)
        console, found = Console(), dict[str, Any]()
        if self.agent is not None:
            opened = open_adaptive(self.agent, self.checkpoint, self.dataset, images=0, trust=self.trust)
            conditioned = opened.model.interface.conditioning is not None
            budgets: list[Any] = [*self.macs_weight] if conditioned else [None]
            made, judged = opened.images(self.images), opened.images(4 * self.images, split="test")
            found["losses"] = menu_losses(opened.model, made, judged, [*self.entries], budgets)
            print_losses(found["losses"], console)
        if self.timm is not None:
            import timm

            entries = min(self.entries, key=lambda n: abs(n - 16))
            model = untrained(self.timm, self.share, entries)
            found["latency"] = menu_latency(model, timm.create_model(self.timm).eval(), self.repeats)
            print_latency(f"{self.timm}, {entries} entries", found["latency"], console)
        if self.out is not None:
            write_json(self.out, found)
