"""`prance import`: supernets out of weights from elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from supernet import Supernet, UnitOrder, from_timm, load_prance_checkpoint, reorder, save_pretrained
from supernet.staging import staged

from ..runs.folder import check_free
from .importance import Score
from .ordering import ORDER, OrderSettings, order_network, save_order


def import_timm(
    model: str,
    out: Path,
    pretrained: bool = False,
    order: Score | None = None,
    dataset: str | dict[str, Any] | None = None,
) -> Supernet:
    """Makes a model of timm elastic and writes it to `out`.

    Args:
        model: Its name.
        out: Folder, created if missing.
        pretrained: Whether to download its weights.
        order: Score by which to sort its units; None leaves them as they are.
        dataset: Images to score them on.

    Raises:
        FileExistsError: If `out` holds a supernet.
        ValueError: If the model is unknown, of an unsupported kind, or its weights cannot be had; or an order is asked
            for without images.
    """
    check_network_free(out)
    if order is not None and dataset is None:
        raise ValueError(f"--order {order} needs images to score the units on; pass --dataset.")
    try:
        net = from_timm(model, pretrained=pretrained)
    except (RuntimeError, OSError) as e:
        raise ValueError(f"timm cannot make {model!r}: {' '.join(str(e).split())}") from e
    if order is not None and dataset is not None:
        units, _ = order_network(net, OrderSettings(dataset, score=order))
        return save_import(reorder(net, units), out, f"timm's {model}", units)
    return save_import(net, out, f"timm's {model}")


def import_prance(checkpoint: Path, out: Path, token_mode: str = "prune") -> Supernet:
    """Reads a meta-network of PRANCE's authors and writes it to `out`.

    Args:
        checkpoint: Their file; nothing but weights is read.
        out: Folder, created if missing.
        token_mode: How patches leave.

    Raises:
        FileExistsError: If `out` holds a supernet.
        FileNotFoundError: If there is no checkpoint.
        ValueError: If it is not a meta-network of a known space.
    """
    check_network_free(out)
    return save_import(load_prance_checkpoint(checkpoint, token_mode=token_mode), out, str(checkpoint))


def check_network_free(out: Path) -> None:
    """Raises FileExistsError if a folder holds a network."""
    check_free(out, [out / "config.json", out / "model.safetensors"], "network")


def save_import(net: Supernet, out: Path, source: str, order: UnitOrder | None = None) -> Supernet:
    """Writes a supernet, says what it is, and returns it.

    Args:
        net: The supernet.
        out: Folder, created if missing.
        source: What it was before.
        order: Of its units, which is written beside it; None: their own.

    Raises:
        FileExistsError: If `out` holds a supernet by now.
    """
    with staged(out) as folder:
        check_network_free(out)
        save_pretrained(net, folder)
        if order is not None:
            save_order(order, folder / ORDER)
    config, space = net.config, net.space
    print(
        f"{source} is now a supernet in {out}: {space.depth} blocks in groups of "
        f"{'+'.join(map(str, space.groups))}, embed_dim {' '.join(map(str, space.embed_dims))}, mlp_ratio "
        f"{' '.join(f'{r:g}' for r in space.mlp_ratios)}, heads {' '.join(map(str, space.num_heads))}, token mode "
        f"{space.token_mode}; images {config.in_chans}x{config.img_size}x{config.img_size}, {config.num_classes} "
        f"classes; {net.macs().item() / 1e6:,.1f} MMACs, {net.params().item() / 1e6:,.1f} M parameters at full size."
    )
    return net
