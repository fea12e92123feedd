"""`prance import`: supernets out of weights from elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm

from supernet import Supernet, UnitOrder, from_timm, load_prance_checkpoint, reorder, save_pretrained
from supernet.staging import staged

from ..runs.folder import check_kind
from .importance import Score
from .ordering import ORDER, OrderSettings, order_network, save_order
from .sources import timm_problem


@dataclass(frozen=True)
class TimmSource:
    """Which model of timm, with which weights; as the arguments of `from_timm`.

    Attributes:
        model: Its name.
        pretrained: Whether to download its weights.
        weights: A file with its weights.
        num_classes: Its classes; None: as in the weights.
        img_size: Its image size; None: as in the weights.
        in_chans: Channels of its images; None: as in the weights.
    """

    model: str
    pretrained: bool = False
    weights: Path | None = None
    num_classes: int | None = None
    img_size: int | None = None
    in_chans: int | None = None

    @property
    def title(self) -> str:
        """What it is, in words."""
        return f"timm's {self.model}" + ("" if self.weights is None else f" with the weights in {self.weights}")

    def make(self) -> Supernet:
        """The supernet.

        Raises:
            ValueError: If the model is unknown, of an unsupported kind, or its weights cannot be had.
            FileNotFoundError: If there is no such file.
        """
        settings = {k: v for k, v in vars(self).items() if k != "model"}
        try:
            return from_timm(self.model, **settings)
        except (RuntimeError, OSError) as e:
            if isinstance(e, FileNotFoundError) and self.weights is not None:
                raise
            raise ValueError(timm_problem(self.model, e)) from e

    def caution(self, net: Supernet) -> str:
        """What of the weights is random, and what to do about it; empty if nothing is."""
        if not self.pretrained and self.weights is None:
            return (
                "ALL ITS WEIGHTS ARE RANDOM: pass --pretrained to download timm's, or --weights FILE with yours, or "
                "train it."
            )
        classes = net.config.num_classes
        if self.weights is None and self.num_classes and classes != timm_classes(self.model):
            return f"Its classifier of {classes} classes is random: train it."
        return ""


def timm_classes(model: str) -> int | None:
    """Classes of timm's weights of that name; None if that is not known."""
    config = timm.get_pretrained_cfg(model)
    return None if config is None else config.num_classes


def import_timm(
    source: TimmSource,
    out: Path,
    order: Score | None = None,
    dataset: str | dict[str, Any] | None = None,
) -> Supernet:
    """Makes a model of timm elastic and writes it to `out`.

    Args:
        source: Which model, with which weights.
        out: Folder, created if missing.
        order: Score by which to sort its units; None leaves them as they are.
        dataset: Images to score them on.

    Raises:
        FileExistsError: If `out` holds a network, or a run.
        ValueError: If the model is unknown, of an unsupported kind, or its weights cannot be had; or an order is asked
            for without images.
    """
    check_kind(out)
    if order is not None and dataset is None:
        raise ValueError(f"--order {order} needs images to score the units on; pass --dataset.")
    net = source.make()
    if order is not None and dataset is not None:
        units, _ = order_network(net, OrderSettings(dataset, score=order))
        return save_import(reorder(net, units), out, source.title, units, source.caution(net))
    return save_import(net, out, source.title, caution=source.caution(net))


def import_prance(checkpoint: Path, out: Path, token_mode: str = "prune") -> Supernet:
    """Reads a meta-network of PRANCE's authors and writes it to `out`.

    Args:
        checkpoint: Their file; nothing but weights is read.
        out: Folder, created if missing.
        token_mode: How patches leave.

    Raises:
        FileExistsError: If `out` holds a network, or a run.
        FileNotFoundError: If there is no checkpoint.
        ValueError: If it is not a meta-network of a known space.
    """
    check_kind(out)
    return save_import(load_prance_checkpoint(checkpoint, token_mode=token_mode), out, str(checkpoint))


def save_import(net: Supernet, out: Path, source: str, order: UnitOrder | None = None, caution: str = "") -> Supernet:
    """Writes a supernet, says what it is, and returns it.

    Args:
        net: The supernet.
        out: Folder, created if missing.
        source: What it was before.
        order: Of its units, which is written beside it; None: their own.
        caution: What else to say of it.

    Raises:
        FileExistsError: If `out` holds a network, or a run, by now.
    """
    with staged(out) as folder:
        check_kind(out)
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
    if caution:
        print(caution)
    return net
