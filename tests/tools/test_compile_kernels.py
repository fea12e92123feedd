"""The kernels that the interpreter runs are such as a GPU's compiler takes."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

pytest.importorskip("triton.backends.compiler")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="Triton comes with a compiler there only")
def test_kernels_compile_for_a_gpu() -> None:
    # In a process of its own: in this one, kernels belong to the interpreter.
    free = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tools.compile_kernels", "--cases", "prune", "prune_merge", "--dtypes", "bfloat16"]
    done = subprocess.run(command, env=free, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "0 of them failed" in done.stdout
    for kernel in ("permutation", "norm", "product", "full_product", "attention", "combine", "move"):
        assert f"{kernel}_kernel" in done.stdout
    assert "'SCORES': True" in done.stdout
    # Where sizes are multiples of 16, tokens and weights are read and written eight numbers at a time; biases are not.
    accesses = re.findall(r"(?:product|norm)_kernel .*, (\d+) narrow accesses", done.stdout)
    assert len(accesses) > 6
    assert {*accesses} <= {"0", "1"}, done.stdout


COUNTED = """
from types import SimpleNamespace
import torch, triton
from tools import compile_kernels as tool
triton.compile = lambda *args: SimpleNamespace(metadata=SimpleNamespace(shared=0), asm={"ptx": ""})
tool._usage = lambda ptx: (0, 0)
compiled = tool.Compiled(90)
tool.patched(compiled)
for images in (1, 3, 16):
    with tool.choice.use("tiles"):
        tool.run_network("prune_merge", torch.bfloat16, images=images, **tool.SMALL)
    print("compiled", len(compiled.seen))
"""


def test_a_batch_of_another_size_compiles_nothing_anew() -> None:
    free = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", COUNTED], env=free, capture_output=True, text=True, check=False)
    counts = [line for line in done.stdout.splitlines() if line.startswith("compiled")]
    assert len(counts) == 3, done.stderr[-3000:]
    assert len({*counts}) == 1, counts
