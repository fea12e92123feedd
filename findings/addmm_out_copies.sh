#!/usr/bin/env bash
# torch.addmm(input, a, b, out=...) may write straight onto its input, so that adding a product to part of a buffer needs no
# copy. It does so only when `input` and `out` are one Python object. Two views of the same part of the same buffer, equal in
# address, shape and strides, give the same result with a copy of that part first.
#
# Seen with torch 2.14.1, numpy 2.3.5, Python 3.11, Linux x86-64:
#   one view passed twice: 0 copies
#   two equal views: 1 copies
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet torch==2.14.1 numpy==2.3.5
"$folder/venv/bin/python" - 2>/dev/null <<'PYTHON'
import sys

import torch
from torch.profiler import ProfilerActivity, profile


def copies(run):
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        run()
    return sum(event.count for event in profiler.key_averages() if event.key == "aten::copy_")


a, b = torch.randn(64, 16), torch.randn(16, 24)
first, second = torch.zeros(64, 32), torch.zeros(64, 32)
view = first[:, :24]
once = copies(lambda: torch.addmm(view, a, b, out=view))
twice = copies(lambda: torch.addmm(second[:, :24], a, b, out=second[:, :24]))
print(f"one view passed twice: {once} copies")
print(f"two equal views: {twice} copies")
assert torch.equal(first, second)
sys.exit(0 if (once, twice) == (0, 1) else 1)
PYTHON
