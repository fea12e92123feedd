#!/usr/bin/env bash
# Triton's interpreter (TRITON_INTERPRET=1) keeps bfloat16 numbers as 16-bit patterns. tl.dot multiplies these patterns as whole
# numbers: a product of bfloat16 matrices is wrong by orders of magnitude, while float16 and float32 are right. Kernels that
# are tested in the interpreter have to be tested in float16.
#
# Seen with triton 3.8.0, torch 2.14.1 (CPU), numpy 2.3.5, Python 3.11, Linux x86-64:
#   float32: right
#   float16: right
#   bfloat16: wrong
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet torch==2.14.1 triton==3.8.0 numpy==2.3.5
cat > "$folder/product.py" <<'PYTHON'
import sys

import torch
import triton
import triton.language as tl


@triton.jit
def product(a, b, out, N: tl.constexpr):
    i, j = tl.arange(0, N)[:, None], tl.arange(0, N)[None, :]
    tl.store(out + i * N + j, tl.dot(tl.load(a + i * N + j), tl.load(b + i * N + j)))


a, b = torch.randn(16, 16, generator=torch.Generator().manual_seed(0)), torch.eye(16)
seen = []
for dtype in (torch.float32, torch.float16, torch.bfloat16):
    out = torch.empty(16, 16)
    product[(1,)](a.to(dtype), b.to(dtype), out, N=16)
    seen.append("right" if torch.equal(out, a.to(dtype).float()) else "wrong")
    print(f"{str(dtype).removeprefix('torch.')}: {seen[-1]}")
sys.exit(0 if seen == ["right", "right", "wrong"] else 1)
PYTHON
TRITON_INTERPRET=1 "$folder/venv/bin/python" "$folder/product.py"
