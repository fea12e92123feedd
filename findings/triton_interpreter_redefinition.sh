#!/usr/bin/env bash
# Triton's interpreter (TRITON_INTERPRET=1) runs a kernel in which a name means a tensor of indices first and a pointer inside
# a later `if` whose condition is known at run time only. The compiler refuses it, since a value of one type would have to
# leave the `if`. Tests in the interpreter do not show that; compiling for a target does, and needs no GPU.
#
# Seen with triton 3.8.0, torch 2.14.1, numpy 2.3.5, Python 3.11, Linux x86-64:
#   interpreted: [0.0, 1.0, 2.0, 3.0, 7.0]
#   compiled for compute capability 9.0: CompilationError
#   compiled with a name of its own: PTX
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet torch==2.14.1 triton==3.8.0 numpy==2.3.5
cat >"$folder/kernels.py" <<'PYTHON'
import triton
import triton.language as tl


@triton.jit
def one_name(x, out, n, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK).to(tl.int64)
    tl.store(out + at, tl.load(x + at))
    if tl.program_id(0) == 0:
        at = out + n
        tl.store(at, 7.0)


@triton.jit
def two_names(x, out, n, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK).to(tl.int64)
    tl.store(out + at, tl.load(x + at))
    if tl.program_id(0) == 0:
        last = out + n
        tl.store(last, 7.0)
PYTHON
cat >"$folder/run.py" <<'PYTHON'
import kernels
import torch

out = torch.zeros(5)
kernels.one_name[(1,)](torch.arange(4.0), out, 4, BLOCK=4)
print("interpreted:", out.tolist())
PYTHON
cat >"$folder/compile.py" <<'PYTHON'
import kernels
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource


def compiled(kernel):
    signature = {"x": "*fp32", "out": "*fp32", "n": "i32", "BLOCK": "constexpr"}
    try:
        binary = triton.compile(ASTSource(kernel, signature, {"BLOCK": 4}), target=GPUTarget("cuda", 90, 32))
    except Exception as error:
        return type(error).__name__
    return "PTX" if "ptx" in binary.asm else "nothing"


print("compiled for compute capability 9.0:", compiled(kernels.one_name))
print("compiled with a name of its own:", compiled(kernels.two_names))
PYTHON
export TRITON_CACHE_DIR="$folder/cache"
found=$(TRITON_INTERPRET=1 "$folder/venv/bin/python" "$folder/run.py" && "$folder/venv/bin/python" "$folder/compile.py" 2>/dev/null)
echo "$found"
[ "$found" = "interpreted: [0.0, 1.0, 2.0, 3.0, 7.0]
compiled for compute capability 9.0: CompilationError
compiled with a name of its own: PTX" ]
