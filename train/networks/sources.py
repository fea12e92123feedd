"""Networks by what a command line says: a folder, a registered name, or a name of timm."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from supernet import SearchSpace, Supernet, create_supernet, from_timm, list_supernets, load_weights
from supernet.config import with_space

from .subnet_choice import is_untrained, open_supernet

TIMM = "timm:"


@dataclass(frozen=True)
class NetworkSource:
    """Which network training begins with.

    Attributes:
        name: Folder of a supernet or of a run, a registered name, or "timm:NAME".
        init: None: the weights that come with it (a folder's own; timm's, which are downloaded; random ones for a
            registered name without any). "random": random weights. Else a folder or a safetensors file of weights.
        num_classes: Classes of the data set; a network of another number gets a new classifier. None: its own.
        img_size: Of a network of timm, whose positions are resampled; None: its own.
        in_chans: Of a network of timm; None: its own.
        space: Fields of `SearchSpace` to set; widths are of networks of timm only.
        lln: Whether linear maps over group boundaries are added to a network of timm.
    """

    name: str
    init: str | None = None
    num_classes: int | None = None
    img_size: int | None = None
    in_chans: int | None = None
    space: tuple[tuple[str, Any], ...] = ()
    lln: bool = False

    def open(self) -> Supernet:
        """The network, in evaluation mode on the CPU.

        Raises:
            FileNotFoundError: If there is no such folder or file.
            ValueError: If the name is unknown, weights do not fit or cannot be had, or the space does not fit.
        """
        net = self._of_timm() if self.name.startswith(TIMM) else self._of_ours()
        if self.init not in (None, "random"):
            path = Path(str(self.init))
            load_weights(net, path / "model.safetensors" if path.is_dir() else path)
        if self.num_classes is not None and self.num_classes != net.config.num_classes:
            net.reset_classifier(self.num_classes)
        return net.eval()

    def has_random_classifier(self) -> bool:
        """Whether the classifier is drawn at random: it says nothing before it is trained.

        Raises:
            FileNotFoundError: If there is no such folder.
            ValueError: If the name is unknown.
        """
        if self.init == "random" or (self.init is None and is_untrained(self.name)):
            return True
        if self.name.startswith(TIMM):
            if self.init is not None:
                return False  # its weights have the classes that are wanted, or do not fit
            from timm.models import get_pretrained_cfg_value

            own = get_pretrained_cfg_value(self.name.removeprefix(TIMM), "num_classes")
        else:
            own = open_supernet(self.name).config.num_classes
        return self.num_classes is not None and self.num_classes != own

    def _of_ours(self) -> Supernet:
        named = self.name in list_supernets()
        if self.img_size or self.in_chans or self.lln or any(k != "token_mode" for k, _ in self.space):
            raise ValueError(
                f"{self.name!r} has sizes of its own: img_size, in_chans, lln, and a space other than its token_mode "
                "are chosen for networks of timm (timm:NAME) only."
            )
        net = create_supernet(self.name) if named and self.init is not None else open_supernet(self.name)
        if not self.space and (named or self.init != "random"):
            return net
        config = with_space(net.config, **dict(self.space))
        other = Supernet(config)
        if self.init != "random":
            # Parameters of another token mode stay as they were drawn, for training.
            same = config.space.token_mode == net.space.token_mode
            kept = {name: t for name, t in net.state_dict().items() if same or ".reduce." not in name}
            other.load_state_dict(kept, strict=same)
        return other

    def _of_timm(self) -> Supernet:
        model = timm_model(
            self.name.removeprefix(TIMM), self.init is None, self.num_classes, self.img_size, self.in_chans
        )
        net = from_timm(model, lln=self.lln)
        if not self.space:
            return net
        return from_timm(model, SearchSpace(**{**vars(net.space), **dict(self.space)}), lln=self.lln)


def timm_problem(name: str, error: Exception) -> str:
    """Why timm cannot make a model, in words, with names like it if there is none of that name."""
    import timm

    near = [] if timm.is_model(name.split(".")[0]) else difflib.get_close_matches(name, timm.list_models(), n=3)
    hint = f"; names like it are {', '.join(near)}" if near and "Unknown model" in str(error) else ""
    return f"timm cannot make {name!r}: {' '.join(str(error).split())}{hint}"


def timm_model(
    name: str,
    pretrained: bool,
    num_classes: int | None = None,
    img_size: int | None = None,
    in_chans: int | None = None,
) -> nn.Module:
    """A model of timm, in evaluation mode.

    Raises:
        ValueError: If timm does not know it, or its weights cannot be had.
    """
    import timm

    sizes: dict[str, Any] = {"num_classes": num_classes, "img_size": img_size, "in_chans": in_chans}
    given = {k: v for k, v in sizes.items() if v is not None}
    try:
        model: nn.Module = timm.create_model(name, pretrained=pretrained, **given)
    except (RuntimeError, OSError, TypeError) as e:
        raise ValueError(timm_problem(name, e)) from e
    return model.eval()
