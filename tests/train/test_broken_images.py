"""Trainings on folders in which a file is broken: refused by its name, or the next good image stands in for it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import prance, refusal
from image_files import files_of, picture
from training_nets import AUGMENTED, assert_equal_weights, images_recipe, saved_net

from supernet import from_pretrained
from train.networks.distill import DistillSettings, run_distill
from train.networks.loop import train_supernet
from train.networks.recipe import Turn
from train.networks.training_images import Batch
from train.policies.settings import AgentTraining
from train.policies.train_agent import train_agent
from train.runs.folder import read_config

BROKEN, NEXT = 11, 12  # the last of one class, and the first of another
ALL = slice(0, 36)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved_net(tmp_path_factory.mktemp("net"))


@pytest.fixture
def broken(folder: Path, tmp_path: Path) -> Path:
    """A folder with a broken image among those for training."""
    copy = Path(shutil.copytree(folder, tmp_path / "images"))
    files_of(copy / "train")[BROKEN].write_text("no image")
    return copy


@pytest.fixture
def agent(source: str, broken: Path, tmp_path: Path) -> Path:
    """A barely trained agent on the folder as it was before one image in each split broke."""
    broken_files = [files_of(broken / split)[BROKEN] for split in ("train", "val")]
    picture(0).save(broken_files[0])
    environment: Any = {"checkpoint": source, "dataset": str(broken)}
    settings = AgentTraining(
        env="Prance-Tiny-v0", algo="prance_ppo", n_envs=6, total_timesteps=12, environment=environment
    )
    train_agent(settings, tmp_path / "agent", progress_bar=False)
    for file in broken_files:
        file.write_text("no image")
    return tmp_path / "agent"


def shown(source: str, folder: Path, step: int = 0, **changes: Any) -> tuple[Batch, np.ndarray]:
    """All images, as a step of an epoch shows them, and their numbers."""
    images = images_recipe(source, folder, batch_size=36, **changes)._images
    turn = Turn(step, ALL, torch.device("cpu"))
    return images.batch(from_pretrained(source), turn), images._shuffle.drawn(step)[0]


@pytest.mark.parametrize("view", [{}, AUGMENTED])
def test_the_next_good_image_stands_in_with_its_own_label(source: str, broken: Path, view: dict[str, Any]) -> None:
    with pytest.raises(OSError, match=r"011\.png .*cannot be decoded: .*pass on_error='skip' \(--on-error skip"):
        shown(source, broken, **view)
    with pytest.warns(UserWarning, match="the next good image is shown in its place"):
        batch, numbers = shown(source, broken, on_error="skip", **view)
    (at,), (other,) = (np.flatnonzero(numbers == number) for number in (BROKEN, NEXT))
    assert batch.labels[at] == batch.labels[other] == 1
    if not view:
        assert torch.equal(batch.images[at], batch.images[other])
    assert len(batch.images.flatten(1).unique(dim=0)) >= 35


@pytest.mark.filterwarnings("ignore:.*the next good image is shown")
def test_a_run_is_the_same_with_any_number_of_workers_and_if_it_goes_on(
    source: str, broken: Path, tmp_path: Path
) -> None:
    def train(name: str, workers: int = 0, **how: Any) -> None:
        changes = {"on_error": "skip", "batch_size": 18, "num_workers": workers, **AUGMENTED}
        train_supernet(images_recipe(source, broken, **changes), tmp_path / name, **how)

    train("whole")
    train("workers", 2)
    for resume in (False, True, True, True):  # each of which learns anew that the image is broken
        train("parts", resume=resume, max_hours=0)
    assert_equal_weights(tmp_path / "whole", tmp_path / "workers")
    assert_equal_weights(tmp_path / "whole", tmp_path / "parts")


def test_what_a_store_says_is_of_the_image_that_is_shown(
    source: str, folder: Path, broken: Path, tmp_path: Path
) -> None:
    settings = DistillSettings(teacher=source, dataset=str(broken), student=source, epochs=1, top_k=2, **AUGMENTED)
    path = files_of(broken / "train")[BROKEN]
    path.write_bytes(files_of(folder / "train")[BROKEN].read_bytes())
    run_distill(settings, tmp_path / "store")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("train.networks.training_images.check_store", lambda *_: None)  # the image broke afterwards
        path.write_text("no image")
        taught = {"teacher": f"store:{tmp_path / 'store'}", "full_teacher": 1.0, **AUGMENTED}
        with pytest.warns(UserWarning, match="the next good image is shown in its place"):
            batch, _ = shown(source, broken, on_error="skip", **taught)
    with torch.no_grad():
        said = from_pretrained(source)(batch.images).softmax(-1)
    assert batch.answers is not None
    assert torch.allclose(batch.answers, said, atol=2e-3)


def test_a_run_that_met_a_broken_image_goes_on_without_it(
    source: str, broken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["train", "supernet", "--preset", "scratch", "--from", source, "--dataset", broken, "--steps", 6]
    words += ["--batch-size", 6, "--val-images", 6, "--save-freq", 0, "--out", tmp_path / "run"]
    with pytest.raises(SystemExit):
        prance(monkeypatch, *words)
    with pytest.warns(UserWarning, match="the next good image is shown in its place"):
        prance(monkeypatch, "train", "supernet", "--resume", "--on-error", "skip", "--out", tmp_path / "run")
    assert (tmp_path / "run" / "model.safetensors").is_file()


def test_an_order_leaves_broken_images_out_as_well(source: str, broken: Path) -> None:
    with pytest.warns(UserWarning, match="the next good image is shown in its place"):
        images_recipe(source, broken, on_error="skip", order="taylor").start.config  # noqa: B018


@pytest.mark.filterwarnings("ignore:.*the next good image is shown")
def test_a_joint_run_trains_both_and_judges_them_without_broken_images(
    agent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["train", "joint", "--agent", agent, "--steps", 2, "--batch-size", 6, "--val-images", 12]
    words += ["--agent-timesteps", 12, "--on-error", "skip", "--out", tmp_path / "run"]
    prance(monkeypatch, *words)
    assert (tmp_path / "run" / "joint.json").is_file()
    assert read_config(tmp_path / "run" / "round_1" / "agent")["on_error"] == "skip"


@pytest.mark.filterwarnings("ignore:.*the next good image is shown")
def test_a_joint_run_that_met_a_broken_image_goes_on_without_it(
    agent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["train", "joint", "--agent", agent, "--steps", 6, "--batch-size", 6, "--val-images", 6, "--save-freq", 0]
    words += ["--crop-scale", 0.5, 1, "--agent-timesteps", 12, "--out", tmp_path / "run"]
    assert "cannot be decoded" in refusal(monkeypatch, *words)
    resume = ["train", "joint", "--resume", "--out", tmp_path / "run", "--on-error", "skip", "--num-workers", 0]
    assert "only --num-workers, --on-error may change" in refusal(monkeypatch, *resume, "--lr", 1)
    prance(monkeypatch, *resume)
    assert (tmp_path / "run" / "joint.json").is_file()
    assert read_config(tmp_path / "run")["changes"]["on_error"] == "skip"
    prance(monkeypatch, *resume[:5])
