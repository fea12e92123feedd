"""Steps per CPU second are counted over all lanes, through both faces."""

from __future__ import annotations

import itertools
import time

import pytest

from tools import steps


@pytest.mark.usefixtures("few_scenes")
@pytest.mark.parametrize("lanes", [1, 2])
def test_steps_after_the_warm_up_are_counted_by_lanes(lanes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count()
    monkeypatch.setattr(time, "process_time", lambda: next(clock) / 2)
    # The clock is read before every step, half a second apart, and once at the end.
    assert steps.steps_per_second(lanes, 4.0, warm_up=4) == pytest.approx(2 * lanes, rel=0.3)
