"""Arguments that several commands share."""

from __future__ import annotations

from typing import Annotated, Literal

from tyro.conf import arg

Device = Annotated[str, arg(help="Torch device: cpu, cuda, cuda:1, ...")]
Threads = Annotated[int, arg(help="CPU threads of torch; 0 leaves torch's choice.")]
Split = Literal["train", "val", "test"]


def set_threads(threads: int) -> None:
    """Gives torch so many threads.

    Raises:
        ValueError: If the number is negative.
    """
    import torch

    if threads < 0:
        raise ValueError(f"--threads {threads} must be 0 or more.")
    if threads:
        torch.set_num_threads(threads)
