"""`prance view`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from tyro.conf import Positional

from supernet.files import write_text

from ..deploy.opening import open_adaptive
from ..deploy.page import IMAGES, run_page
from ..options import DatasetOption, Split, Threads, Trust, check_file, set_threads
from ..own_modules import Imports


@dataclass(frozen=True, kw_only=True)
class View:
    """Write a page to look at: images, what is kept of them after each decision, and what that costs.

    One HTML file that needs no network: filters by class, difficulty, right and wrong and MACs, and for agents that
    were trained for a range of prices a slider along their front. Arrow keys, + and - work.

    For example:

        prance view runs/agent
        prance view runs/agent --out look.html --images 500 --split test
    """

    run_folder: Positional[str]
    """Run folder of `prance train agent`."""
    out: Path | None = None
    """The file; view.html in the run folder if not given."""
    images: int = IMAGES
    """How many images, evenly out of the split."""
    split: Split = "val"
    """Of which split."""
    checkpoint: str | None = None
    """Another supernet than that of the training, such as that of prance train joint."""
    dataset: DatasetOption | None = None
    """Where the images lie now; JSON says anew how they are prepared, too (docs/images.md)."""
    trust: Trust = False
    threads: Threads = 1
    imports: Imports = ()

    def run(self) -> None:
        """Runs the command."""
        set_threads(self.threads)
        check_file(self.out, ".html", ".htm")
        opened = open_adaptive(self.run_folder, self.checkpoint, self.dataset, images=0, trust=self.trust)
        html = run_page(opened, self.images, self.split)
        out = self.out or Path(self.run_folder) / "view.html"
        write_text(out, html)
        Console().print(f"Written to {out} ({len(html):,} bytes); open it in a browser.")
