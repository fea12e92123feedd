"""What figures and runs depend on: hardware, versions, the revision of the source."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

PACKAGES = (
    *("prance-env", "torch", "torchvision", "timm", "gymnasium", "stable-baselines3", "sb3-contrib"),
    *("numpy", "safetensors", "optuna"),
)


def machine(device: str) -> dict[str, Any]:
    """What figures depend on: hardware, threads, torch."""
    name = torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else platform.processor()
    return {
        "device": name or platform.machine(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "timm": version("timm"),
    }


def machine_in_words(info: dict[str, Any]) -> str:
    """What `machine` found, as the beginning of a line."""
    return f"{info['device']}, {info['threads']} threads, torch {info['torch']}"


def versions() -> dict[str, str]:
    """Python's version and those of installed packages that results depend on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def git_revision() -> str | None:
    """Commit of the source tree that runs, with "+" if it was changed since; None if the package is installed."""
    tree = Path(__file__).parent.parent
    if not (tree / ".git").exists():
        return None
    try:
        commit, changes = (
            subprocess.run(["git", *words], cwd=tree, capture_output=True, text=True, check=True, timeout=10).stdout
            for words in (("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
        )
    except (OSError, subprocess.SubprocessError):
        return None  # no git here, or not this user's tree
    return commit.strip() + "+" * bool(changes)
