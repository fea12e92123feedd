"""What TensorBoard gets of a training beside the rows of its algorithm: hyper-parameters, validations, pictures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.logger import Logger, TensorBoardOutputFormat
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

PLAIN = (bool, int, float, str)


def writer_of(logger: Logger | None) -> SummaryWriter | None:
    """What a logger writes TensorBoard's events with, so that all of a run's are in one file; None if nothing."""
    formats = [] if logger is None else logger.output_formats
    return next((f.writer for f in formats if isinstance(f, TensorBoardOutputFormat)), None)


def write_hparams(writer: SummaryWriter | None, described: Mapping[str, Any], metrics: Iterable[str]) -> None:
    """Settings for TensorBoard's tab HPARAMS, which shows the last values of some curves beside them.

    Args:
        writer: Of the run; None: nothing is done.
        described: Settings by name; what is inside another is named "outer.inner".
        metrics: Tags of these curves.
    """
    if writer is None or writer.file_writer is None:
        return
    for summary in hparams(_flat(described), dict.fromkeys(metrics, 0.0)):
        writer.file_writer.add_summary(summary)


def write_validation(
    writer: SummaryWriter | None, step: int, values: Mapping[str, float], picture: NDArray[np.uint8] | None
) -> None:
    """A point of every curve of the validation, and a picture (H, W, 3) of episodes."""
    if writer is None:
        return
    for name, value in values.items():
        writer.add_scalar(f"eval/{name}", value, step)
    if picture is not None:
        writer.add_image("eval/episodes", picture, step, dataformats="HWC")
    writer.flush()


def _flat(described: Mapping[str, Any], prefix: str = "") -> dict[str, bool | int | float | str]:
    found: dict[str, bool | int | float | str] = {}
    for name, value in described.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{name}.")
        elif value is not None:
            found[f"{prefix}{name}"] = value if isinstance(value, PLAIN) else str(value)
    return found
