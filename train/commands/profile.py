"""`prance profile`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..options import Threads, check_file, narrowed, set_threads
from ..own_modules import Imports
from ..timing.latency_table import ProfileSettings, run_profile


@dataclass(frozen=True, kw_only=True)
class Profile(ProfileSettings):
    """Measure a supernet on this device: the lookup table of rewards that count milliseconds instead of MACs.

    For example:

        prance profile --out latency.json
        prance profile --supernet prance_vit_small --device cuda --out h100.json
        prance profile --supernet prance_vit_small --out first.json --decide-first-group

    and then reward={"cost": "latency", "latency_table": "latency.json"}.
    """

    out: Path
    """JSON file."""
    threads: Threads = 0
    imports: Imports = ()

    def run(self) -> None:
        """Runs the command."""
        check_file(self.out, ".json")
        set_threads(self.threads)
        run_profile(narrowed(self, ProfileSettings), self.out)
