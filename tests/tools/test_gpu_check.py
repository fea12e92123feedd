"""What the check of a GPU makes of the figures, and that it needs one."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tools.gpu_check import Check, Target, main, targets_of


def row(ms: float, macs: float, speed: float, peak: float) -> dict[str, Any]:
    return {"ms_per_image": ms, "macs_per_image": macs, "throughput_vs_timm": speed, "peak_mib": peak}


def test_targets_are_read_from_the_rows_of_a_benchmark() -> None:
    rows = {"timm": row(1.0, 4.0, 1.0, 100), "full, graph": row(0.8, 4.0, 1.25, 80)}
    rows["per image, graph"] = row(0.5, 2.0, 2.0, 60)
    speed, full, kept, memory = targets_of("net", 8, rows, 1.9, 0.9)
    assert (speed.value, speed.met) == (2.0, True)
    assert (full.value, full.met) == (1.25, True)
    assert kept.value == pytest.approx(0.8 / 0.5 * 0.5)
    assert not kept.met
    assert (memory.value, memory.met) == (0.6, True)


def test_what_was_not_measured_is_missed() -> None:
    assert [t.met for t in targets_of("net", 8, {}, 1.9, 0.9)] == [False] * 4
    assert Target("few", 0.5, at_most=0.6).met
    assert not Target("few", 0.7, at_most=0.6).met


@pytest.mark.skipif(torch.cuda.is_available(), reason="would run the check")
def test_it_says_that_it_needs_a_gpu() -> None:
    with pytest.raises(SystemExit, match="gpu-check needs a GPU that PyTorch can use"):
        main(Check())
