"""The options that trainings of networks have in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ..options import Device, SaveFreq, Threads, set_threads
from ..own_modules import Imports
from ..runs.folder import CONFIG, check_kind, noted_settings
from ..runs.pace import SAVE_FREQ
from ..runs.trust import check_own_or_local, is_own
from .launch import is_main_process
from .loop import train_supernet
from .recipe import Recipe
from .sources import TIMM


def check_own_or_here(noted: Mapping[str, Any], source: Path) -> None:
    """Refuses a recipe in a file of somebody else that names images or networks that would be fetched.

    Args:
        noted: Settings of a recipe.
        source: The file.

    Raises:
        ValueError: If it does.
    """
    check_own_or_local(noted.get("dataset"), source)
    for name in ("source", "teacher"):
        if str(noted.get(name)).startswith(TIMM) and not is_own(source):
            raise ValueError(
                f"{source} names {name}={noted[name]!r}, which would be fetched from the network; the run is somebody "
                "else's: begin one of your own."
            )


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """Where a network is trained, for how long, and on what machine."""

    out: Path
    """Run folder."""
    resume: bool = False
    """Continue an interrupted run; the result is the same as without interruption."""
    save_freq: SaveFreq = SAVE_FREQ
    max_hours: float | None = None
    """Stop with a checkpoint after so many hours; --resume goes on."""
    device: Device = "cpu"
    threads: Threads = 1
    imports: Imports = ()

    @staticmethod
    def noted(out: Path, *kinds: type[Recipe]) -> dict[str, Any] | None:
        """The recipe of the run in a folder, which is of one of some kinds; None if there is none.

        Raises:
            FileExistsError: If the run is one of another command.
            ValueError: If it is somebody else's run, whose images or weights would have to be fetched.
        """
        check_kind(out, {f.name for kind in kinds for f in fields(kind)})
        settings = noted_settings(out)
        if settings is not None:
            check_own_or_here(settings, out / CONFIG)
        return settings

    def train(self, recipe: Recipe, said: str) -> None:
        """Trains a network.

        Args:
            recipe: How.
            said: What the main process prints at the end.
        """
        set_threads(self.threads)
        train_supernet(recipe, self.out, self.device, self.resume, self.save_freq, self.max_hours)
        if is_main_process():
            print(said)
