"""`prance profile`: measures a supernet on a device and writes the lookup table."""

from __future__ import annotations

from pathlib import Path

from tqdm import tqdm

from prance_env.rewards.latency import measure_latency
from supernet import supernet_config
from supernet.checkpoint import load_config
from supernet.config import with_space


def run_profile(
    out: Path,
    supernet: str,
    checkpoint: Path | None,
    device: str,
    batch_size: int,
    token_counts: int,
    repeats: int,
    decide_first_group: bool = False,
) -> None:
    """Measures, writes `out` and says what the full network takes.

    Args:
        out: JSON file.
        supernet: Registered name.
        checkpoint: Folder of another supernet, instead.
        device: Torch device.
        batch_size: Images per batch.
        token_counts: Points of the grid of token counts.
        repeats: Runs per point.
        decide_first_group: Whether the first group is measured at every size, too, for environments that decide it.

    Raises:
        ValueError: If the name is unknown, a number is below 1, or the first group cannot be decided.
        FileNotFoundError: If the folder holds no supernet.
    """
    config = supernet_config(supernet) if checkpoint is None else load_config(checkpoint)
    if decide_first_group:
        config = with_space(config, decide_first_group=True)
    with tqdm(desc="profile", unit="point") as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        table = measure_latency(config, device, batch_size, token_counts, repeats, progress)
    out.parent.mkdir(parents=True, exist_ok=True)
    table.save(out)
    print(
        f"Full network: {table.full_ms(config.space):.3f} ms an image in batches of {batch_size} on {table.device}.\n"
        f'Written to {out}; use it with reward={{"cost": "latency", "latency_table": "{out}"}}'
    )
