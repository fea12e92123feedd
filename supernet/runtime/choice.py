"""Which of the two ways runs a group of blocks: by segments, or by tiles on a GPU."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from importlib.util import find_spec

import torch

from ..config import SupernetConfig
from .devices import current

WAYS = ("segments", "tiles")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LEAST_CAPABILITY = (8, 0)
ACTIVATION_CODES = {"gelu": 1, "gelu_tanh": 2, "quick_gelu": 3}
"""Activations that tiles know, and their numbers in the kernels."""

_USED: ContextVar[str | None] = ContextVar("supernet_runtime", default=None)
_GRAPHS: ContextVar[bool] = ContextVar("supernet_runtime_graphs", default=True)


@contextmanager
def use(way: str | None = None, graphs: bool = True) -> Iterator[None]:
    """Within the block, groups of blocks run this way, whatever the device.

        with supernet.runtime.use("segments"):
            logits = net(images, subnets)

    It holds for this thread or task. A thread that is started inside the block runs as it would outside of it, unless
    it runs in a copy of the context: `Thread(target=contextvars.copy_context().run, args=(work,))`.

    Args:
        way: "segments" (`supernet.runtime.blocks`: products per distinct size, planned on the host; any device, has
            gradients) or "tiles" (`supernet.runtime.tiles`: Triton kernels that read their sizes on the device; no
            gradients). None, and outside of any block: tiles run on GPUs, segments elsewhere.
        graphs: Whether the environment records its steps on a GPU as CUDA graphs.

    Raises:
        ValueError: If there is no such way.
        RuntimeError: In the network's call, if tiles cannot run there.
    """
    if way is not None and way not in WAYS:
        raise ValueError(f"runtime {way!r} is unknown; choose one of {WAYS}.")
    token, recorded = _USED.set(way), _GRAPHS.set(graphs)
    try:
        yield
    finally:
        _USED.reset(token)
        _GRAPHS.reset(recorded)


def records_graphs(device: torch.device) -> bool:
    """Whether what runs by tiles on a device is to be recorded as CUDA graphs."""
    return _GRAPHS.get() and device.type == "cuda" and not torch.cuda.is_current_stream_capturing()


def precision(dtype: torch.dtype = torch.float32) -> str:
    """How kernels round products of a type: float32 as torch's own on this device, "ieee" or "tf32"."""
    if dtype != torch.float32:
        return "ieee"
    # The newer of torch's two switches; asking the older one where somebody has set this one is an error.
    said = getattr(torch.backends.cuda.matmul, "fp32_precision", "none")
    if said in ("ieee", "tf32"):
        return str(said)
    return "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"


def runs_tiles(config: SupernetConfig, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether tiles run a group: on a GPU without gradients, where nothing hinders them.

    Raises:
        RuntimeError: If `use("tiles")` asks for them where they cannot run.
    """
    used = _USED.get()
    if used == "segments" or (used is None and (device.type != "cuda" or torch.is_grad_enabled())):
        return False
    hindrance = hindrance_of_network(config, dtype) or hindrance_of_device(device) or _hindrance_of_autocast(device)
    if hindrance is None:
        return True
    if used == "tiles":
        raise RuntimeError(f"supernet.runtime.use('tiles'): {hindrance}.")
    _warn_once(hindrance)
    return False


def class_token_alone(config: SupernetConfig, group: int) -> bool:
    """Whether logits need nothing but the class tokens of what a group hands on."""
    return group == len(config.space.groups) - 1 and config.global_pool == "token" and not config.distilled


def hindrance_of_network(config: SupernetConfig, dtype: torch.dtype) -> str | None:
    """Why tiles cannot run this network; None if they can."""
    mode = config.token_mode
    if mode.soft or mode.module is not None or not mode.on_device:
        return f"token_mode={config.space.token_mode!r} plans on the host (TokenMode.on_device is off)"
    others = {
        "norms or gates that a plain ViT has not": not config.plain_blocks,
        f"act={config.act!r}": config.act not in ACTIVATION_CODES,
        "a mean query beside registers": config.reg_tokens > 0 and not config.class_token and mode.uses_scores,
        "two classifiers": config.distilled,
        "attention pooling": config.global_pool == "map",
        "missing last norm": not config.final_norm,
    }
    if found := [what for what, there in others.items() if there]:
        return f"its kernels know no {' and no '.join(found)}"
    if dtype not in DTYPES:
        return f"its kernels know no {dtype}, only {', '.join(str(d) for d in DTYPES)}"
    return None


def _hindrance_of_autocast(device: torch.device) -> str | None:
    """Why tiles cannot run where the caller has opened an autocast; None if there is none."""
    if torch.is_autocast_enabled(device.type):
        return "torch.autocast is on, and tiles compute in the precision of the weights (net.to(torch.bfloat16))"
    return None


@lru_cache
def hindrance_of_device(device: torch.device) -> str | None:
    """Why tiles cannot run on this device; None if they can."""
    if find_spec("triton") is None:
        return "Triton is not installed (pip install triton)"
    if device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1":
        return None
    if device.type != "cuda":
        return f"Triton needs a GPU, or TRITON_INTERPRET=1 on a CPU; the network is on {device}"
    capability = torch.cuda.get_device_capability(device)
    if capability < LEAST_CAPABILITY:
        least = ".".join(str(n) for n in LEAST_CAPABILITY)
        name, own = torch.cuda.get_device_name(device), ".".join(str(n) for n in capability)
        return f"{name} has compute capability {own}, below {least}"
    return _hindrance_of_triton(device)


def _hindrance_of_triton(device: torch.device) -> str | None:
    """Why Triton can launch nothing here, such as no C compiler; None if it can."""
    from .kernels import permutation_kernel

    sizes, rows = (torch.zeros(2, dtype=torch.int32, device=device) for _ in range(2))
    lengths = torch.zeros(1, dtype=torch.int64, device=device)
    try:
        with current(device):
            permutation_kernel[(1, 1)](sizes, sizes, lengths, sizes, rows, rows, 1, 1, MOST=16, CHUNK=256)
    except Exception as e:  # of the compiler, the driver or the operating system, each with classes of its own
        return f"Triton cannot run here ({' '.join(str(e).split()) or type(e).__name__})"
    return None


@lru_cache
def _warn_once(hindrance: str) -> None:
    warnings.warn(
        f"Groups of blocks run by segments, which is several times slower on a GPU than tiles: {hindrance}.",
        stacklevel=4,
    )
