"""What keeps tiles from running on a GPU, and how numbers are sent to one."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

from supernet.arrays import sent
from supernet.runtime import choice


def hindrance(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]) -> str | None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Old GPU")
    return choice.hindrance_of_device.__wrapped__(torch.device("cuda"))


def test_what_hinders_tiles_on_a_gpu_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "find_spec", lambda name: name)
    monkeypatch.setattr(choice, "_hindrance_of_triton", lambda device: None)
    assert hindrance(monkeypatch, (7, 5)) == "Old GPU has compute capability 7.5, below 8.0"
    assert hindrance(monkeypatch, (8, 0)) is None
    monkeypatch.setattr(choice, "find_spec", lambda name: None)
    assert hindrance(monkeypatch, (9, 0)) == "Triton is not installed (pip install triton)"


@pytest.mark.skipif(torch.cuda.is_available(), reason="kernels belong to the compiler there")
def test_what_keeps_triton_from_launching_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    from supernet.runtime import kernels

    cpu = torch.device("cpu")
    assert choice._hindrance_of_triton(cpu) is None

    class Fails:
        def __getitem__(self, grid: Any) -> Any:
            raise RuntimeError("Failed to find C compiler.\n  Please specify via CC.")

    monkeypatch.setattr(kernels, "permutation_kernel", Fails())
    said = choice._hindrance_of_triton(cpu)
    assert said == "Triton cannot run here (Failed to find C compiler. Please specify via CC.)"


def test_products_are_as_precise_as_either_switch_of_torch_says() -> None:
    script = """
import torch
from supernet.runtime.choice import precision
print(precision())
torch.set_float32_matmul_precision("high")
print(precision(), precision(torch.bfloat16))
for said in ("ieee", "tf32"):
    torch.backends.cuda.matmul.fp32_precision = said
    print(precision())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    words = ["ieee", "tf32", "ieee", "ieee", "tf32"] if hasattr(torch.backends.cuda.matmul, "fp32_precision") else None
    assert words is None or done.stdout.split() == words, done.stderr


def test_the_supernet_needs_no_triton() -> None:
    script = "import sys; sys.modules['triton'] = None; import supernet, prance_env.engine; print('imported')"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "imported\n", done.stderr


@pytest.mark.parametrize(("numbers", "pinned"), [(8_192, False), (8_193, True)])
def test_what_is_sent_to_a_gpu_is_not_waited_for(numbers: int, pinned: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[Any] = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: said.append("pinned") or tensor)
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, *args, **named: said.append((args, named)) or tensor)
    values, gpu = np.arange(numbers, dtype=np.int64), torch.device("cuda")
    assert sent(values[::-1], gpu).tolist() == values[::-1].tolist()
    assert said == ["pinned"] * pinned + [((gpu,), {"non_blocking": True})]


def test_what_is_sent_to_a_cpu_is_the_same_memory() -> None:
    values = np.zeros(100_000)
    sent(values, torch.device("cpu"))[0] = 1
    assert values[0] == 1
