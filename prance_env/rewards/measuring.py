"""Measuring a supernet on this device: the table of milliseconds that rewards can count."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from supernet import GroupChoice, InferenceState, SearchSpace, Supernet, SupernetConfig, freeze
from supernet.arrays import Floats
from supernet.runtime.devices import current

from ..supernets import usable_device
from .latency import LatencyTable

Progress = Callable[[int, int], object]


@dataclass(frozen=True)
class _Stopwatch:
    """Milliseconds an image: the fastest of some runs, as other processes can only add to it."""

    device: torch.device
    batch_size: int
    repeats: int

    def milliseconds(self, run: Callable[[], object]) -> float:
        run()
        return 1000 * min(seconds_of(run, self.device) for _ in range(self.repeats)) / self.batch_size


def seconds_of(
    call: Callable[[], object], device: torch.device, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Seconds that a call takes; on a GPU, there and on the host until the GPU is done, by CUDA's events.

    Args:
        call: What to time.
        device: Where it runs.
        clock: Seconds on a CPU; `time.process_time` counts this process's only, however busy the machine is.
    """
    if device.type == "cuda":
        begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(device)
        with current(device):
            begun.record()
            call()
            ended.record()
        torch.cuda.synchronize(device)
        return begun.elapsed_time(ended) / 1e3
    start = clock()
    call()
    return clock() - start


@torch.inference_mode()
def measure_latency_table(
    config: SupernetConfig,
    device: str = "cpu",
    batch_size: int = 256,
    num_token_counts: int = 6,
    repeats: int = 5,
    progress: Progress = lambda done, total: None,
) -> LatencyTable:
    """Measures a supernet; its weights do not matter, so random ones are used.

    Args:
        config: The supernet; with `decide_first_group` its first group gets times, too.
        device: Torch device.
        batch_size: Images per batch.
        num_token_counts: Points of the token grid, from one patch to all; at most one per side of the patch grid.
        repeats: Runs per point; the fastest counts, as other processes can only add to it.
        progress: Called with the points done and their number.

    Raises:
        ValueError: If a number is below 1, or the device is not there.
    """
    for name, value in (("batch_size", batch_size), ("num_token_counts", num_token_counts), ("repeats", repeats)):
        if value < 1:
            raise ValueError(f"{name}={value} must be at least 1.")
    space, target = config.space, usable_device(device)
    watch = _Stopwatch(target, batch_size, repeats)
    grid_side = config.img_size // config.patch_size
    sides = np.unique(np.linspace(grid_side, 1, num_token_counts).round().astype(int))
    group_ms = np.zeros((space.num_decisions, len(space.embed_dims), len(space.mlp_ratios), len(sides)))
    per_group = len(space.embed_dims) * len(space.mlp_ratios)
    done = 0
    # A supernet for smaller images has fewer tokens and otherwise the same blocks; the last side is the whole one.
    for s, side in enumerate(sides):
        net = freeze(Supernet(replace(config, img_size=int(side) * config.patch_size))).to(target)
        small = net.config
        images = torch.rand(batch_size, small.in_chans, small.img_size, small.img_size, device=target)
        prefix_ms = watch.milliseconds(lambda net=net, images=images: net.begin(images))  # type: ignore[misc]
        state = net.begin(images)
        for group in range(space.first_decided, len(space.groups)):
            group_ms[group - space.first_decided, ..., s] = _group_times(net, state, watch)
            full = GroupChoice.full(space, group, batch_size)
            state = net.run_group(state, group, full, head_only=_ends(space, group))
            done += per_group
            progress(done, per_group * space.num_decisions * len(sides))
        head_ms = watch.milliseconds(lambda net=net, state=state: net.forward_head(state))  # type: ignore[misc]
    return LatencyTable(
        device=torch.cuda.get_device_name(target) if target.type == "cuda" else f"{target.type}, {platform.machine()}",
        torch_version=torch.__version__,
        threads=torch.get_num_threads(),
        batch_size=batch_size,
        groups=list(space.groups),
        embed_dims=list(space.embed_dims),
        mlp_ratios=list(space.mlp_ratios),
        num_tokens=[int(side) ** 2 + config.num_prefix_tokens for side in sides],
        prefix_ms=prefix_ms,
        head_ms=head_ms,
        group_ms=group_ms.tolist(),
    )


def _ends(space: SearchSpace, group: int) -> bool:
    """Whether nothing but the classifier follows a group, which on a GPU then leaves out what logits do not need."""
    return group == len(space.groups) - 1


def _group_times(net: Supernet, state: InferenceState, watch: _Stopwatch) -> Floats:
    """(widths, ratios) milliseconds of the group that is next, every block alike."""
    space, group = net.space, state.group
    full = GroupChoice.full(space, group, len(state))
    times = np.zeros((len(space.embed_dims), len(space.mlp_ratios)))
    for w, width in enumerate(space.embed_dims):
        for r, ratio in enumerate(space.mlp_ratios):
            choice = replace(
                full,
                embed_dim=torch.full_like(full.embed_dim, width),
                mlp_ratio=torch.full_like(full.mlp_ratio, ratio),
            )
            run = partial(net.run_group, state, group, choice, head_only=_ends(space, group))
            times[w, r] = watch.milliseconds(run)
    return times
