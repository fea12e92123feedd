"""Run folders as models that look: what the runner evaluated, nothing unpickled or fetched unasked."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from adaptive_models import saved
from command_line import prance, refusal
from image_files import image_folder

from agents import AdaptiveViT
from agents.deployed.pictures import Preprocessing
from agents.deployed.runs import Deployed, moved_dataset, noted_names, settings_of_run
from prance_env import EnvSettings
from prance_env.images.config import DatasetConfig
from prance_env.images.loading import register_dataset
from prance_env.images.source import ImageDataset
from supernet import from_pretrained, save_pretrained
from train.commands import bench_menu, export, predict, serve, view
from train.deploy.opening import open_adaptive
from train.evaluate import evaluate
from train.policies.load_agent import load_agent
from train.policies.settings import AgentTraining
from train.policies.train_agent import train_agent
from train.runs.trained import env_of_run, environment_of, settings_for


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, checkpoint: str, folder: Path) -> Callable[[str], Path]:
    """Run folders of barely trained agents, by algorithm."""
    root = tmp_path_factory.mktemp("runs")

    def run(algo: str) -> Path:
        if not (root / algo).exists():
            prices = (0.01, 0.3) if algo == "prance_ppo" else 0.05
            settings = AgentTraining(
                env="Prance-Tiny-v0", algo=algo, n_envs=6, total_timesteps=12, macs_weight=prices,
                environment={"checkpoint": checkpoint, "dataset": str(folder)},
            )  # fmt: skip
            train_agent(settings, root / algo, progress_bar=False)
        return root / algo

    return run


@pytest.mark.parametrize("algo", ["ppo", pytest.param("prance_ppo", marks=pytest.mark.slow)])
def test_a_run_is_the_runners_evaluation_image_for_image(
    algo: str, runs: Callable[[str], Path], tmp_path: Path, folder: Path
) -> None:
    run = runs(algo)
    model = AdaptiveViT.from_run(run)
    settings = env_of_run(run, "val")
    agent, budget = load_agent(str(run), settings), None
    if algo == "prance_ppo":
        budget = 0.1
        settings = EnvSettings(**{**vars_of(settings), "cost_conditioning": (0.01, 0.3, 0.1)})
    expected = evaluate(agent, settings)
    files = sorted((folder / "val").rglob("*.*"))
    for found in (model.predict(files, budget), saved(model, tmp_path).predict(files, budget)):
        assert found.labels.tolist() == expected.prediction.tolist()
        assert found.macs.tolist() == expected.macs.tolist()
        assert np.array_equal(found.subnet.to_actions(model.net.space).numpy(), expected.actions)
    assert model.names == tuple(sorted(p.name for p in (folder / "train").iterdir()))
    assert model.calibration is not None
    assert model.calibration.images == len(files)


def vars_of(settings: EnvSettings) -> dict[str, Any]:
    """The arguments of settings."""
    return {f.name: getattr(settings, f.name) for f in fields(settings)}


def test_folders_that_hold_no_agent_are_named(tmp_path: Path, runs: Callable[[str], Path]) -> None:
    with pytest.raises(FileNotFoundError, match="is not a run folder"):
        AdaptiveViT.from_run(tmp_path)
    (tmp_path / "config.yml").write_text((runs("ppo") / "config.yml").read_text())
    with pytest.raises(FileNotFoundError, match=r"holds neither model\.zip nor"):
        AdaptiveViT.from_run(tmp_path)


def test_a_run_is_not_unpickled_unasked(runs: Callable[[str], Path], tmp_path: Path, folder: Path) -> None:
    run, files = tmp_path / "run", sorted((folder / "val").rglob("*.*"))
    shutil.copytree(runs("ppo"), run)
    expected = AdaptiveViT.from_run(run, images=0).predict(files)
    (run / "policy.safetensors").unlink()
    with pytest.raises(ValueError, match=r"model\.zip holds pickled objects.*trust=True"):
        AdaptiveViT.from_run(run, images=0)
    found = AdaptiveViT.from_run(run, images=0, trust=True).predict(files)
    assert found.labels.tolist() == expected.labels.tolist()
    assert found.macs.tolist() == expected.macs.tolist()
    # A copy names another folder's writer, and so is somebody else's.
    (run / "system.json").unlink()
    with pytest.raises(ValueError, match="holds pickled objects"):
        open_adaptive(str(run), images=0)
    assert open_adaptive(str(run), images=0, trust=True).model.predict(files).macs.tolist() == expected.macs.tolist()


def test_times_are_of_the_device_asked_for(runs: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    where: list[str] = []
    monkeypatch.setattr(AdaptiveViT, "calibrate", lambda model, *_, **__: where.append(model.net.pos_embed.device.type))
    open_adaptive(str(runs("ppo")), images=2, timed=1, device="meta")
    assert where == ["meta"]


def test_images_are_not_fetched_because_a_file_says_so(runs: Callable[[str], Path], tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(runs("ppo"), run)
    text = (run / "config.yml").read_text()
    (run / "config.yml").write_text(
        re.sub(r"dataset: .*", f"dataset: {{name: torch/cifar10, root: {tmp_path}, download: true}}", text)
    )
    with pytest.raises(ValueError, match="would be fetched from the network"):
        AdaptiveViT.from_run(run)
    assert AdaptiveViT.from_run(run, images=0).net is not None


# ---- images that lie elsewhere, or nowhere, by now -------------------------------------------------------------------


@pytest.fixture
def away(checkpoint: str, tmp_path: Path) -> tuple[Path, Path]:
    """A run with settings of its own for its images, which were moved after the training, and where they lie now."""
    (tmp_path / "map.txt").write_text("class_2\nclass_0\nclass_1\n")
    dataset = {
        "name": str(image_folder(tmp_path / "before")),
        "class_map": str(tmp_path / "map.txt"),
        "crop_pct": 0.5,
        "crop_mode": "squash",
        "interpolation": "bilinear",
    }
    settings = AgentTraining(
        env="Prance-Tiny-v0", algo="prance_ppo", n_envs=6, total_timesteps=6, eval_freq=6, eval_images=2,
        environment={"checkpoint": checkpoint, "dataset": dataset},
    )  # fmt: skip
    train_agent(settings, tmp_path / "run", progress_bar=False)
    (tmp_path / "before").rename(tmp_path / "now")
    return tmp_path / "run", tmp_path / "now"


PREPARED = Preprocessing(0.5, "squash", "bilinear")
NAMES = ("class_2", "class_0", "class_1")


def test_where_images_lie_now_changes_nothing_else(away: tuple[Path, Path]) -> None:
    run, now = away
    for folder in (run, run / "best"):
        model = AdaptiveViT.from_run(folder, dataset=str(now), images=2)
        assert (model.names, model.preprocessing) == (NAMES, PREPARED)
    settings = open_adaptive(str(run), dataset=str(now), images=0).settings
    assert settings is not None
    assert settings.engine().labels.tolist() == [1] * 4 + [2] * 4 + [0] * 4
    model = AdaptiveViT.from_run(run, dataset={"name": str(now)}, images=0)
    assert (model.names, model.preprocessing) == (NAMES, Preprocessing())


def test_no_images_are_needed_where_none_are_looked_at(away: tuple[Path, Path]) -> None:
    run, now = away
    with pytest.raises(ValueError, match="no folder has this path"):
        AdaptiveViT.from_run(run)
    (run.parent / "map.txt").unlink()
    expected = AdaptiveViT.from_run(run, dataset={"name": str(now), "crop_pct": 0.5, "crop_mode": "squash"}, images=0)
    shutil.rmtree(now)
    opened = open_adaptive(str(run), images=0)
    for model in (AdaptiveViT.from_run(run, images=0), opened.model):
        assert (model.names, model.preprocessing) == (NAMES, PREPARED)
        assert torch.equal(model.net.pos_embed, expected.net.pos_embed)
    with pytest.raises(ValueError, match="no folder has this path"):
        opened.images()
    # A name means something where it is registered only.
    text = (run / "config.yml").read_text()
    (run / "config.yml").write_text(re.sub(r"dataset:\n(  .*\n)+", "dataset: mine\n", text))
    with pytest.raises(ValueError, match=r"dataset='.*mine' is unknown"):
        AdaptiveViT.from_run(run, images=0)


def test_a_run_that_has_lost_its_images_is_served_without_them(
    away: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    service, pages = pytest.importorskip("train.deploy.service"), list[Any]()
    monkeypatch.setattr(service, "make_service", lambda model, settings, page: pages.append(page))
    monkeypatch.setattr(serve, "serve", lambda app, place: place.close())
    run, now = away
    words = ("serve", "--model", run, "--budget", "0.1", "--calibration-images", "0", "--port", "0")
    with pytest.warns(UserWarning, match=r"The page at / shows no images: dataset='.*before' is unknown"):
        prance(monkeypatch, *words)
    prance(monkeypatch, *words, "--dataset", now)
    assert [page is None for page in pages] == [True, False]
    assert "no folder has this path" in refusal(monkeypatch, *words, "--calibration-images", "4")


def test_classes_are_called_as_they_were_at_the_training(runs: Callable[[str], Path], tmp_path: Path) -> None:
    run, pictures = tmp_path / "run", image_folder(tmp_path / "pictures", per_class=1)
    shutil.copytree(runs("ppo"), run)
    shutil.rmtree(pictures / "train" / "class_0")
    shutil.rmtree(pictures / "val" / "class_0")
    assert AdaptiveViT.from_run(run, dataset=str(pictures), images=0).names == ("class_0", "class_1", "class_2")
    # Earlier versions noted none.
    (run / "class_names.txt").unlink()
    with pytest.warns(UserWarning, match="has 2 classes, the network 3: they are called by their numbers"):
        assert AdaptiveViT.from_run(run, dataset=str(pictures), images=0).names == ("0", "1", "2")


def test_labels_stay_what_they_were_where_classes_are_missing_now(
    runs: Callable[[str], Path], folder: Path, tmp_path: Path
) -> None:
    run, now = runs("ppo"), image_folder(tmp_path / "now", per_class=1)
    copied = settings_of_run(run, "val", dataset=str(now))
    assert copied.dataset == str(now)  # nothing has to be said
    for split in ("train", "val"):
        shutil.rmtree(now / split / "class_0")
    assert settings_of_run(run, "val", dataset=str(now)).engine().labels.tolist() == [1, 2]
    for agent in (run, run / "model.zip", run / "policy.safetensors"):  # by whichever of its names
        assert env_of_run(agent, "val", str(now)).engine().labels.tolist() == [1, 2]
    (now / "train" / "class_2").rename(now / "train" / "class_3")
    with pytest.raises(ValueError, match=r"class_names\.txt' lacks the classes \['class_3'\].* or pass dataset="):
        settings_of_run(run, "train", dataset=str(now)).engine()
    assert settings_of_run(run, "train", dataset=str(folder)).dataset == str(folder)
    read = {"name": "hfds/user/pictures", "revision": "abc", "target_key": "kind", "crop_pct": 0.5}
    moved = DatasetConfig(str(folder), crop_pct=0.5)
    assert DatasetConfig.from_value(moved_dataset(run, read, str(folder))) == moved
    assert moved_dataset(run, read, "digits") == "digits"
    (tmp_path / "run").mkdir()  # of a training that noted no names
    shutil.copy(run / "config.yml", tmp_path / "run")
    assert settings_of_run(tmp_path / "run", "val", dataset=str(now)).dataset == str(now)


def test_the_names_of_a_supernet_that_earlier_versions_noted_are_not_those_of_labels(
    checkpoint: str, folder: Path, tmp_path: Path
) -> None:
    net, run, now = from_pretrained(checkpoint), tmp_path / "run", image_folder(tmp_path / "now", per_class=1)
    net.config = replace(net.config, class_names=("cat", "dog", "cow"))
    save_pretrained(net, tmp_path / "net")
    run.mkdir()
    noted = f"env: Prance-Tiny-v0\ncheckpoint: {tmp_path / 'net'}\ndataset: {folder}\n"
    (run / "config.yml").write_text(noted)
    (run / "class_names.txt").write_text("cat\ndog\ncow\n")
    assert env_of_run(run, "val", str(now)).dataset == str(now)
    with pytest.warns(UserWarning, match="which the supernet does not know"):
        assert settings_of_run(run, "val", dataset=str(now)).engine().labels.tolist() == [0, 1, 2]
    for names in ("cat\nclass_1\nclass_2\n", "hen\nhare\nhorse\n"):  # not the supernet's
        (run / "class_names.txt").write_text(names)
        with pytest.raises(ValueError, match="lacks the classes"):
            settings_of_run(run, "val", dataset=str(now)).engine()
    shutil.rmtree(tmp_path / "net")  # nobody can tell any more
    assert settings_of_run(run, "val", dataset=str(now), checkpoint=checkpoint).dataset_config.class_map is not None


def test_labels_by_the_names_of_another_run_do_not_depend_on_it(
    runs: Callable[[str], Path], folder: Path, tmp_path: Path
) -> None:
    first, run = tmp_path / "first", tmp_path / "run"  # which went on with the first one, on moved images
    for copy in (first, run):
        shutil.copytree(runs("ppo"), copy)
    text, noted = (run / "config.yml").read_text(), f"{{name: {folder}, class_map: {first / 'class_names.txt'}}}"
    (run / "config.yml").write_text(re.sub(r"dataset: .*", f"dataset: {noted}", text))
    assert "class_map" in (run / "config.yml").read_text()
    shutil.copytree(run, tmp_path / "again")
    for names in ("class_2\nclass_1\nclass_0\n", None):  # the first one is trained anew, or is gone
        if names is None:
            shutil.rmtree(first)
        else:
            (first / "class_names.txt").write_text(names)
        both = settings_for([str(run), str(tmp_path / "again")], {})
        for settings in (
            settings_of_run(run, "val"),
            env_of_run(run, "val"),
            environment_of(str(run), both, "val"),
            settings_of_run(run, "val", dataset=str(folder)),
        ):
            assert [*dict.fromkeys(settings.engine().labels.tolist())] == [0, 1, 2]


def test_names_that_are_noted_are_those_of_the_labels(checkpoint: str, folder: Path, tmp_path: Path) -> None:
    net, names = from_pretrained(checkpoint), ("class_0", "class_1", "class_2")
    (tmp_path / "map.txt").write_text("class_1\nclass_2\nclass_0\n")
    mapped: Any = {"name": str(folder), "class_map": str(tmp_path / "map.txt")}
    c, labels = net.config, torch.arange(3)
    silent = ImageDataset.from_tensors(torch.zeros(3, c.in_chans, c.img_size, c.img_size, dtype=torch.uint8), labels)
    for name, called in {"silent": {}, "naming": dict(enumerate(names)), "naming two": {0: "cat", 1: "dog"}}.items():
        said = replace(silent, class_names=called)
        register_dataset(name, lambda split, said=said: said)  # type: ignore[misc]
    for k, (own, dataset, noted) in enumerate(
        [
            (("cat", "dog", "cow"), str(folder), [*names]),  # label k is the k-th folder
            (("class_2", "class_0", "class_1"), str(folder), ["class_2", "class_0", "class_1"]),
            (("class_2", "class_0", "class_1"), mapped, ["class_1", "class_2", "class_0"]),
            (("cat", "dog", "cow"), "silent", ["cat", "dog", "cow"]),  # nobody says what its labels are
            (("cat", "dog", "cow"), "naming", [*names]),
            (("class_2", "class_0", "class_1"), "naming", [*names]),
            (("cat", "dog", "cow"), "naming two", ["cat", "dog", "cow"]),
            (("cow", "dog", "cat"), "naming two", []),
            ((), str(folder), [*names]),
        ]
    ):
        net.config = replace(net.config, class_names=own)
        save_pretrained(net, tmp_path / f"net{k}")
        settings = EnvSettings.from_id("Prance-Tiny-v0", checkpoint=str(tmp_path / f"net{k}"), dataset=dataset)
        (tmp_path / f"run{k}").mkdir()
        Deployed(settings, settings.dataset_config).note_class_names(tmp_path / f"run{k}")
        assert noted_names(tmp_path / f"run{k}") == noted
        assert Deployed(settings, settings.dataset_config, tmp_path / f"run{k}").class_names() == (own or names)


def test_eval_takes_images_that_were_moved_as_deployed_models_do(away: tuple[Path, Path]) -> None:
    run, now = away
    noted = settings_for([str(run), "full"], {"dataset": str(now), "env": None})
    env = environment_of(str(run), noted, "val")
    assert env.dataset_config == settings_of_run(run, "val", dataset=str(now)).dataset_config
    found = evaluate(load_agent(str(run), env), env)
    files = sorted((now / "val").rglob("*.*"))
    expected = AdaptiveViT.from_run(run, dataset=str(now), images=0).predict(files)
    assert found.prediction.tolist() == expected.labels.tolist()
    assert found.label.tolist() == [1] * 4 + [2] * 4 + [0] * 4
    # A dict says all of it anew.
    assert settings_for([str(run)], {"dataset": {"name": str(now)}})["dataset"] == {"name": str(now)}
    assert settings_for(["full"], {"dataset": str(now)})["dataset"] == str(now)


def test_agents_whose_images_were_prepared_differently_are_told_so(away: tuple[Path, Path], tmp_path: Path) -> None:
    run, now = away
    shutil.copytree(run, tmp_path / "same")
    both = settings_for([str(run), str(tmp_path / "same")], {"dataset": str(now)})
    assert both["dataset"]["crop_pct"] == 0.5
    text = (run / "config.yml").read_text()
    (tmp_path / "same" / "config.yml").write_text(text.replace("crop_pct: 0.5", "crop_pct: 0.75"))
    with pytest.raises(ValueError, match=r"different preparation or with different labels.*--dataset '\{\"name\""):
        settings_for([str(run), str(tmp_path / "same")], {"dataset": str(now)})


def test_every_command_that_deploys_takes_other_images_and_another_supernet(
    away: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, now = away
    picture = str(next((now / "val").rglob("*.png")))
    prance(monkeypatch, "predict", picture, "--model", run)  # no images are needed
    assert ",class_" in capsys.readouterr().out
    asked: list[tuple[Any, ...]] = []

    def opening(name: str, checkpoint: Any = None, dataset: Any = None, *rest: Any, **named: Any) -> None:
        asked.append((checkpoint, dataset))
        raise ValueError("that is enough")

    more = ("--checkpoint", "other", "--dataset", '{"name": "x", "crop_pct": 0.9}')
    for module, words in {
        predict: ("predict", picture, "--model", run),
        serve: ("serve", "--model", run, "--port", "0"),
        export: ("export", "--adaptive", run, "--out", tmp_path / "out"),
        bench_menu: ("bench-menu", "--agent", run),
        view: ("view", run),
    }.items():
        monkeypatch.setattr(module, "open_adaptive", opening)
        assert "that is enough" in refusal(monkeypatch, *words, *more)
    assert asked == [("other", {"name": "x", "crop_pct": 0.9})] * 5
    assert "--dataset goes with --agent" in refusal(monkeypatch, "bench-menu", "--timm", "x", "--dataset", "y")
