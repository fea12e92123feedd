"""Mixed-integer linear programs that are put together piece by piece, solved by HiGHS."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array

from .arrays import Floats, Ints

Terms = tuple[Ints, NDArray[Any]]
"""Columns, and coefficients that broadcast to their shape."""


class IntegerProgram:
    """Columns with bounds and gains, and rows over them; the sum of gain * column is to be as large as it can."""

    def __init__(self) -> None:
        self._integral: list[bool] = []
        self._gain: list[float] = []
        self._entries: list[tuple[Ints, Ints, Floats]] = []
        self._limits: list[tuple[float, float]] = []

    def columns(self, count: int, *, integral: bool, gain: Sequence[float] | None = None) -> Ints:
        """New columns.

        Args:
            count: How many.
            integral: Whether they are 0 or 1, or any numbers of at least 0.
            gain: Of each; None: none.

        Returns:
            (count,) their numbers.
        """
        first = len(self._gain)
        self._integral += [integral] * count
        self._gain += [0.0] * count if gain is None else [*gain]
        return np.arange(first, first + count)

    def add_gain(self, columns: Ints, gain: NDArray[Any]) -> None:
        """Adds to the gains of columns.

        Args:
            columns: Of any shape, none twice.
            gain: Broadcasts to it.
        """
        for column, more in zip(columns.ravel(), np.broadcast_to(gain, columns.shape).ravel(), strict=True):
            self._gain[column] += float(more)

    def row(self, low: float, high: float, *terms: tuple[Ints, NDArray[Any] | float]) -> None:
        """Demands low <= sum of coefficient * column <= high.

        Args:
            low: Least sum.
            high: Largest sum.
            terms: Columns of any shape, and coefficients that broadcast to it.
        """
        for columns, coefficients in terms:
            values = np.broadcast_to(np.asarray(coefficients, dtype=np.float64), columns.shape).ravel()
            self._entries.append((np.full(columns.size, len(self._limits)), columns.ravel(), values))
        self._limits.append((low, high))

    def solve(self, precision: float) -> Floats | None:
        """The values of the columns where the gain is largest.

        Args:
            precision: Relative; what is within it of the largest gain may be returned as well.

        Returns:
            (columns,) values; None if no values meet all rows.

        Raises:
            RuntimeError: If HiGHS gives up.
        """
        rows, columns, values = (np.concatenate(parts) for parts in zip(*self._entries, strict=True))
        # SciPy before 1.15 hands HiGHS indices as they are, and it takes none of 64 bits.
        places = rows.astype(np.int32), columns.astype(np.int32)
        matrix = coo_array((values, places), shape=(len(self._limits), len(self._gain)))
        low, high = np.array(self._limits).T
        integral = np.array(self._integral)
        found = milp(
            -np.array(self._gain),
            constraints=LinearConstraint(matrix.tocsr(), low, high),
            integrality=integral,
            bounds=Bounds(0, np.where(integral, 1, np.inf)),
            options={"mip_rel_gap": precision},
        )
        if found.x is None and found.status != 2:
            raise RuntimeError(f"HiGHS found no solution: {found.message}")
        solution: Floats | None = found.x
        return solution
