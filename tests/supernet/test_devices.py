"""What keeps tiles from running on a GPU."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from supernet.runtime import choice


def hindrance(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]) -> str | None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Old GPU")
    return choice.hindrance_of_device.__wrapped__(torch.device("cuda"))


def test_what_hinders_tiles_on_a_gpu_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "find_spec", lambda name: name)
    assert hindrance(monkeypatch, (6, 1)) == "Old GPU has compute capability 6.1, below 7.0"
    assert hindrance(monkeypatch, (7, 0)) is None
    monkeypatch.setattr(choice, "find_spec", lambda name: None)
    assert hindrance(monkeypatch, (9, 0)) == "Triton is not installed (pip install triton)"


def test_the_supernet_needs_no_triton() -> None:
    script = "import sys; sys.modules['triton'] = None; import supernet, prance_env.engine; print('imported')"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "imported\n", done.stderr
