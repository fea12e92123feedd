"""Arguments of `prance bench-env`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .cli_options import Device, DType, Threads, TokenMode, set_threads


@dataclass
class BenchEnv:
    """Time episodes in full forward passes: environment, policy and training; prefix cached or not; Gymnasium and SB3.

    For example:

        prance bench-env
        prance bench-env --supernet prance_vit_tiny --num-images 64 --out bench-env.json
        prance bench-env --supernet prance_vit_small --device cuda --dtype bfloat16
        prance bench-env --token-mode merge
    """

    supernet: str = "digits"
    """Registered supernet. Only digits has weights and images; others get random ones."""
    checkpoint: Path | None = None
    """Folder with weights, instead of random ones."""
    num_images: int = 256
    """Images at a time."""
    repeats: int = 7
    """Timed rounds, of which the median counts."""
    token_mode: TokenMode = None
    dtype: DType = "float32"
    out: Path | None = None
    """JSON file for the figures."""
    seed: int = 0
    """Of actions, images and weights."""
    device: Device = "cpu"
    threads: Threads = 2

    def run(self) -> None:
        from .bench_env import EnvBenchSettings, run_bench_env

        set_threads(self.threads)
        settings = EnvBenchSettings(
            supernet=self.supernet,
            checkpoint=None if self.checkpoint is None else str(self.checkpoint),
            num_images=self.num_images,
            repeats=self.repeats,
            device=self.device,
            seed=self.seed,
            token_mode=self.token_mode,
            dtype=self.dtype,
        )
        run_bench_env(settings, self.out)
