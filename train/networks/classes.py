"""Whether labels and the logits of a network speak of the same classes, and in which order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from agents.deployed.runs import is_noted
from prance_env.images.source import ImageSource

SHOWN = 8
ORDER = "class_of_label"
"""Name of the buffer in which a model whose logits were put in the order of the labels has this order."""


@dataclass(frozen=True)
class Meaning:
    """What labels stand for, as far as anybody knows.

    Attributes:
        own: What the network that learns, or that is judged, calls its classes; empty: nothing.
        called: What the images' classes are called, by label.
        mapped: Whether somebody's class map says which label a class has, so that networks may have other words for it.
    """

    own: tuple[str, ...]
    called: Mapping[int, str]
    mapped: bool

    @classmethod
    def of(cls, source: ImageSource, class_map: str | None, own: Sequence[str]) -> Meaning:
        """That of a source's labels, which `class_map` of its `DatasetConfig` has given."""
        mapped = class_map is not None and not is_noted(class_map)
        return cls(tuple(own), getattr(source, "class_names", {}), mapped)

    @property
    def is_own(self) -> bool:
        """Whether the network's own names, if it has any, are what the labels stand for."""
        return self._fits(self.own, self.called)

    def _fits(self, names: tuple[str, ...], meant: Mapping[int, str]) -> bool:
        """Whether a network's class k is what label k means: by name or, if a class map says so, by another word."""
        # A word that is another of its classes is no other word for this one.
        return all(names[k : k + 1] == (name,) or (self.mapped and name not in names) for k, name in meant.items())

    def order(self, names: Sequence[str], who: str) -> list[int] | None:
        """Which class of another network is that of each label.

        Args:
            names: Of its classes, as many as there are labels; empty: it does not say.
            who: What it is, for messages.

        Returns:
            For each label the number of its class; None if they are in the same order, or if nobody can tell.

        Raises:
            ValueError: If its classes are others.
        """
        theirs = tuple(names)
        known = [dict(enumerate(self.own))] if self.own and self.is_own else []
        known = [k for k in (*known, {k: v for k, v in self.called.items() if k < len(theirs)}) if k]
        if not theirs or not known:
            return None
        for meant in known:
            if Counter(meant.values()) <= Counter(theirs):
                return _order(theirs, meant)
        if all(self._fits(theirs, meant) for meant in known):
            return None
        raise ValueError(
            f"{who} knows the classes {[*theirs[:SHOWN]]}, but the labels stand for {[*known[0].values()][:SHOWN]}. "
            "Take one of the same classes. If these are other words for them, pass dataset={'name': ..., 'class_map': "
            "FILE} with the names of the images' classes in its order."
        )

    def matched(self, model: nn.Module, names: Sequence[str], who: str) -> nn.Module:
        """The model, whose logits are from now on in the order of the labels; arguments and errors as of `order`."""
        if (order := self.order(names, who)) is not None:
            model.register_buffer(ORDER, torch.tensor(order, device="cpu"), persistent=False)
            model.register_forward_hook(_in_order)
        return model


def is_reordered(model: nn.Module) -> bool:
    """Whether `Meaning.matched` has changed the order of a model's logits."""
    return hasattr(model, ORDER)


def _in_order(model: nn.Module, args: Any, logits: Tensor) -> Tensor:
    return logits.index_select(1, model.get_buffer(ORDER).to(logits.device))


def _order(theirs: tuple[str, ...], meant: Mapping[int, str]) -> list[int] | None:
    """For each label the class of its name; the classes that are left are those of labels without one."""
    left, found = [*range(len(theirs))], dict[int, int]()
    for label, name in meant.items():
        found[label] = next(k for k in left if theirs[k] == name)
        left.remove(found[label])
    order = [found[label] if label in found else left.pop(0) for label in range(len(theirs))]
    return None if all(theirs[k] == name for k, name in meant.items()) else order
