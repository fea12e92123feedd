"""Names for the types of numpy arrays, one home for all packages."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
"""Whole numbers: widths, counts, indices."""

Floats = NDArray[np.float64]
"""Numbers that are computed with on the CPU: rates, shares, costs. Tensors of a network are single precision."""

Bools = NDArray[np.bool_]
"""Flags, one per image or place."""
