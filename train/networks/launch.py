"""Several processes that train one network together, as `accelerate launch` or torchrun `-m train ...` start them.

Every process computes its share of a batch, and gradients are averaged once a step, after all passes of the sandwich.
Weights, averaged weights and optimiser are then equal everywhere, so that only the main process writes files.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prance_env.supernets import usable_device


@dataclass(frozen=True)
class Team:
    """The processes that train together; one by itself is a team as well.

    Attributes:
        device: Of this process.
        rank: Number of this process.
        size: How many there are.
        accelerator: Hugging Face's `Accelerator`; None for a process by itself.
    """

    device: torch.device
    rank: int = 0
    size: int = 1
    accelerator: Any = None

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and says something."""
        return self.rank == 0

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replaces tensors by their means over all processes, in place and in one message."""
        if self.accelerator is None or not tensors:
            return
        whole = self.accelerator.reduce(torch.cat([t.flatten() for t in tensors]), "mean")
        for tensor, part in zip(tensors, whole.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process; all of them have to ask."""
        return self.each_any([flag])[0]

    def each_any(self, flags: Sequence[bool]) -> list[bool]:
        """Of several flags, whether each is set in any process; all of them have to ask about as many."""
        if self.accelerator is None:
            return [*flags]
        totals = self.accelerator.reduce(torch.tensor(flags, dtype=torch.float32, device=self.device), "sum")
        return [total > 0 for total in totals.tolist()]

    def wait(self) -> None:
        """Until all processes are here."""
        if self.accelerator is not None:
            self.accelerator.wait_for_everyone()


def is_main_process() -> bool:
    """Whether this process is the one that says something, of several or by itself."""
    return int(os.environ.get("RANK", "0")) == 0


def open_team(device: str) -> Team:
    """The team that this process belongs to.

    Args:
        device: Torch device of a process by itself; of a team's, "cpu" or "cuda" (each takes its own).

    Raises:
        ValueError: If the device is not there.
        ModuleNotFoundError: If there are several processes and accelerate is not installed.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Team(usable_device(device))
    try:
        from accelerate import Accelerator
    except ModuleNotFoundError as e:
        raise ModuleNotFoundError(
            "Several processes train together with accelerate; run: pip install -e '.[scale]'", name="accelerate"
        ) from e
    accelerator = Accelerator(cpu=device == "cpu")
    # accelerate says "cpu:0", a place from which torch.load restores nothing.
    own = torch.device("cpu") if accelerator.device.type == "cpu" else accelerator.device
    return Team(own, accelerator.process_index, accelerator.num_processes, accelerator)
