"""What an episode launches on a GPU, counted without one: `python -m tools.launches`.

One environment step after another is computed by tiles in Triton's interpreter, on a small network with as many blocks
as DeiT-S: which sizes it has does not matter for what is launched. Views and empty tensors launch nothing and are not
counted; everything else is: inside a CUDA graph, the smallest kernel takes a GPU about two microseconds.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import tyro
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from prance_env import InferenceEngine, RewardConfig
from prance_env.device_episodes import Observing
from prance_env.images.source import ImageDataset
from supernet import SearchSpace, Supernet, SupernetConfig, freeze, runtime

LAUNCH_NOTHING = {"empty", "empty_like", "new_empty", "lift_fresh", "detach", "alias", "set_"}


@dataclass(frozen=True)
class Counting:
    """What to count."""

    token_mode: str = "prune"
    """Which patches leave, and how."""
    images: int = 4
    """Images at a time; what is launched hardly depends on it."""


class Launches(TorchDispatchMode):
    """Counts what torch launches, by the name of the operation."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        out, name = func(*args, **(kwargs or {})), func.overloadpacket.__name__
        first = next((a for a in args if isinstance(a, Tensor)), None)
        same = isinstance(out, Tensor) and first is not None and _memory(out) == _memory(first)
        view = func.is_view or (same and not name.endswith("_"))
        if not (view or name in LAUNCH_NOTHING):
            self.counts[name] += 1
        return out


def _memory(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()


@contextmanager
def counted_kernels(counts: Counter[str]) -> Iterator[None]:
    """Within the block, launches of Triton's kernels are counted; what the interpreter makes of them is not."""
    from triton.runtime.interpreter import GridExecutor

    launch = GridExecutor.__call__

    def launched(self: Any, *args: Any, **kwargs: Any) -> None:
        counts[self.fn.__name__] += 1
        with _disable_current_modes():
            launch(self, *args, **kwargs)

    GridExecutor.__call__ = launched  # type: ignore[method-assign]
    try:
        yield
    finally:
        GridExecutor.__call__ = launch  # type: ignore[method-assign]


def count(counting: Counting) -> list[Counter[str]]:
    """What every decision of an episode launches: group, Result-to-Go, reward and observation."""
    space = SearchSpace((3, 3, 3, 3), (32, 48, 64), (2.0, 3.0, 4.0), (2,), token_mode=counting.token_mode)
    net = freeze(Supernet(SupernetConfig(space, 16, 4, 3, 10, head_dim=32)))
    images = torch.zeros(counting.images, 3, 16, 16, dtype=torch.uint8)
    dataset = ImageDataset.from_tensors(images, torch.zeros(counting.images, dtype=torch.int64))
    engine, drawn = InferenceEngine(net, dataset), np.random.default_rng(0)
    actions = drawn.uniform(size=(space.num_decisions, counting.images, space.action_size))
    reward, observing = RewardConfig(), Observing("cls")
    counts: list[Counter[str]] = []
    with runtime.use("tiles"), torch.inference_mode():
        for _ in range(2):  # constants are made once
            counts, episodes = [], engine.start(np.arange(counting.images))
            for taken in torch.from_numpy(actions):
                mode = Launches()
                with counted_kernels(mode.counts), mode:
                    episodes = engine.step(episodes, taken, reward, observing)
                counts.append(mode.counts)
    return counts


def main(counting: Counting) -> None:
    """Prints a line for every decision, and what is launched most."""
    counts = count(counting)
    for decision, launched in enumerate(counts, start=1):
        kernels = sum(n for name, n in launched.items() if name.endswith("_kernel"))
        print(f"decision {decision}: {launched.total()} launches, {kernels} of them kernels of the tiled runtime")
    total = sum(counts, Counter[str]())
    print(f"episode: {total.total()}; most often {', '.join(f'{n} {name}' for name, n in total.most_common(12))}")


if __name__ == "__main__":
    if os.environ.get("TRITON_INTERPRET") != "1":  # Triton reads it when it is imported, and PyTorch imports Triton
        again = [sys.executable, "-m", "tools.launches", *sys.argv[1:]]
        os.execve(sys.executable, again, {**os.environ, "TRITON_INTERPRET": "1"})
    main(tyro.cli(Counting, description=__doc__))
