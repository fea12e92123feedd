"""`prance tune`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from typing_extensions import Self

from ..options import Effort, Threads, narrowed, set_threads
from ..own_modules import Imports
from ..policies.tune import BEST, TuneSettings, best_value, tune
from ..reward_options import noted_reward
from ..runs.folder import noted_fields


@dataclass(frozen=True, kw_only=True)
class Tune(TuneSettings):
    """Search the hyper-parameters of a Stable-Baselines3 algorithm with Optuna; the best become a preset.

    Every trial trains an agent and is judged by its mean return on all validation images. Needs
    `pip install -e '.[tune]'`.

    With --effort small: --trials 5 --total-timesteps 20000 --evaluations 2 --startup-trials 3.

    For example:

        prance tune --algo sac --trials 40 --out runs/tune-sac
        prance tune --out runs/tune-sac --resume --trials 60
        prance train agent --algo sac --conf-file runs/tune-sac/best.yml --out runs/sac
        prance tune --algo ppo --effort small --out runs/tune-ppo
    """

    out: Path
    """Folder for best.yml, trials.csv and Optuna's study.db."""
    resume: bool = False
    """Go on with the search in --out, with its settings, also with more --trials."""
    threads: Threads = 1
    effort: Effort = "full"
    imports: Imports = ()
    small: ClassVar[str] = "--trials 5 --total-timesteps 20000 --evaluations 2 --startup-trials 3"

    @classmethod
    def resumed(cls, out: Path) -> Self | None:
        """The options of the run in a folder; None if there is none."""
        noted = noted_fields(out, TuneSettings)
        if noted is None:
            return None
        noted_reward(noted, str(out))
        return cls(**noted, out=out, resume=True)

    def run(self) -> None:
        """Runs the command.

        Raises:
            ValueError: If no trial reached its end.
        """
        set_threads(self.threads)
        best = best_value(tune(narrowed(self, TuneSettings), self.out, self.resume))
        if math.isnan(best):
            raise ValueError(
                f"No trial of {self.trials} reached its end, so there is no {BEST}; go on with --resume and more "
                "--trials, or begin another search with other --ranges."
            )
        print(f"Best mean return on validation images: {best:.4f}; preset: {self.out / BEST}")
