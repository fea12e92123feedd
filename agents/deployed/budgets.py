"""What users ask for, a price, a share of the MACs or milliseconds, as a price that an agent was trained for.

    0.05    a price: what all MACs of the full network cost, in accuracy (`macs_weight`)
    "40%"   a share of the full network's MACs, on average
    "12ms"  milliseconds an image, on average, on the machine that the model was timed on

Shares and milliseconds are looked up in a calibration: what a model spent on images of its own at a few prices.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from prance_env.rewards.prices import CostConditioning
from supernet.arrays import Floats
from supernet.reading import plain

Budget = float | str
SLACK = 0.005
"""So much of the range may be missed at either end, relative to the budget."""


@dataclass(frozen=True)
class Calibration:
    """What a model spends at several prices.

    Attributes:
        prices: Ascending; empty of a model that knows one price only.
        macs_fraction: Mean MACs / MACs of the full network at each.
        accuracy: At each; empty: labels were not known.
        full_accuracy: Of the full network on the same images; None: not known.
        milliseconds: An image takes so many at each; empty: not timed.
        images: How many images that was measured on.
        machine: What the milliseconds are of.
        batch_size: Images at a time for the milliseconds.
    """

    prices: tuple[float, ...]
    macs_fraction: tuple[float, ...]
    accuracy: tuple[float, ...] = ()
    full_accuracy: float | None = None
    milliseconds: tuple[float, ...] = ()
    images: int = 0
    machine: str = ""
    batch_size: int = 0

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Calibration:
        """Inverse of `to_dict`."""
        arguments: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
        return cls(**arguments)

    def price(self, wanted: float, unit: str) -> float:
        """The lowest price of those that keep to a budget, between the measured ones by interpolation.

        Args:
            wanted: Share in (0, 1], or milliseconds.
            unit: "%" or "ms".

        Raises:
            ValueError: If it is out of reach, with what is within it; or nothing was timed.
        """
        spent = np.array(self.macs_fraction if unit == "%" else self.milliseconds)
        if not len(spent):
            raise ValueError(
                "A budget in milliseconds needs times of this machine: call model.calibrate(images, timed=1), or for a "
                "menu model.make_menu(images, timed=1), and save."
            )
        least, most = float(spent.min()), float(spent[0])
        if not (math.isfinite(wanted) and wanted >= least * (1 - SLACK)):
            shown = f"{wanted:.1%}" if unit == "%" else f"{wanted:g} ms"
            reach = f"{least:.1%} to {most:.1%}" if unit == "%" else f"{least:.3g} to {most:.3g} ms"
            raise ValueError(f"The budget {shown} is out of this model's reach, which is {reach}.")
        wanted = max(wanted, least)
        cheapest = int(np.argmax(spent <= wanted))  # the first, where noise made a higher price dearer
        if not cheapest:
            return self.prices[0]
        around = slice(cheapest - 1, cheapest + 1)
        log = np.interp(-wanted, -spent[around], np.log(self.prices[around]))
        return float(min(max(math.exp(log), self.prices[0]), self.prices[-1]))


def parse(budget: Any) -> tuple[float, str]:
    """A budget as a number and its unit: "" for a price, "%" for a share above 0, "ms".

    Raises:
        ValueError: If it is none.
    """
    message = f"budget={budget!r} is none: pass a price such as 0.05, a share of the MACs such as '40%', or '12ms'."
    unit, number = "", budget
    if isinstance(budget, str):
        text = budget.strip().lower()
        unit = next((u for u in ("%", "ms") if text.endswith(u)), "")
        number = text.removesuffix(unit)
    if isinstance(number, bool) or not isinstance(number, str | int | float | np.number):
        raise ValueError(message)
    try:
        value = float(number)
    except ValueError as e:
        raise ValueError(message) from e
    if not (math.isfinite(value) and value > 0):
        raise ValueError(message)
    return (value / 100, unit) if unit == "%" else (value, unit)


def spread(budget: Budget | Sequence[Budget | None] | None, batch: int, what: str = "images") -> list[Budget | None]:
    """A budget for each of a batch.

    Args:
        budget: One for all, or one for each.
        batch: How many there are.
        what: They are, for the message.

    Raises:
        ValueError: If there are several, but not one for each.
    """
    budget = plain(budget)
    each = [*budget] if isinstance(budget, Sequence) and not isinstance(budget, str) else [budget] * batch
    if len(each) != batch:
        raise ValueError(f"There are {len(each)} budgets for {batch} {what}; pass one, or one for each.")
    return each


def prices_of(
    budget: Budget | Sequence[Budget | None] | None,
    conditioning: CostConditioning | None,
    calibration: Calibration | None,
    batch: int,
) -> Floats | None:
    """(B,) prices for a batch; None for agents that know none.

    Args:
        budget: One for all images, or one for each; None: the fixed one of the conditioning.
        conditioning: Range of the agent's prices; None: it was trained for one only.
        calibration: For shares and milliseconds.
        batch: B.

    Raises:
        ValueError: If a budget is none, is out of reach, needs a calibration that is missing, or is missing itself; or
            the agent knows no prices.
    """
    each = spread(budget, batch)
    if conditioning is None:
        if given := [b for b in each if b is not None]:
            raise ValueError(
                f"budget={given[0]!r} was given, but the agent was trained for one price only; leave it out."
            )
        return None
    for nested in (b for b in each if isinstance(b, list | tuple)):
        parse(nested)  # which says that it is none
    known = {b: _price(b, conditioning, calibration) for b in dict.fromkeys(each)}
    return np.array([known[b] for b in each])


def _price(budget: Budget | None, conditioning: CostConditioning, calibration: Calibration | None) -> float:
    low, high = conditioning.low, conditioning.high
    if budget is None:
        if conditioning.fixed is None:
            raise ValueError(
                f"The agent was trained for a range of prices; pass budget=, a price in [{low}, {high}], a share of "
                "the MACs such as '40%', or milliseconds such as '12ms'."
            )
        return conditioning.fixed
    value, unit = parse(budget)
    if not unit:
        return float(conditioning.check(value, ()))
    if calibration is None:
        raise ValueError(
            f"budget={budget!r} needs a calibration: call model.calibrate(images) first, and save the model."
        )
    return calibration.price(value, unit)
