"""`prance train joint`."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any

from rich.console import Console
from typing_extensions import Self
from tyro.conf import arg

from ..joint import OF_THE_AGENT, JointRecipe, JointSettings, run_joint
from ..networks.launch import is_main_process
from ..networks.options import check_own_or_here
from ..options import Device, SaveFreq, Threads, narrowed, override_options, set_threads
from ..own_modules import Imports
from ..report.tables import Table
from ..runs.folder import CONFIG, check_complete, check_kind, read_config
from ..runs.pace import SAVE_FREQ

USUAL = {"dataset": "the agent's", "on_error": "the agent's"}
Changes = Annotated[
    dict[str, Any], arg(constructor_factory=lambda: override_options(JointRecipe, OF_THE_AGENT, USUAL), name="")
]


@dataclass(frozen=True, kw_only=True)
class TrainJoint(JointSettings):
    """Stage 3: fine-tune a supernet on the subnets that its agent chooses.

    The full network stays what it was, because it learns from what it said before. For example:

        prance train joint --agent runs/agent --out runs/joint
        prance train joint --agent runs/prance --rounds 3 --agent-timesteps 100000 --out runs/joint
        prance train joint --out runs/joint --resume
    """

    out: Path
    """Run folder; the supernet in it is used with --checkpoint."""
    changes: Changes = field(default_factory=dict)
    """Settings of the training."""
    resume: bool = False
    """Go on with an interrupted run."""
    save_freq: SaveFreq = SAVE_FREQ
    device: Device = "cpu"
    threads: Threads = 1
    imports: Imports = ()

    @classmethod
    def resumed(cls, out: Path) -> Self | None:
        """The options of the run in a folder; None if there is none."""
        if not (out / CONFIG).is_file():
            return None
        names = {f.name for f in fields(JointSettings)}
        check_kind(out, names)
        noted = read_config(out)
        check_complete(out, noted, JointSettings)
        # Some names are those of an environment, which other commands note beside their own.
        options = cls(**{k: v for k, v in noted.items() if k in names}, out=out, resume=True)
        check_own_or_here(options.changes, out / CONFIG)
        return options

    def run(self) -> None:
        """Runs the command."""
        set_threads(self.threads)
        report = run_joint(narrowed(self, JointSettings), self.out, self.resume, self.device, self.save_freq)
        if not is_main_process():
            return
        table = Table("", "accuracy before", "after", "MACs before", "after", title=f"{self.split} images")
        for name, before in report["before"].items():
            after = report["after"][name]
            numbers = [r[k] for k in ("accuracy", "macs_fraction") for r in (before, after)]
            table.add_row(name, *(f"{number:.1%}" for number in numbers))
        Console().print(table)
        print(f"Supernet written to {self.out}; its agent is {report['agent']}")
