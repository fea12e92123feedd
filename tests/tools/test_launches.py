"""How many launches an environment step takes on a GPU."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from tools.launches import Counting, Launches, count


def test_views_launch_nothing_and_everything_else_does() -> None:
    x = torch.arange(6.0)
    with Launches() as counted:
        x.view(2, 3).t()[0].unsqueeze(0).expand(4, -1).float()
        torch.empty(3)
        x.view(2, 3).unbind()
    assert not counted.counts
    with counted:
        x.add_(1)
        torch.stack([x * 2, x.double().float()])
    assert counted.counts.total() == 5


@pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are compiled there, not interpreted")
def test_an_episode_launches_little_beside_its_kernels() -> None:
    counts = count(Counting(images=2))
    kernels = [sum(n for name, n in c.items() if name.endswith("_kernel")) for c in counts]
    assert sum(c.total() for c in counts) < 600
    # At full size, nothing is planned, sorted or reduced: of what the last step launches, the first has little more.
    assert counts[0].total() - kernels[0] < counts[2].total() - kernels[2] + 30
