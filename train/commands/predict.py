"""`prance predict`."""

from __future__ import annotations

import io
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from agents.deployed.budgets import parse
from supernet.files import write_atomically

from ..deploy.opening import open_adaptive
from ..deploy.predicting import picture_paths, predicted, write_predictions
from ..options import DatasetOption, Threads, Trust, check_file, set_threads
from ..own_modules import Imports


@dataclass(frozen=True, kw_only=True)
class Predict:
    """What pictures show, and what finding out cost: one row each, as CSV or JSON lines.

    A picture that cannot be read is a row with an error, and the command ends with status 2.

    For example:

        prance predict cat.jpg dog.png --model runs/agent
        prance predict pictures/ 'more/*.jpg' --model saved --budget 45% --format jsonl --out rows.jsonl
        find . -name '*.png' | prance predict - --model runs/agent
    """

    images: Positional[tuple[str, ...]]
    """Files, folders, patterns, or - for paths on the input, one a line."""
    model: str
    """Run folder of `prance train agent`, a folder that save_pretrained wrote, or OWNER/NAME of the hub."""
    budget: str | None = None
    """Of agents for a range of prices: a price, a share of the MACs such as 40%, or milliseconds such as 12ms, of
    a batch on this machine; of a saved model, on the one that it was calibrated on."""
    format: Literal["csv", "jsonl"] = "csv"
    """Of the rows."""
    out: Path | None = None
    """File for the rows, which appears when all are there; the output if not given."""
    top: int = 1
    """With more than one, so many classes are listed with their probabilities."""
    batch_size: int = 64
    """Pictures at a time."""
    menu: bool = False
    """Choose from the model's menu."""
    checkpoint: str | None = None
    """Of a run: another supernet than that of the training, such as that of prance train joint."""
    dataset: DatasetOption | None = None
    """Of a run: where its images lie now; JSON says anew how they are prepared, too (docs/images.md)."""
    trust: Trust = False
    threads: Threads = 1
    device: str = "cpu"
    """Where the network runs."""
    imports: Imports = ()

    def run(self) -> None:
        """Runs the command."""
        if self.top < 1 or self.batch_size < 1:
            raise ValueError(f"--top {self.top} and --batch-size {self.batch_size} must be at least 1.")
        check_file(self.out, ".csv", ".jsonl", ".ndjson", ".txt")
        set_threads(self.threads)
        for stream in (sys.stdin, sys.stdout):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="surrogateescape")  # names of files may be any bytes
        paths = picture_paths(self.images, sys.stdin)
        if self.out and self.out.exists() and self.out.resolve() in {Path(path).resolve() for path in paths}:
            raise ValueError(f"--out {self.out} is one of the pictures; pass another --out.")
        unit = "" if self.budget is None else parse(self.budget)[1]
        timed = self.batch_size if unit == "ms" else None
        opened = open_adaptive(
            self.model,
            self.checkpoint,
            self.dataset,
            images=256 if unit else 0,
            entries=16 if self.menu else None,
            timed=timed,
            trust=self.trust,
            device=self.device,
        )
        rows = predicted(opened.model, paths, self.budget, self.top, self.batch_size, self.menu)
        if self.out is None:
            failed = write_predictions(rows, len(paths), sys.stdout, self.format, self.top)
        else:
            counts: list[int] = []

            def write(name: str) -> None:
                with open(name, "w", newline="", errors="surrogateescape") as f:
                    counts.append(write_predictions(rows, len(paths), f, self.format, self.top))

            write_atomically(self.out, write)
            failed = counts[0]
        if failed:
            raise ValueError(f"{failed} of {len(paths)} pictures could not be read; their rows say why.")
