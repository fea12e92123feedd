"""A cache for intermediate results of very different size and price."""

from __future__ import annotations

import heapq
from collections.abc import Hashable
from dataclasses import dataclass
from itertools import count
from typing import Any


@dataclass
class _Entry:
    value: Any
    nbytes: int
    cost: float
    uses: int
    priority: float


class StateCache:
    """Keeps within a budget what is dear, small and often used: GreedyDual-Size-Frequency (Cherkasova, HPL-98-69R1).

    An entry's priority is the clock + uses * cost / bytes; the lowest goes first, and its priority is the clock from
    then on, so that what is not used any more goes some day, however dear it was.

    Args:
        budget_mb: MiB for all values together; 0 keeps nothing.
    """

    def __init__(self, budget_mb: float) -> None:
        self._budget, self._bytes, self._clock = budget_mb * 2**20, 0, 0.0
        self._held: dict[Hashable, _Entry] = {}
        # Entries whose priority has risen since are in it more than once; all but the last are stale.
        self._heap: list[tuple[float, int, Hashable]] = []
        self._number = count()

    def __contains__(self, key: Hashable) -> bool:
        return key in self._held

    @property
    def nbytes(self) -> int:
        """Bytes of all values."""
        return self._bytes

    def get(self, key: Hashable) -> Any:
        """The value, which counts as a use.

        Raises:
            KeyError: If it is not there.
        """
        entry = self._held[key]
        entry.uses += 1
        self._rank(key, entry)
        return entry.value

    def put(self, key: Hashable, value: Any, nbytes: int, cost: float) -> None:
        """Keeps a value, if it is worth more than what has to go for it.

        Args:
            key: Its name, not there yet.
            value: Anything.
            nbytes: Its size.
            cost: What it took to make, in any unit that is the same for all.
        """
        if nbytes > self._budget:
            return
        self._held[key] = entry = _Entry(value, nbytes, cost, 1, 0.0)
        self._bytes += nbytes
        self._rank(key, entry)
        while self._bytes > self._budget:
            priority, _, oldest = heapq.heappop(self._heap)
            candidate = self._held.get(oldest)
            if candidate is not None and candidate.priority == priority:
                self._clock = priority
                self._bytes -= candidate.nbytes
                del self._held[oldest]

    def _rank(self, key: Hashable, entry: _Entry) -> None:
        entry.priority = self._clock + entry.uses * entry.cost / max(entry.nbytes, 1)
        heapq.heappush(self._heap, (entry.priority, next(self._number), key))
