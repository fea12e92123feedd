"""One cost-conditioned agent at the price one wants: at several, for its whole front, or at that of a MACs budget."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from agents.protocol import Agent
from prance_env.rewards.prices import CostConditioning
from prance_env.settings import EnvSettings

from .evaluation import evaluate

FRONT_POINTS = 7
TOLERANCE = 0.002
MOST_HALVINGS = 16


def at_price(settings: EnvSettings, macs_weight: float) -> EnvSettings:
    """The same settings with one price for every image, observed in the range the agent was trained for.

    Raises:
        ValueError: If the settings are not cost-conditioned, or the price lies outside their range.
    """
    conditioning = _conditioning(settings)
    conditioning.check(macs_weight, ())
    return replace(settings, cost_conditioning=(conditioning.low, conditioning.high, float(macs_weight)))


def front_prices(settings: EnvSettings, count: int = FRONT_POINTS) -> list[float]:
    """`count` prices from the lowest to the highest of the range, evenly spaced on its logarithmic scale.

    Raises:
        ValueError: If the settings are not cost-conditioned.
    """
    conditioning = _conditioning(settings)
    low, high = conditioning.low, conditioning.high
    between = (float(f"{price:.4g}") for price in np.geomspace(low, high, count)[1:-1])
    return [low, *(min(max(price, low), high) for price in between), high]


@dataclass(frozen=True)
class Calibration:
    """A price that keeps to a budget.

    Attributes:
        macs_weight: The price.
        macs_fraction: Mean MACs / MACs of the full network at that price, on the images of the calibration.
        tried: Mean MACs at every price that was tried.
    """

    macs_weight: float
    macs_fraction: float
    tried: dict[float, float]


def calibrate(
    agent: Agent, settings: EnvSettings, target_macs: float, tolerance: float = TOLERANCE, batch_size: int = 512
) -> Calibration:
    """The lowest price at which an agent spends no more than a budget, by bisection of the logarithm of the price.

    The mean MACs of the deterministic policy fall as the price rises. Where they should not do so everywhere, what is
    found still keeps to the budget, but a lower price may, too.

    Args:
        agent: Trained with cost conditioning.
        settings: Cost-conditioned as in its training; their split should be validation images, not those that the
            result is reported on.
        target_macs: Mean MACs / MACs of the full network, > 0.
        tolerance: How far below the budget the mean MACs may stay; either end of the range of prices also serves a
            budget that is missed by no more than this.
        batch_size: Images at a time.

    Raises:
        ValueError: If the budget is out of the agent's reach, with the range that is within it, or the settings are
            not cost-conditioned.
    """
    if not (math.isfinite(target_macs) and target_macs > 0):
        raise ValueError(f"target_macs={target_macs} must be a positive fraction of the full network's MACs.")
    conditioning = _conditioning(settings)
    tried: dict[float, float] = {}

    def spent(price: float) -> float:
        result = evaluate(agent, at_price(settings, price), batch_size)
        tried[price] = float(result.macs_fraction.mean())
        return tried[price]

    dear, cheap = conditioning.low, conditioning.high
    most, least = spent(dear), spent(cheap)
    if not least - tolerance <= target_macs <= most + tolerance:
        raise ValueError(
            f"target_macs={target_macs:g} is out of this agent's reach: with prices in [{conditioning.low:g}, "
            f"{conditioning.high:g}] it spends {least:.3f} to {most:.3f} of the full network's MACs on "
            f"{settings.split}. Ask for one of these, or train with another range of --macs-weight."
        )
    if target_macs >= most:
        return Calibration(dear, most, tried)
    for _ in range(MOST_HALVINGS):
        if tried[cheap] >= target_macs - tolerance:
            break
        middle = math.sqrt(dear * cheap)
        if spent(middle) > target_macs:
            dear = middle
        else:
            cheap = middle
    return Calibration(cheap, tried[cheap], tried)


def _conditioning(settings: EnvSettings) -> CostConditioning:
    if settings.conditioning is None:
        raise ValueError("The price can be chosen only for an agent that was trained with a range of --macs-weight.")
    return settings.conditioning
