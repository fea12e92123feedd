"""`prance profile`: measures a supernet on a device and writes the lookup table."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from prance_env.rewards.measuring import measure_latency_table
from supernet import supernet_config
from supernet.checkpoint import load_config
from supernet.config import with_space

from ..options import Device, SupernetName


@dataclass(frozen=True)
class ProfileSettings:
    """What `prance profile` measures."""

    supernet: SupernetName = "digits"
    """Registered supernet; its weights do not matter."""
    checkpoint: Path | None = None
    """Folder of another one, instead."""
    batch_size: int = 256
    """Images per batch."""
    token_counts: int = 6
    """Points of the grid of token counts."""
    repeats: int = 5
    """Runs per point; the fastest counts."""
    decide_first_group: bool = False
    """Measure the first group at every size, too, for environments that decide it."""
    device: Device = "cpu"


def run_profile(settings: ProfileSettings, out: Path) -> None:
    """Measures, writes `out` (JSON) and says what the full network takes.

    Raises:
        ValueError: If the name is unknown, a number is below 1, or the first group cannot be decided.
        FileNotFoundError: If the folder holds no supernet.
    """
    folder = settings.checkpoint
    config = supernet_config(settings.supernet) if folder is None else load_config(folder)
    if settings.decide_first_group:
        config = with_space(config, decide_first_group=True)
    with tqdm(desc="profile", unit="point") as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        table = measure_latency_table(
            config, settings.device, settings.batch_size, settings.token_counts, settings.repeats, progress
        )
    table.save(out)
    print(
        f"Full network: {table.full_ms(config.space):.3f} ms an image in batches of {settings.batch_size} on "
        f"{table.device}.\n"
        f'Written to {out}; use it with reward={{"cost": "latency", "latency_table": "{out}"}}'
    )
