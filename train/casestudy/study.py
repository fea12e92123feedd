"""`prance casestudy`: from pretrained weights to the page of results, with one command that can be started again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from supernet.files import write_text
from supernet.staging import staged

from ..machine import machine
from ..report.plots import plot_fronts
from ..report.tables import write_json
from ..runs.folder import CONFIG, check_kind, check_settings, plain, write_command
from ..runs.lock import only_writer
from .judging import judged
from .page import casestudy_page
from .reports import read_benchmark
from .settings import CaseSettings
from .stages import Stages, prepare

SHOWN_LOSS = 0.12
MAY_CHANGE = ("seeds", "device", "download")


def run_casestudy(settings: CaseSettings, out: Path) -> dict[str, Any]:
    """Does whatever of the case study `out` does not hold yet, and writes its page.

    Args:
        settings: What to do.
        out: Folder: `images`, `head`, `seed-N` with a run folder for every stage; `casestudy.json`, `casestudy.md` and
            `pareto.png` in the end.

    Returns:
        What is written to `casestudy.json`.

    Raises:
        FileExistsError: If `out` holds a run of another command or a network, or another process writes to it.
        FileNotFoundError: If there are no images or no weights.
        ModuleNotFoundError: If a package is missing.
        ValueError: If `out` was begun with other settings, or something does not fit.
    """
    console = Console()
    check_kind(out, plain(settings).keys())
    with only_writer(out):
        if (out / CONFIG).is_file():
            check_settings(out, settings, "Choose another --out", "case study", MAY_CHANGE)
        write_command(out, settings)
        prepare(settings, out, console)
        runs = [Stages(settings, out, seed, console) for seed in settings.seeds]
        for stages in runs:
            stages.run()
        report = {
            "machine": machine(settings.device),
            "settings": plain(settings),
            "sizes": plain(settings.sizes),
            "seeds": [judged(stages) for stages in runs],
        }
        with staged(out) as stage:
            write_json(stage / "casestudy.json", report)
            write_text(stage / "casestudy.md", casestudy_page(report))
            _draw(report, runs[0], stage / "pareto.png")
    console.print(casestudy_page(report), markup=False, highlight=False, soft_wrap=True)
    return report


def _draw(report: dict[str, Any], stages: Stages, path: Path) -> None:
    """The first seed: yardsticks, the agent before and after joint fine-tuning, and the full networks."""
    board, own = read_benchmark(stages.place / "benchmark" / "benchmark.json"), report["seeds"][0]
    fronts = {name: rows for name, rows in board["fronts"].items() if name == "static" or not _static(rows, board)}
    points = {f"{name} {i}": row for name, rows in fronts.items() for i, row in enumerate(rows)}
    lines = {name: [f"{name} {i}" for i in range(len(rows))] for name, rows in fronts.items()}
    points |= {
        "agent": own["joint"]["before"]["policy"],
        "agent, after joint": own["joint"]["after"]["policy"],
        "plain fine-tuning": {"accuracy": own["accuracy"]["plain-longer"], "macs_fraction": 1.0},
        "supernet, full": {"accuracy": own["accuracy"]["supernet"], "macs_fraction": 1.0},
    }
    plot_fronts(points, lines, "test", path, own["accuracy"]["supernet"] - SHOWN_LOSS)


def _static(rows: list[dict[str, Any]], board: dict[str, Any]) -> bool:
    """Whether a front is that of static subnets once more, as that per stratum is where there is but one."""
    static = {(row["macs_fraction"], row["accuracy"]) for row in board["fronts"]["static"]}
    return all((row["macs_fraction"], row["accuracy"]) in static for row in rows)
