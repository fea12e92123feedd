"""`prance validate`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from ..evaluate.replay import ReplaySettings, run_validate
from ..options import Threads, narrowed, set_threads
from ..own_modules import Imports


@dataclass(frozen=True, kw_only=True)
class Validate(ReplaySettings):
    """Play the recorded actions of an evaluation again; predictions and MACs must come out the same.

    For example:

        prance validate runs/agent/eval/agent.csv
        prance validate rows.parquet --split val --checkpoint runs/supernet
    """

    file: Positional[Path]
    """Rows that `prance eval --out` wrote."""
    threads: Threads = 0
    imports: Imports = ()

    def run(self) -> None:
        """Runs the command."""
        set_threads(self.threads)
        run_validate(self.file, narrowed(self, ReplaySettings))
