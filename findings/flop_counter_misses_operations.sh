#!/usr/bin/env bash
# PyTorch's flop counter (torch.utils.flop_counter) leaves out operations without a word: fused attention on a CPU, and
# products that are added in place (addmm_, baddbmm_). The same products out of place, or attention written with two
# matrix products, are counted. Whoever counts a transformer on a CPU gets the linear layers only.
#
# Seen with torch 2.14.1, numpy 2.3.5, Python 3.11, Linux x86-64:
#   attention, fused: 0 of 49152
#   attention, by hand: 49152 of 49152
#   addmm: 770 of 770
#   addmm_: 0 of 770
#   baddbmm_: 0 of 770
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet torch==2.14.1 numpy==2.3.5
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

q = torch.randn(2, 3, 16, 8)
x, w, total = torch.randn(5, 7), torch.randn(7, 11), torch.zeros(5, 11)
attention = 2 * 2 * 2 * 3 * 16 * 16 * 8  # two products, two flops for each multiply-accumulate
product = 2 * 5 * 7 * 11
cases = {
    "attention, fused": (lambda: F.scaled_dot_product_attention(q, q, q), attention, 0),
    "attention, by hand": (lambda: (q @ q.transpose(-1, -2)).softmax(-1) @ q, attention, attention),
    "addmm": (lambda: torch.addmm(total, x, w), product, product),
    "addmm_": (lambda: total.addmm_(x, w), product, 0),
    "baddbmm_": (lambda: total[None].baddbmm_(x[None], w[None]), product, 0),
}
changed = False
for name, (run, true, seen) in cases.items():
    with FlopCounterMode(display=False) as counter:
        run()
    counted = counter.get_total_flops()
    print(f"{name}: {counted} of {true}")
    changed |= counted != seen
sys.exit("the behaviour has changed" if changed else 0)
PYTHON
