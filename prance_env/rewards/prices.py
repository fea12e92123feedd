"""Cost conditioning: a price of computation that is drawn for every episode and shown to the agent.

One agent then covers the whole front between accuracy and cost, and the budget is chosen when it is used.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from supernet.arrays import Floats
from supernet.reading import plain

from ..arrays import as_array


@dataclass(frozen=True)
class CostConditioning:
    """Log-uniform prices: as many episodes between 0.01 and 0.1 as between 0.1 and 1.

    Attributes:
        low: Smallest `macs_weight`, > 0.
        high: Largest, > low.
        fixed: If not None, every episode has this price instead of a drawn one, observed in the same range.
    """

    low: float
    high: float
    fixed: float | None = None

    @classmethod
    def from_plain(cls, data: Sequence[float] | None) -> CostConditioning | None:
        """From (low, high) or (low, high, fixed); None stays None.

        Raises:
            ValueError: If it is something else, or not 0 < low < high with `fixed` between them.
        """
        if data is None:
            return None
        message = f"cost_conditioning={data!r} must be (low, high) with 0 < low < high, or (low, high, fixed)."
        data = plain(data)
        if not isinstance(data, Sequence) or isinstance(data, str) or len(data) not in (2, 3):
            raise ValueError(message)
        numbers = all(isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in data)
        if not numbers or not 0 < data[0] < data[1]:
            raise ValueError(message)
        conditioning = cls(*(float(v) for v in data))
        if conditioning.fixed is not None:
            conditioning.check(conditioning.fixed, ())
        return conditioning

    def check(self, macs_weight: Any, shape: tuple[int, ...]) -> Floats:
        """Prices as an array of `shape`; one number serves all.

        Raises:
            ValueError: If the shape does not fit or a price lies outside the range.
        """
        array = as_array(macs_weight)
        numbers = np.issubdtype(array.dtype, np.floating) or np.issubdtype(array.dtype, np.integer)
        if not numbers or array.shape not in ((), shape):
            raise ValueError(f"macs_weight={macs_weight!r} must be a number, or numbers of shape {shape}.")
        prices = np.broadcast_to(array.astype(np.float64), shape)
        if not ((prices >= self.low) & (prices <= self.high)).all():
            raise ValueError(f"macs_weight={macs_weight!r} must lie in [{self.low}, {self.high}].")
        return prices

    def draw(self, generator: np.random.Generator) -> float:
        """The price of one episode; the generator is used unless the price is fixed."""
        if self.fixed is not None:
            return self.fixed
        price = self.low * (self.high / self.low) ** generator.random()
        return min(max(price, self.low), self.high)  # rounding must not carry it over the edge

    def observe(self, macs_weight: Floats) -> Floats:
        """Prices (B,) on a logarithmic scale: 0 at `low`, 1 at `high`."""
        return np.clip(np.log(macs_weight / self.low) / math.log(self.high / self.low), 0, 1)
