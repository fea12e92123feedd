"""`prance plot`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from ..options import check_file


@dataclass(frozen=True, kw_only=True)
class Plot:
    """Learning curves of trainings: runs that differ in nothing but seed, length and how they were watched are one
    line, their mean, in a band from the lowest of them to the highest.

    Return, accuracy and MACs in training, and on validation images where there was an --eval-freq. What is no run of
    `prance train agent` is left out, so that runs/* may hold anything.

    For example:

        prance plot runs/*
        prance plot runs/ppo-* runs/sac-* --out compared.png
    """

    runs: Positional[tuple[Path, ...]]
    """Run folders of `prance train agent`."""
    out: Path = Path("curves.png")
    """PNG file."""

    def run(self) -> None:
        """Runs the command.

        Raises:
            FileNotFoundError: If a folder is missing, or none is a run.
            ValueError: If no folder is given, or another kind of file is asked for.
        """
        from ..report.curves import is_run, plot_runs

        if self.out.suffix.lower() != ".png":
            raise ValueError(f"--out {self.out} is a PNG file; pass a name that ends with .png.")
        check_file(self.out, ".png")
        if not self.runs:
            raise ValueError("There is nothing to plot; pass run folders of `prance train agent`, such as runs/*.")
        given = [path for run in self.runs for path in _matching(run)]
        if missing := [str(run) for run in given if not run.exists()]:
            raise FileNotFoundError(f"There is no {', no '.join(missing)}; pass run folders of `prance train agent`.")
        runs = [run for run in dict.fromkeys(given) if run.is_dir() and is_run(run)]
        if not runs:
            named = " ".join(map(str, self.runs))
            raise FileNotFoundError(f"None of {named} is a run folder of `prance train agent`.")
        self.out.parent.mkdir(parents=True, exist_ok=True)
        for name, members in plot_runs(runs, self.out).items():
            print(f"{name}: {', '.join(str(run) for run in members)}")
        print(f"Written to {self.out}")


def _matching(run: Path) -> list[Path]:
    """A folder, or those that a pattern names which no shell has replaced."""
    if run.exists() or not any(sign in str(run) for sign in "*?["):
        return [run]
    return sorted(Path(run.anchor or ".").glob(str(run.relative_to(run.anchor)))) or [run]
