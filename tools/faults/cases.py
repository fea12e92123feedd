"""The long commands in their shortest forms, on few and small images."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import yaml
from PIL import Image

from agents.prance_ppo import algorithm
from agents.prance_ppo.config import PrancePPOConfig
from agents.sb3.hyperparams import read_preset
from prance_env.images import loading
from prance_env.settings import EnvSettings
from prance_env.supernets import BUNDLED
from supernet import (
    SearchSpace,
    SubnetConfig,
    Supernet,
    SupernetConfig,
    design,
    extract,
    from_pretrained,
    save_pretrained,
    save_static,
)
from supernet.convert.texts import TextEmbeddings
from supernet.nearest import nearest_subnet
from train import demo
from train.commands.main import COMMANDS, Group
from train.networks import importing
from train.networks.logit_store import DESCRIPTION
from train.networks.presets import PRESETS
from train.networks.recipes.digits import DigitsRecipe
from train.policies import train_prance_ppo
from train.policies.settings import AgentTraining
from train.policies.train_agent import train_agent
from train.runs.folder import CONFIG
from train.search import confidence
from train.yardsticks import compute, leaderboard, static_designs
from train.yardsticks.leaderboard import BenchmarkSettings

from .forked import run

STUDIED = SearchSpace((1, 1, 1), (16, 24, 32), (1, 2), (1, 2, 2), 0.2)
SCENES = {"train": 64, "val": 32, "test": 32}
FEW_SUBNETS = ("--num-subnets", "8", "--oracle-subnets", "4", "--copies", "1", "--sweeps", "1")
SHORT = {
    "ppo": {"n_envs": 4, "n_timesteps": 36, "n_steps": 3, "batch_size": 12, "n_epochs": 1},
    "sac": {
        "n_envs": 4,
        "n_timesteps": 24,
        "learning_starts": 8,
        "buffer_size": 32,
        "batch_size": 8,
        "gradient_steps": 1,
    },
}


@dataclass(frozen=True)
class Case:
    """One command.

    Attributes:
        words: What is typed, but for --out.
        resume: What is typed to go on; None: the same again.
        every: Walk so many events of its parts at a time, unless all are to be walked: for what takes long and is made
            of what is walked itself.
        begun: File that tells that there is something to resume.
        done: How a second start says that nothing is left to do; None: it never does.
        repeatable: Whether it writes the same again, but for clocks.
        writes: Whether it has --out.
        lasts: Seconds after which somebody ends it; None: it ends by itself.
    """

    words: tuple[str, ...]
    resume: tuple[str, ...] | None = None
    every: int = 1
    begun: str = CONFIG
    done: str | None = None
    repeatable: bool = True
    writes: bool = True
    lasts: float | None = None


def cases(files: Path) -> dict[str, Case]:
    """All of them by name; `files` is a folder for what they read."""
    for algo, short in SHORT.items():
        entry = {"policy": "MlpPolicy", **read_preset(algo).hyperparams, **short}
        (files / f"{algo}.yml").write_text(yaml.safe_dump({"default": entry}))
    agent, often = ("train", "agent", "--resume", "--save-freq", "0"), ("--save-freq", "0")
    weights = str(BUNDLED["digits"])
    distill = ("distill", "--teacher", weights, "--student", "digits", "--dataset", "digits", "--batch-size", "24")
    joint = ("train", "joint", "--agent", str(_policy(files / "policy")), *often, "--rounds", "2", "--steps", "2")
    joint += ("--agent-timesteps", "96", "--batch-size", "8", "--checkpoint-every", "1", "--val-images", "16")
    whole = from_pretrained(weights)
    save_static(extract(whole, SubnetConfig.full(whole.space)), files / "network")
    static = ("train", "static", "--from", str(files / "network"), "--dataset", "digits", *often, "--steps", "4")
    static += ("--batch-size", "8", "--checkpoint-every", "2", "--val-images", "16")
    train = ("train", "agent", *often, "--algo")
    return {
        "ppo": Case((*train, "ppo", "--conf-file", str(files / "ppo.yml")), agent),
        "sac": Case((*train, "sac", "--conf-file", str(files / "sac.yml")), agent),
        "prance_ppo": Case((*train, "prance_ppo", "--total-timesteps", "288"), agent),
        "supernet": Case(
            ("train", "supernet", "--preset", "digits-quick", *often),
            ("train", "supernet", "--preset", "digits-quick", "--resume", *often),
        ),
        "static": Case(static, ("train", "static", "--resume", *often)),
        "tune": Case(
            (
                "tune",
                "--algo",
                "a2c",
                "--trials",
                "2",
                "--total-timesteps",
                "24",
                "--n-envs",
                "8",
                "--evaluations",
                "1",
            ),
            ("tune", "--resume"),
        ),
        "yardsticks": Case(("yardsticks", *FEW_SUBNETS)),
        "benchmark": Case(
            ("benchmark", "--seeds", "0", "--total-timesteps", "48", "--no-designs", *FEW_SUBNETS), every=24
        ),
        "eval": Case(("eval", "--agent", "full", "random", "--split", "val", "--controls")),
        "export": Case(("export", "--format", "safetensors")),
        "distill": Case(distill, ("distill", "--resume", *distill[1:]), begun=DESCRIPTION),
        "joint": Case(joint, ("train", "joint", "--resume", *often)),
        "import": Case(("import", "timm", "test_vit"), done="holds a network already"),
    }


def short_cases(files: Path) -> dict[str, Case]:
    """Commands that are begun anew after Ctrl-C; `files` is the folder that `cases` has filled."""
    pictures = [files / f"{i}.png" for i in range(12)]
    study = files / "study"
    classes = [study / split / name for split in ("train", "val", "test") for name in ("cat", "dog")]
    for i, path in enumerate([*pictures, *(folder / f"{i}.png" for folder in classes for i in range(16))]):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(i).integers(256, size=(40, 40), dtype=np.uint8)).save(path)
    run(("eval", "--agent", "full"), files / "rows")
    save_pretrained(_bare(), files / "bare")
    TextEmbeddings(("cat", "dog"), torch.eye(2, 512), 100.0).save(files / "texts.safetensors")
    sizes = ("--batch-size", "4", "--token-counts", "2", "--repeats", "1", "--supernet", "digits")
    images = ("--images", "16", "--batch-size", "8", "--check-images", "8")
    agent = str(files / "policy")
    model = ("--model", agent, "--batch-size", "2")
    return {
        "headroom": Case(("headroom", "--num-subnets", "8")),
        "order": Case(("order", "--supernet", "digits", "--dataset", "digits", *images)),
        "prune": Case(("prune", "--target", "0.5", "--images", "16")),
        "profile": Case(("profile", *sizes), repeatable=False),
        "predict": Case(("predict", *map(str, pictures), *model)),
        "designs": Case(("designs", "--seeds", "0", "--num-subnets", "4", "--images", "16"), repeatable=False),
        "view": Case(("view", agent, "--images", "8")),
        "video": Case(("video", "--agent", agent, "--images", "0", "1"), repeatable=False),
        "plot": Case(("plot", agent)),
        "demo": Case(("demo", "--quick"), repeatable=False),
        "casestudy": Case(
            ("casestudy", "fashion", "--effort", "tiny", "--from", str(files / "bare"), "--images", str(study))
        ),
        "import-clip": Case(
            ("import", "clip", "vit_xsmall_patch16_clip_224", "--texts", str(files / "texts.safetensors")),
            done="holds a network already",
        ),
        "import-prance": Case(("import", "prance", "their.pth"), done="holds a network already"),
        "list": Case(("list",), writes=False),
        "validate": Case(("validate", str(files / "rows" / "full.csv")), writes=False),
        "serve": Case(("serve", "--port", "0", "--model", agent), writes=False, lasts=4),
        "bench": Case(
            ("bench", "--model", "test_vit", "--batch-size", "2", "--macs-fraction", "0.7"), repeatable=False
        ),
        "bench-env": Case(("bench-env", "--supernet", "digits", "--num-images", "16"), repeatable=False),
        "bench-training": Case(
            ("bench-training", "--seeds", "0", "--total-timesteps", "24", "--n-envs", "8", "--algos", "a2c", "trpo"),
            repeatable=False,
        ),
        "bench-supernet": Case(("bench-supernet", "--source", "timm:test_vit", "--batch-size", "2"), repeatable=False),
        "bench-menu": Case(("bench-menu", "--agent", agent, "--images", "16"), repeatable=False),
    }


def _bare(**changes: Any) -> Supernet:
    """A small network with random weights."""
    torch.manual_seed(0)
    return Supernet(SupernetConfig(STUDIED, 32, 8, 3, num_classes=3, head_dim=8, lln=False, **changes))


def _two_agents(*args: Any, digits: Any = BenchmarkSettings.digits, **named: Any) -> BenchmarkSettings:
    """The leaderboard of one agent of each library, with few samples of the bootstrap."""
    settings = digits(*args, **named)
    return replace(settings, entries={k: settings.entries[k] for k in ("SB3 PPO", leaderboard.STATIC)}, resamples=20)


def _policy(run: Path) -> Path:
    """Run folder of an agent for stage 3."""
    settings = AgentTraining(algo="prance_ppo", total_timesteps=96, environment={"dataset": "digits"})
    train_agent(settings, run, progress_bar=False)
    return run


def import_everything() -> None:
    """Whatever commands import, so that forked processes need not."""
    for command in COMMANDS.values():
        for part in command.commands.values() if isinstance(command, Group) else [command]:
            part.load()
    for name in ("optuna", "sqlalchemy.dialects.sqlite", "torch.utils.tensorboard", "tqdm.rich"):
        import_module(name)


@contextmanager
def small_world() -> Iterator[None]:
    """Few scenes, a short recipe, and the engines made beforehand, so that forked processes have them."""
    quick = replace(DigitsRecipe(), steps=4, batch_size=8, checkpoint_every=2, val_scenes=32)
    with (
        mock.patch.dict(loading.DIGITS_SCENES, SCENES),
        mock.patch.dict(PRESETS, {"digits-quick": quick, "digits": quick}),  # what a resumed run is read with
        mock.patch.multiple(compute, PRICES=np.array([0.03, 0.3]), CONFIDENCE_PRICES=np.array([0.03])),
        mock.patch.object(confidence, "NUM_CANDIDATES", 2),
        mock.patch.object(leaderboard, "FRONT", (0.03, 0.3)),
        mock.patch.dict(train_prance_ppo.PRESETS, {"tuned": partial(PrancePPOConfig.tuned, n_envs=32)}),
        mock.patch.object(algorithm, "LEAST_SEEN", 64),
        mock.patch.object(BenchmarkSettings, "digits", _two_agents),
        mock.patch.multiple(demo, QUICK_TIMESTEPS=3_072, QUICK_SUBNETS=6, QUICK_SEARCH_IMAGES=32),
        mock.patch.object(static_designs, "SHARES", (1.0,)),
        mock.patch.object(importing, "load_prance_checkpoint", return_value=_bare(prance_embed_dim=40)),
        mock.patch.dict(design.__kwdefaults__, levels=2),  # integer programs of a moment
        mock.patch.object(nearest_subnet, "__defaults__", (2,)),
    ):
        import_everything()
        for split in SCENES:
            EnvSettings.from_id(split=split).engine()
        yield
