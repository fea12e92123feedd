"""The stages of the case study, each in a folder of its own, each left alone when it is done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from prance_env.images.loading import load_dataset
from prance_env.settings import EnvSettings
from supernet import SearchSpace, Supernet, from_timm, save_pretrained
from supernet.staging import finish_commit, staged

from ..joint import REPORT as JOINT
from ..joint import JointSettings, run_joint
from ..networks.importance import Score
from ..networks.loop import train_supernet
from ..networks.ordering import REPORT as IMPORTANCE
from ..networks.ordering import OrderSettings, run_order
from ..networks.presets import recipe_of
from ..networks.subnet_choice import open_supernet
from ..policies.settings import AgentTraining
from ..report.tables import write_json
from ..runs.folder import CONFIG, check_settings
from ..runs.progress import read_progress
from ..yardsticks.compute import YardstickSettings
from ..yardsticks.leaderboard import ADAPTIVE, BenchmarkSettings, run_benchmark, run_folder
from .fashion import write_images
from .head import fit_head
from .pretrained import dinov2_small, encoder_file
from .settings import CaseSettings

ENV = "Prance-Small-v0"
SPACE = SearchSpace((3, 3, 3, 3), (256, 320, 384), (2, 3, 4), (4, 5, 6), min_keep_rate=0.5)
"""What subnets of DINOv2 may be: not smaller than what a short training can teach."""
HEAD = "head.json"


@dataclass(frozen=True)
class Stages:
    """The stages after the images, for one seed.

    Attributes:
        settings: Of the study.
        out: Its folder.
        seed: Of this run.
        console: Where it says what it does.
    """

    settings: CaseSettings
    out: Path
    seed: int
    console: Console

    @property
    def place(self) -> Path:
        """Folder of this seed."""
        return self.out / f"seed-{self.seed}"

    @property
    def agent(self) -> Path:
        """Run folder of the policy."""
        return run_folder(self.place / "benchmark", ADAPTIVE, self.seed)

    def run(self) -> None:
        """Everything but the last judging."""
        sizes = self.settings.sizes
        self._trained("plain", "finetune", self.out / "head", sizes.plain_steps)
        self._ordered("random", "ordered-randomly")
        self._ordered("taylor", "ordered")
        self._trained("supernet", "pretrained-light", self.place / "ordered", sizes.supernet_steps)
        self._trained("plain-longer", "finetune", self.place / "plain", sizes.supernet_steps)
        self._benchmark()
        self._joint()

    def environment(self, split: str, checkpoint: Path, **changes: Any) -> EnvSettings:
        """A network of this run on a split of the images."""
        return EnvSettings.from_id(
            ENV, split=split, checkpoint=str(checkpoint.absolute()), dataset=self._dataset, **self._machine, **changes
        )

    @property
    def _dataset(self) -> dict[str, Any]:
        return self.settings.dataset(self.out)

    @property
    def _machine(self) -> dict[str, Any]:
        return {"device": self.settings.device}

    def _trained(self, name: str, preset: str, source: Path, steps: int) -> None:
        """A network that is trained with a preset, from another folder."""
        folder, sizes = self.place / name, self.settings.sizes
        changes: dict[str, Any] = {
            "source": str(source),
            "dataset": self._dataset,
            "steps": steps,
            "batch_size": sizes.batch_size,
            "checkpoint_every": max(1, steps // 5),
            "val_images": sizes.images["val"],
            "amp": self.settings.amp,
            "seed": self.seed,
        }
        recipe = recipe_of(preset, changes)
        done = read_progress(folder)
        if done and done["step"] == done["total"]:
            check_settings(folder, recipe.prepared(), "Choose another --out", may_change=recipe.may_change)
            return self._say(name, True)
        self._say(name)
        train_supernet(recipe, folder, self.settings.device, resume=(folder / CONFIG).exists())

    def _ordered(self, score: Score, name: str) -> None:
        """The plain network with its units in order."""
        folder, sizes = self.place / name, self.settings.sizes
        finish_commit(folder)
        if (folder / IMPORTANCE).is_file():
            return self._say(name, True)
        self._say(name)
        settings = OrderSettings(
            self._dataset,
            str(self.place / "plain"),
            score,
            sizes.order_images,
            check_images=sizes.images["val"],
            seed=self.seed,
        )
        run_order(settings, folder)

    def _benchmark(self) -> None:
        """Stage 2 and the yardsticks."""
        folder, sizes = self.place / "benchmark", self.settings.sizes
        finish_commit(folder)
        if (folder / "benchmark.json").is_file():
            return self._say("benchmark", True)
        self._say("benchmark")
        environment: Any = {
            "checkpoint": str((self.place / "supernet").absolute()),
            "dataset": self.settings.dataset(self.out, fresh=True),
            **self._machine,
        }
        searched, of_oracle = sizes.searched
        agent = AgentTraining(
            env=ENV,
            algo="prance_ppo",
            macs_weight=sizes.price,
            total_timesteps=sizes.timesteps,
            n_envs=sizes.n_envs,
            environment=environment,
        )
        yardsticks = YardstickSettings(
            env=ENV,
            num_subnets=searched,
            oracle_subnets=of_oracle,
            copies=1,
            sweeps=sizes.sweeps,
            # Pruning takes a quarter of an hour of passes with gradients.
            designs=self.settings.effort != "tiny",
            seed=self.seed,
            environment=environment,
        )
        run_benchmark(BenchmarkSettings({ADAPTIVE: agent}, yardsticks, (self.seed,), price=sizes.price), folder)

    def _joint(self) -> None:
        """Stage 3, judged on test images."""
        folder, sizes = self.place / "joint", self.settings.sizes
        finish_commit(folder)
        if (folder / JOINT).is_file():
            return self._say("joint", True)
        self._say("joint")
        changes: Mapping[str, Any] = {
            "dataset": self._dataset,
            "steps": sizes.joint_steps,
            "batch_size": sizes.batch_size,
            "checkpoint_every": sizes.joint_steps,
            "val_images": sizes.images["val"],
            "amp": self.settings.amp,
            "seed": self.seed,
        }
        joint = JointSettings(str(self.agent), split="test", changes=changes)
        run_joint(joint, folder, (folder / CONFIG).exists(), device=self.settings.device)

    def _say(self, name: str, done: bool = False) -> None:
        self.console.print(f"seed {self.seed}: {name} {'is done' if done else '...'}", highlight=False)


def prepare(settings: CaseSettings, out: Path, console: Console) -> None:
    """The images, and the network with its linear head, which all seeds begin with.

    Raises:
        FileNotFoundError: If there are no images or no weights.
        ModuleNotFoundError: If a package is missing.
        ValueError: If something does not fit.
    """
    if settings.images is None:
        console.print("images ...")
        sizes, download = settings.sizes, out / "download" if settings.download else None
        write_images(out / "images", sizes.images, sizes.fresh, download=download)
    folder = out / "head"
    finish_commit(folder)
    if (folder / HEAD).is_file():
        return console.print("linear head is done")
    net, dataset = _pretrained(settings), settings.dataset(out)
    classes, *_ = (int(load_dataset(dataset, split, net.config).labels.max()) + 1 for split in ("train", "val", "test"))
    accuracy = fit_head(net, classes, dataset)
    with staged(folder) as stage:
        save_pretrained(net, stage)
        write_json(stage / HEAD, {"training_accuracy": accuracy})


def _pretrained(settings: CaseSettings) -> Supernet:
    if settings.source is not None:
        net = open_supernet(settings.source)
        net.reset_classifier(0)
        return net
    return from_timm(dinov2_small(settings.weights or encoder_file(), settings.pixels), SPACE)
