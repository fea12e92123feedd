#!/usr/bin/env bash
# torch.compiler.assume_constant_result marks functions that torch.compile may evaluate while it traces, and whose results it
# keeps as constants. Where such a function returns a tensor, a graph may call it once: with two calls, of the same or of
# other arguments, backends that go through AOTAutograd end in an AssertionError about a source that was seen before, while
# backend="eager" gives the right sum. The name of the function is all that tells the two constants apart.
#
# Seen with torch 2.14.1, numpy 2.3.5, Python 3.11, Linux x86-64:
#   eager, one call: right
#   eager, two calls: right
#   aot_eager, one call: right
#   aot_eager, two calls: AssertionError: source ConstantSource(source_name='table') already in seen_sources
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet torch==2.14.1 numpy==2.3.5
"$folder/venv/bin/python" - 2>/dev/null <<'PYTHON'
import sys

import torch


@torch.compiler.assume_constant_result
def table(n):
    return torch.arange(float(n))


def one_call(x):
    return x + table(3)


def two_calls(x):
    return x + table(3) + table(4).sum()


found = {}
for backend in ("eager", "aot_eager"):
    for function in (one_call, two_calls):
        torch.compiler.reset()
        x = torch.ones(3)
        try:
            right = torch.equal(torch.compile(function, fullgraph=True, backend=backend)(x), function(x))
            said = "right" if right else "wrong"
        except Exception as e:
            said = next(line for line in str(e).splitlines() if "Error" in line)
        found[backend, function.__name__] = said
        print(f"{backend}, {function.__name__.replace('_', ' ')}: {said}")
ends = found.pop(("aot_eager", "two_calls"))
sys.exit(0 if set(found.values()) == {"right"} and "already in seen_sources" in ends else 1)
PYTHON
