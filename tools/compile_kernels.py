"""Compiles the Triton kernels of the tiled runtime for a real GPU, without one: `python -m tools.compile_kernels`.

Triton's interpreter, in which they are tested, takes programs that no compiler takes. Here networks run as they would
on a GPU, but that a launch compiles its kernel with the very constants, types and alignments instead. Needs no GPU: the
compiler and NVIDIA's assembler come with Triton. Numbers that the kernels would give are zeros.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import triton
import tyro
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from supernet import SearchSpace, SubnetConfig, Supernet, SupernetConfig
from supernet.runtime import choice, devices
from supernet.runtime.tiled import TileBatch, images_of_rows, offsets
from supernet.tiled_state import TiledState, run_tiled_group

TYPES = {
    torch.float32: "*fp32", torch.float64: "*fp64", torch.bfloat16: "*bf16", torch.float16: "*fp16",
    torch.int32: "*i32", torch.int64: "*i64", torch.bool: "*i1",
}  # fmt: skip
SHARED = {80: 166_912, 86: 101_376, 89: 101_376, 90: 232_448, 100: 232_448}
"""Bytes of shared memory that a program may have, by compute capability."""
SMALL: dict[str, Any] = {"space": ((192, 288, 384), (2.0, 4.0), (6,)), "head_dim": 64}
DIGITS: dict[str, Any] = {"space": ((16, 32, 48, 64), (0.5, 1.0, 2.0), (1, 2, 3, 4)), "head_dim": 16, "lln": True}
ODD: dict[str, Any] = {"space": ((1, 7, 35), (1.0, 1.3), (1,)), "head_dim": 17}
CASES: dict[str, dict[str, Any]] = {
    "prune": SMALL,
    "prune_merge": SMALL,
    "tome": SMALL,
    "merge, quick_gelu": {**SMALL, "act": "quick_gelu"},
    "merge, authors": {**SMALL, "prance_embed_dim": 384, "lln": True},
    "merge, patches only": {**SMALL, "class_token": False, "global_pool": "avg", "fc_norm": True},
    "merge, Digits": DIGITS,
    "prune_fused, odd sizes": ODD,
    "merge, large heads": {"space": ((256, 512), (2.0, 4.0), (2,)), "head_dim": 256},
}
"""Networks, whose names begin with the token mode."""


@dataclass(frozen=True)
class Compiling:
    """What to compile."""

    capability: int = 90
    """Compute capability of the GPU, without the dot: 80, 86, 89, 90, 100."""
    cases: tuple[str, ...] = tuple(CASES)
    """Networks."""
    dtypes: tuple[str, ...] = ("bfloat16", "float16", "float32")
    """Precisions."""


class Compiled:
    """Takes the place of launches.

    Args:
        capability: Of the GPU.

    Attributes:
        failed: What did not compile, or takes too much shared memory.
    """

    def __init__(self, capability: int) -> None:
        self.target, self.seen, self.failed = GPUTarget("cuda", capability, 32), set[str](), list[str]()
        self.most_shared = SHARED.get(capability, min(SHARED.values()))

    def launched(self, kernel: Any, *args: Any, grid: Any, warmup: bool, **more: Any) -> None:
        """Compiles a kernel for these arguments, unless it was compiled for such ones."""
        given = dict(zip(kernel.arg_names, args, strict=False)) | {
            k: v for k, v in more.items() if k in kernel.arg_names
        }
        options = {k: v for k, v in more.items() if k not in kernel.arg_names}
        names = [p.name for p in kernel.params if p.is_constexpr]
        # As Triton specialises: ones are constants, and what 16 divides is told, unless the kernel says otherwise.
        as_is = {p.name for p in kernel.params if p.do_not_specialize}
        unaligned = as_is | {p.name for p in kernel.params if p.do_not_specialize_on_alignment}
        ones = {k for k, v in given.items() if type(v) is int and v == 1} - as_is
        constants = {k: v for k, v in given.items() if k in names or v is None or k in ones}
        signature = {k: "constexpr" if k in constants else _type_of(v) for k, v in given.items()}
        aligned = [k for k, v in given.items() if k not in constants and k not in unaligned and _is_aligned(v)]
        if (key := f"{kernel.__name__} {signature} {constants} {aligned} {options}") in self.seen:
            return
        self.seen.add(key)
        places = {(kernel.arg_names.index(k),): [["tt.divisibility", 16]] for k in aligned}
        told = {k: v for k, v in constants.items() if k in names}
        said = f"{kernel.__name__} {told}"
        try:
            binary = triton.compile(ASTSource(kernel, signature, constants, places), self.target, options)
        except Exception as e:  # whatever a compiler may say
            self.failed.append(f"{said}: {' '.join(str(e).split())}")
            print(f"  FAILED {self.failed[-1][:2000]}", flush=True)
            return
        shared, (registers, spilled) = binary.metadata.shared, _usage(binary.asm["ptx"])
        if shared > self.most_shared:
            self.failed.append(f"{said}: {shared} bytes of shared memory, of which there are {self.most_shared}")
        # Instructions that load or store a single number of half precision.
        narrow = len(re.findall(r"\b(?:ld|st)\.global\S*\.b16\b", binary.asm["ptx"]))
        used = f"{registers} registers, {spilled} bytes spilled, {narrow} narrow accesses"
        print(f"  {said}: {shared} bytes shared, {used}", flush=True)


def _type_of(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return TYPES[value.dtype]
    if isinstance(value, float):
        return "fp32"
    return "i32" if abs(value) < 2**31 else "i64"


def _is_aligned(value: Any) -> bool:
    return value.data_ptr() % 16 == 0 if isinstance(value, torch.Tensor) else type(value) is int and value % 16 == 0


def _usage(ptx: str) -> tuple[int, int]:
    """Registers of a thread, and bytes of it that are spilled, as the assembler says."""
    assembler = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
    arch = re.search(r"\.target (\w+)", ptx)
    assert arch is not None
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        command = [str(assembler), "-v", f"--gpu-name={arch[1]}", file.name, "-o", "/dev/null"]
        said = subprocess.run(command, capture_output=True, text=True, check=False).stderr
    numbers = [re.search(pattern, said) for pattern in (r"Used (\d+) registers", r"(\d+) bytes spill stores")]
    return tuple(int(found[1]) if found else -1 for found in numbers)  # type: ignore[return-value]


def run_network(mode: str, dtype: torch.dtype, space: tuple[Any, ...], images: int = 3, **architecture: Any) -> None:
    """Runs the decided groups of a network by tiles, each image with sizes of its own, and the last at full size."""
    widths, ratios, heads = space
    sizes = SearchSpace((1, 1, 1), widths, ratios, heads, 0.1, mode)
    config = SupernetConfig(sizes, 56, 14, 3, 7, **architecture)
    net = Supernet(config).to(dtype).eval().requires_grad_(False)
    n, dim = config.num_tokens, config.embed_dim
    begins = offsets(torch.full((images,), n))
    tokens, have = torch.zeros(images * n, dim, dtype=dtype), torch.full((images,), dim, dtype=torch.int32)
    batch = TileBatch(tokens, begins, images_of_rows(begins, images * n), have, torch.full((images,), n), None, n)
    patches = torch.arange(config.num_prefix_tokens, n).repeat(images, 1)
    spent = torch.zeros(images, dtype=torch.int64)
    state = TiledState(1, batch, patches, torch.full((images,), dim), spent, torch.zeros(images * n))
    subnet = SubnetConfig.random(sizes, images, torch.Generator().manual_seed(0))
    with torch.inference_mode():
        for group in (1, 2):
            state = run_tiled_group(config, net.blocks, state, subnet.group(sizes, group))
            net.forward_head(state)
            if group == 1:
                net.forward_head(run_tiled_group(config, net.blocks, state, None, head_only=True))


def patched(compiled: Compiled) -> Callable[[], None]:
    """Has launches compile, CPU tensors planned for as a GPU's, and buffers empty of garbage; what undoes that."""
    tile_sizes = devices.tile_sizes
    before = JITFunction.run, choice.hindrance_of_device, devices.tile_sizes, torch.empty, torch.empty_like

    def undo() -> None:
        JITFunction.run, choice.hindrance_of_device, devices.tile_sizes, torch.empty, torch.empty_like = before  # type: ignore[method-assign]

    driver.set_active(
        SimpleNamespace(
            get_current_device=lambda: 0,
            get_current_stream=lambda device=0: 0,
            get_current_target=lambda: compiled.target,
            get_active_torch_device=lambda: torch.device("cpu"),
        )
    )
    JITFunction.run = lambda kernel, *args, **more: compiled.launched(kernel, *args, **more)  # type: ignore[method-assign]
    choice.hindrance_of_device = lambda device: None  # type: ignore[assignment]
    devices.tile_sizes = lambda device_type, dtype: tile_sizes("cuda", dtype)
    torch.empty, torch.empty_like = torch.zeros, torch.zeros_like  # type: ignore[assignment]
    return undo


def main(compiling: Compiling) -> None:
    """Compiles everything; ends with an error if something did not compile."""
    if unknown := sorted(set(compiling.cases) - set(CASES)):
        sys.exit(f"--cases {unknown} are unknown; choose of {list(CASES)}.")
    compiled = Compiled(compiling.capability)
    undo = patched(compiled)
    try:
        for name in compiling.cases:
            for dtype in compiling.dtypes:
                print(f"{name}, {dtype}", flush=True)
                with choice.use("tiles"):
                    run_network(name.partition(",")[0], getattr(torch, dtype), **CASES[name])
    finally:
        undo()
    print(f"{len(compiled.seen)} kernels, {len(compiled.failed)} of them failed")
    if compiled.failed:
        sys.exit(1)


if __name__ == "__main__":
    main(tyro.cli(Compiling, description=__doc__))
