"""Kinds of files around runs: caches, what searches remember, logs, run folders, tables and plain texts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from agents import AdaptiveViT, PrancePPO
from agents.deployed.pictures import class_names
from prance_env.cache import PREFIX, DiskStore
from prance_env.images.config import DatasetConfig
from prance_env.images.pixel_map import StreamItem, pixel_map
from prance_env.images.transform import ImageTransform
from prance_env.settings import EnvSettings
from supernet import SubnetConfig, Supernet
from train.casestudy.reports import read_benchmark, read_joint, read_order
from train.commands.train_joint import TrainJoint
from train.commands.tune import Tune
from train.evaluate.replay import run_validate
from train.joint import JointSettings
from train.networks.export import exported_files
from train.policies.load_agent import load_agent
from train.policies.settings import AgentTraining
from train.policies.tune import TuneSettings, tune
from train.policies.validation import Validation, best_row
from train.report.curves import grouped
from train.runs.curves import CURVES, read_curves
from train.runs.folder import write_command
from train.runs.rows import EVALUATIONS, ROWS, RowLog
from train.runs.trained import price_range, settings_for
from train.search.memory import FOLDER, Memory
from train.side_by_side import EvalSettings, run_eval, trained_price

from .subject import Subject


def subjects_of_runs(net: Supernet, ppo: PrancePPO) -> dict[str, Subject]:
    """The kinds of this file, by name."""
    return {**_caches(), **_memories(net), **_logs(), **_runs(net, ppo), **_reports(), **_texts(net)}


def _caches() -> dict[str, Subject]:
    """Decoded streams and prefixes; what is damaged is made again or refused, and never served."""
    shades, transform = (10, 120, 250), ImageTransform(8, 1, 1.0, "bicubic")

    def stream() -> Iterator[StreamItem]:
        for label, shade in enumerate(shades):
            yield StreamItem(str(label), Image.new("L", (8, 8), shade), label)

    def decode(folder: Path) -> None:
        found = pixel_map(stream, transform, "these", folder / "cache", 0, "raise")
        if found.fetch(np.arange(3))[:, 0, 0, 0].tolist() != [*shades] or found.labels.tolist() != [0, 1, 2]:
            raise AssertionError("it gives other images than were written")

    def decoded(folder: Path) -> None:
        decode(folder)
        (found,) = (folder / "cache").iterdir()
        found.rename(folder / "cache" / "it")
        (folder / "name").write_text(found.name)

    def use(folder: Path) -> None:
        (folder / "cache" / "it").rename(folder / "cache" / (folder / "name").read_text())
        decode(folder)

    tokens = torch.arange(12.0).reshape(3, 2, 2)

    def store(folder: Path) -> DiskStore:
        return DiskStore(folder / "prefixes", 3, 2, (2, 2), torch.float32, torch.device("cpu"))

    def recall(folder: Path) -> None:
        kept = store(folder)
        known, prediction, prob = kept.recall(np.arange(3))
        found = np.flatnonzero(known)
        rows = np.flatnonzero(known == PREFIX)
        same = (prediction[found] == found + 5).all() and (prob[found] == (found + 1) / 4).all()
        if not same or (len(rows) and not torch.equal(kept.read(rows), tokens[torch.from_numpy(rows)])):
            raise AssertionError("it gives other prefixes or verdicts than were written")

    images = {
        f"stream's {name}": Subject(decoded, f"cache/it/{name}", use, alone=True)
        for name in ("header.json", "pixels", "labels", "checksums")
    }
    prefixes = Subject(
        lambda f: store(f).write(np.arange(3), tokens, np.arange(3) + 5, (np.arange(3) + 1) / 4),
        *("prefixes", recall),
        alone=True,
    )
    return {**images, "prefixes": prefixes}


def _memories(net: Supernet) -> dict[str, Subject]:
    """What stopped searches have found out."""
    static = net.extract(SubnetConfig.min(net.config.space, 1))
    index, actions = np.arange(9), np.zeros((2, 3))

    def search(folder: Path) -> None:
        memory = Memory(folder, {"seed": 1})
        with memory.timed("all") as spent, memory.judging("static", lambda i, a: i % 2 == 0) as judge:
            verdict = judge(index, actions)
        found = memory.step("step", lambda: {"correct": np.eye(3), "macs": np.arange(3.0)})
        networks = memory.networks("pruned", lambda: [static, static])
        right = (verdict == (index % 2 == 0)).all() and [*found] == ["correct", "macs"] and len(networks) == 2
        if not right or (found["correct"] != np.eye(3)).any() or (found["macs"] != np.arange(3)).any():
            raise AssertionError("it remembers something else than was found out")
        if not np.isfinite([*spent().values()]).all():
            raise AssertionError("it remembers no times")

    files = ("of.json", "times.json", "step.npz", "static.npz", "pruned.json", "pruned/0/model.safetensors")
    found = {f"memory's {Path(name).name}": Subject(search, f"{FOLDER}/{name}", search, alone=True) for name in files}
    if find_spec("optuna") is not None:
        found["study"] = _study()
    return found


def _study() -> Subject:
    import optuna

    settings = TuneSettings(algo="ppo", trials=2, evaluations=1, total_timesteps=24, n_envs=4)

    def make(folder: Path) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        write_command(folder, settings)
        storage = optuna.storages.RDBStorage(f"sqlite:///{folder / 'study.db'}")
        study = optuna.create_study(storage=storage, study_name="ppo", direction="maximize")
        for number in range(2):
            trial = study.ask()
            trial.suggest_float("gamma", 0.9, 1)
            trial.set_user_attr("hyperparams", {"gamma": 0.95})
            trial.set_user_attr("accuracy", 0.5)
            trial.set_user_attr("macs_fraction", 0.25)
            trial.report(number / 2, 1)
            study.tell(trial, number / 2)
        storage.engine.dispose()

    return Subject(make, "study.db", lambda f: tune(settings, f, resume=True, progress_bar=False), alone=True)


def _logs() -> dict[str, Subject]:
    """What trainings have logged."""
    row = {"return": 0.5, "accuracy": 0.5, "macs_fraction": 0.25}

    def write(path: Path, step: str) -> None:
        for number in range(4):
            RowLog(path, step).write({step: number, **row})

    def validated(folder: Path) -> None:
        judge = Validation(EnvSettings.from_id(), folder, 0, 1)
        judge.resume(2)
        best_row(folder)
        if not 0 <= judge._last <= 2:
            raise AssertionError("it remembers validations that have not been")

    def draw(folder: Path) -> None:
        with SummaryWriter(str(folder)) as writer:
            for number in range(4):
                writer.add_scalar(CURVES[0], number / 4, number)
        (path,) = folder.glob("events*")
        path.rename(folder / "events.out.tfevents.1")

    return {
        "metrics": Subject(lambda f: write(f / ROWS, "step"), ROWS, lambda f: RowLog(f / ROWS).forget_after(2), True),
        "evaluations": Subject(lambda f: write(f / EVALUATIONS, "timesteps"), EVALUATIONS, validated, True),
        "events": Subject(draw, "events.out.tfevents.1", read_curves),
    }


def _runs(net: Supernet, ppo: PrancePPO) -> dict[str, Subject]:
    """Run folders that are judged, and models that are served."""
    c = net.config
    images = torch.zeros(2, c.in_chans, c.img_size, c.img_size)

    def run(folder: Path) -> None:
        write_command(folder, AgentTraining(algo="prance_ppo"))
        ppo.save(folder / "model")

    def judge(folder: Path) -> None:
        name = str(folder)
        settings_for([name], {})
        load_agent(name, EnvSettings.from_id())
        trained_price(name), price_range(name), grouped([folder])

    def model(folder: Path) -> None:
        made = AdaptiveViT(net, ppo)
        made.make_menu(images, 2)
        made.save_pretrained(folder)

    def serve(folder: Path) -> None:
        loaded = AdaptiveViT.from_pretrained(folder)
        assert loaded.menu is not None
        if not loaded.menu(images[:1].to(torch.uint8)).logits.isfinite().all():
            raise AssertionError("it gives NaN or inf")

    return {
        "search resumed": Subject(lambda f: write_command(f, TuneSettings(algo="ppo")), "config.yml", Tune.resumed),
        "joint run resumed": Subject(
            lambda f: write_command(f, JointSettings(agent="x", changes={"steps": 3})), "config.yml", TrainJoint.resumed
        ),
        "run judged": Subject(run, "config.yml", judge),
        "run served": Subject(run, "config.yml", lambda f: AdaptiveViT.from_run(f, images=0)(images)),
        "menu": Subject(model, "config.json", serve),
    }


def _reports() -> dict[str, Subject]:
    """Tables and reports that are read again."""
    summary = {"accuracy": 0.5, "macs_fraction": 0.5}
    row = {**summary, "price": 0.05, "agent": "static-1.json"}
    own = {**{k: [v] for k, v in summary.items()}, "standing": [{"saved": 0.1}]}
    board = {"agents": {"PrancePPO": own}, "fronts": {"static": [row]}}
    joint = {"before": {"full": summary, "policy": summary}, "after": {"full": summary, "policy": summary}}
    order = {"score": "taylor", "accuracy": {"before": {"full": 0.5}, "after": {"full": 0.5}}}
    exported = {"files": {"model.onnx": {"takes": "float32"}, "model.pt2": {"takes": "uint8"}}}

    def written(name: str, data: Any) -> Callable[[Path], object]:
        return lambda folder: (folder / name).write_text(json.dumps(data))

    def parquet(folder: Path) -> None:
        run_eval(["full"], EvalSettings(split="val", resamples=10, rows="parquet"), folder)

    found = {
        "benchmark's report": Subject(
            written("benchmark.json", board), "benchmark.json", lambda f: read_benchmark(f / "benchmark.json")
        ),
        "joint's report": Subject(written("joint.json", joint), "joint.json", lambda f: read_joint(f / "joint.json")),
        "order's report": Subject(written("i.json", order), "i.json", lambda f: read_order(f / "i.json")),
        "export": Subject(written("static.json", exported), "static.json", exported_files),
    }
    if find_spec("pyarrow") is not None:
        found["rows as Parquet"] = Subject(parquet, "full.parquet", lambda f: run_validate(f / "full.parquet"))
    return found


def _texts(net: Supernet) -> dict[str, Subject]:
    """Names of classes."""

    def names(folder: Path) -> None:
        dataset = DatasetConfig("folder", class_map=str(folder / "names.txt"))
        known = dataset.read_class_map()
        found = class_names(dataset, net.config.num_classes)
        if known is None or (found is not None and len(found) != net.config.num_classes):
            raise AssertionError("it names other classes")

    return {"class names": Subject(lambda f: (f / "names.txt").write_text("cat\ndog\n"), "names.txt", names)}
