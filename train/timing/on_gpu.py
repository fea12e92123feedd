"""What is timed on a GPU only: networks as CUDA graphs, and compiled ones."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from supernet import GroupChoice, SubnetConfig, Supernet
from supernet.runtime.graphs import CudaGraph
from supernet.tiled_state import TiledState, run_tiled_group


def choices_on(net: Supernet, subnet: SubnetConfig, device: torch.device) -> list[GroupChoice]:
    """The choices for the groups that a decision precedes, on a device."""
    groups = range(net.space.first_decided, len(net.space.groups))
    picked = (subnet.group(net.space, group) for group in groups)
    return [GroupChoice(*(size.to(device) for size in vars(choice).values())) for choice in picked]


def forward_by_tiles(net: Supernet, images: Tensor, choices: list[GroupChoice]) -> Tensor:
    """`net(images, subnets)` by tiles, with the subnets on the device: nothing is copied there and nothing waits.

    Args:
        net: The supernet; its first group runs at full size, unless it is decided.
        images: (B, in_chans, img_size, img_size).
        choices: One per group that a decision precedes, see `choices_on`.

    Returns:
        (B, num_classes) logits.
    """
    state = TiledState.of(net.begin(images), net.config)
    for choice in choices:
        state = run_tiled_group(net.config, net.blocks, state, choice, head_only=True)
    return net.forward_head(state)


def recorded(function: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """The function as a CUDA graph: what it returns is overwritten by the next call."""
    with torch.inference_mode():
        graph = CudaGraph(lambda inputs: {"out": function()}, {})

    def replay() -> Tensor:
        graph.replay()
        return graph.outputs["out"]

    return replay


def made_or_said(name: str, make: Callable[[], Callable[[], Tensor]]) -> Callable[[], Tensor] | None:
    """What `make` gives; None, with a line about it, if this PyTorch and this GPU cannot: the others are timed all the
    same."""
    try:
        made = make()
        with torch.inference_mode():
            made()
    except Exception as e:  # of PyTorch, Triton, its compiler and the driver, each with classes of its own
        print(f"{name} is left out: {e}")
        return None
    return made


def compiled(model: nn.Module, images: Tensor) -> Callable[[], Tensor]:
    """The model on these images, compiled by `torch.compile` for few launches (its own CUDA graphs)."""
    fast = torch.compile(model, mode="reduce-overhead")

    def forward() -> Tensor:
        with torch.inference_mode():
            out: Tensor = fast(images)
        return out

    return forward
