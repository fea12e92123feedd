"""What a training logged for TensorBoard: read back for figures, and forgotten after a checkpoint."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]
from torch.utils.tensorboard import SummaryWriter

CURVES = (
    *("rollout/ep_rew_mean", "rollout/accuracy", "rollout/macs_fraction"),
    *("eval/return", "eval/accuracy", "eval/macs_fraction"),
)
Curve = tuple[NDArray[np.int64], NDArray[np.float64]]


def read_curves(run: Path) -> dict[str, Curve]:
    """Steps and values of every scalar of `CURVES` in a run folder; of what was repeated after a resume, the last.

    Args:
        run: Folder of `prance train agent`.
    """
    found: dict[str, dict[int, float]] = {}
    for events in sorted(run.rglob("events.out.tfevents.*"), key=_begun):
        log = EventAccumulator(str(events), size_guidance={"scalars": 0})
        log.Reload()
        for name in set(CURVES) & set(log.Tags()["scalars"]):
            scalars = log.Scalars(name)
            kept = {step: v for step, v in found.get(name, {}).items() if step < scalars[0].step}
            found[name] = kept | {s.step: s.value for s in scalars}
    return {name: (np.array([*found[name]]), np.array([*found[name].values()])) for name in CURVES if name in found}


def forget_curves_after(run: Path, name: str, step: int) -> None:
    """Tells TensorBoard not to show what was logged after a step: it is logged again.

    Args:
        run: Run folder, in which loggers make the folders NAME_1, NAME_2, ...
        name: Of the algorithm's logs.
        step: The last one that stays.
    """
    for folder in run.glob(f"{name}_[0-9]*"):
        if folder.is_dir():
            SummaryWriter(str(folder), purge_step=step + 1).close()


def _begun(events: Path) -> tuple[float, float]:
    """When a file was begun, by its name, events.out.tfevents.SECONDS.HOST...: a copy has a new time of its own."""
    seconds, changed = events.name.split(".")[3], events.stat().st_mtime
    return (int(seconds) if seconds.isdecimal() else changed), changed
