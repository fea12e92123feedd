"""`prance train static`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from typing_extensions import Self
from tyro.conf import arg

from ..networks.options import TrainingOptions
from ..networks.recipes.static import StaticRecipe
from ..options import override_options

Changes = Annotated[
    dict[str, Any],
    arg(constructor_factory=lambda: override_options(StaticRecipe, ("source",), {}), name=""),
]


@dataclass(frozen=True, kw_only=True)
class TrainStatic(TrainingOptions):
    """Fine-tune a static network, such as a pruned one, with the trainer of stage 1.

    For example:

        prance prune --supernet runs/supernet --dataset pictures --target 0.5 --out runs/pruned
        prance train static --from runs/pruned/0.5 --dataset pictures --teacher runs/supernet --teacher-weight 1 \\
            --out runs/small
        prance export --static runs/small --out exported
    """

    source: Annotated[str, arg(name="from", metavar="FOLDER")] = ""
    """Folder of the network: of prance prune, prance train static, or prance export --format safetensors."""
    changes: Changes = field(default_factory=dict)

    @classmethod
    def resumed(cls, out: Path) -> Self | None:
        """The options of the run in a folder; None if there is none."""
        noted = cls.noted(out, StaticRecipe)
        return None if noted is None else cls(out=out, source=noted.pop("source", ""), changes=noted, resume=True)

    def run(self) -> None:
        """Runs the command.

        Raises:
            ValueError: If no network is named.
        """
        if not self.source:
            raise ValueError("--from is missing: pass the folder of a static network, such as prance prune writes.")
        said = f"Network written to {self.out}; load it with supernet.load_static, or prance export --static."
        self.train(StaticRecipe(source=self.source, **self.changes), said)
