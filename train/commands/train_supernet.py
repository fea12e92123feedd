"""`prance train supernet`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from typing_extensions import Self
from tyro.conf import arg

from ..networks.options import TrainingOptions
from ..networks.presets import PRESETS, recipe_of
from ..networks.recipes.digits import DigitsRecipe
from ..networks.recipes.images import ImagesRecipe
from ..options import choice, override_options

Preset = Annotated[str, choice(lambda: PRESETS)]
Changes = Annotated[
    dict[str, Any], arg(constructor_factory=lambda: override_options(ImagesRecipe, ("source",)), name="")
]


@dataclass(frozen=True, kw_only=True)
class TrainSupernet(TrainingOptions):
    """Stage 1: train a supernet, Digits' or your own.

    For example:

        prance train supernet --preset digits --out runs/supernet
        prance train supernet --preset digits-quick --out runs/quick
        prance train supernet --preset pretrained-light --from runs/deit --dataset pictures --out runs/supernet
        prance train supernet --preset finetune --from timm:deit_small_patch16_224 --dataset pictures \\
            --num-classes 2 --out runs/tuned
        prance train supernet --out runs/quick --resume
    """

    preset: Preset = "digits"
    """digits, digits-quick: the bundled supernet's recipe, in half an hour or minutes; finetune: the full network
    alone; pretrained-light: a network that comes with weights; scratch: one that does not; prance-...-imagenet: the
    paper's spaces (docs/scale.md)."""
    source: Annotated[str | None, arg(name="from", metavar="RUN|NAME|timm:NAME")] = None
    """Network to begin with: a folder (of a run, or written by save_pretrained), timm:NAME, or a registered name."""
    changes: Changes = field(default_factory=dict)

    @classmethod
    def resumed(cls, out: Path) -> Self | None:
        """The options of the run in a folder; None if there is none."""
        noted = cls.noted(out, DigitsRecipe, ImagesRecipe)
        if noted is None:
            return None
        source = noted.pop("source", None)
        preset = "digits" if source is None else "scratch"
        return cls(out=out, preset=preset, source=source, changes=noted, resume=True)

    def run(self) -> None:
        """Runs the command."""
        changes = dict(self.changes) | ({} if self.source is None else {"source": self.source})
        said = f"Supernet written to {self.out}; use it with --checkpoint {self.out}"
        self.train(recipe_of(self.preset, changes), said)
