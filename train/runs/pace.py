"""How often a run saves where it is."""

from __future__ import annotations

import time

SAVE_FREQ = 60.0
"""Seconds between two checkpoints, unless a command is told otherwise."""


class Pace:
    """Tells when a checkpoint is due. What is trained must not depend on it.

    Args:
        seconds: Between two checkpoints.

    Raises:
        ValueError: If they are negative.
    """

    def __init__(self, seconds: float = SAVE_FREQ) -> None:
        if not seconds >= 0:
            raise ValueError(f"save_freq={seconds} must be 0 (at every opportunity) or more seconds.")
        self.seconds, self._last = seconds, time.monotonic()

    def due(self) -> bool:
        """Whether it is time; the time until the next one then begins."""
        now = time.monotonic()
        if now - self._last < self.seconds:
            return False
        self._last = now
        return True
