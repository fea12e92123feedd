"""`prance distill` and training from its store: the very same views, any number of processes, killed or not."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import prance, refusal
from helpers import random_net
from PIL import Image
from training_nets import AUGMENTED, CONFIG, images_recipe, saved_net

from prance_env.images.loading import load_dataset
from prance_env.images.source import ImageDataset
from supernet import Supernet, from_pretrained, save_pretrained
from train.networks import distill, logit_store
from train.networks.distill import DistillSettings, run_distill
from train.networks.logit_store import LogitStore
from train.networks.recipe import Turn
from train.networks.views import Shuffle, View, ViewLoader, seeded, view_seeds

VIEW = View(32, 3, **AUGMENTED)


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved_net(tmp_path_factory.mktemp("net"))


def settings_for(net: str, folder: Path, **changes: Any) -> DistillSettings:
    given = {"epochs": 2, "top_k": 2, "batch_size": 5, **AUGMENTED, **changes}
    return DistillSettings(teacher=net, dataset=str(folder), student=net, **given)


def test_a_view_is_the_same_in_every_process_and_another_for_another_seed(folder: Path) -> None:
    source = load_dataset(str(folder), "train", CONFIG)
    index, seeds = np.arange(20), np.arange(20) + 7
    here = ViewLoader(source, VIEW).batch(index, seeds)
    there = ViewLoader(source, VIEW, num_workers=2)
    there.prefetch(index, seeds)
    assert torch.equal(there.batch(index, seeds), here)
    assert torch.equal(ViewLoader(source, VIEW).batch(index[3:5], seeds[3:5]), here[3:5])
    assert not torch.equal(ViewLoader(source, VIEW).batch(index, seeds + 1), here)
    in_memory = ImageDataset.from_tensors(here, torch.zeros(20, dtype=torch.int64))
    assert torch.equal(ViewLoader(in_memory, View(32, 3)).batch(index, seeds), here)
    assert ViewLoader(in_memory, VIEW).batch(index, seeds).shape == (20, 3, 32, 32)


def test_generators_stand_where_they_stood_after_a_view() -> None:
    torch.manual_seed(3)
    first = torch.rand(2)
    torch.manual_seed(3)
    with seeded(1, 2):
        torch.rand(5)
    assert torch.equal(torch.rand(2), first)


def test_grey_pictures_are_distorted_as_well() -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40)).astype(np.uint8))
    assert View(32, 1, **AUGMENTED)(picture, 5).shape == (1, 32, 32)


def test_a_broken_image_is_named(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "train" / "class_0").mkdir(parents=True)
    (tmp_path / "train" / "class_0" / "broken.png").write_text("no image")
    source = load_dataset(str(tmp_path), "train", CONFIG)
    with pytest.raises(OSError, match=r"broken\.png \(image 0\) cannot be decoded"):
        ViewLoader(source, VIEW).batch(np.array([0]), np.array([0]))


def test_every_epoch_shows_every_image_once_in_another_order() -> None:
    shuffle = Shuffle(10, 4, seed=0)
    drawn = [shuffle.drawn(step) for step in range(5)]
    images = np.concatenate([d[0] for d in drawn])
    assert sorted(images[:10].tolist()) == sorted(images[10:].tolist()) == list(range(10))
    assert images[:10].tolist() != images[10:].tolist()
    assert drawn[2][1].tolist() == [0, 0, 1, 1]


def test_every_epoch_of_a_store_has_views_of_its_own(net: str, folder: Path, tmp_path: Path) -> None:
    store = run_distill(settings_for(net, folder), tmp_path / "store")
    assert len(np.unique([store.seeds(epoch, np.arange(36)) for epoch in (0, 1)])) == 72


def test_training_reads_what_the_teacher_said_about_the_views_it_sees(net: str, folder: Path, tmp_path: Path) -> None:
    store = run_distill(settings_for(net, folder), tmp_path / "store")
    assert store.done == 72
    recipe = images_recipe(net, folder, teacher=f"store:{tmp_path / 'store'}", full_teacher=1.0, **AUGMENTED)
    student = recipe.make_net()
    batch = recipe._images.batch(student, Turn(7, slice(1, 5), torch.device("cpu")))  # the second epoch
    with torch.no_grad():
        said = from_pretrained(net)(batch.images).softmax(-1)
    assert batch.answers is not None
    assert torch.equal(batch.answers.topk(2).indices, said.topk(2).indices)
    assert torch.allclose(batch.answers, said, atol=2e-3)


def test_what_a_store_says_of_a_batch_is_read_at_once(
    net: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_distill(settings_for(net, folder), tmp_path / "store")
    taught = {"teacher": f"store:{tmp_path / 'store'}", "full_teacher": 1.0, "batch_size": 8, **AUGMENTED}
    images, read, targets = images_recipe(net, folder, **taught)._images, list[int](), LogitStore.targets
    turn = Turn(4, slice(0, 8), torch.device("cpu"))  # half of it is of the second epoch
    numbers, epochs, _ = images._drawn(turn)
    store = LogitStore.open(tmp_path / "store")
    expected = torch.cat([store.targets(int(e), numbers[i : i + 1]) for i, e in enumerate(epochs)])

    def counted(self: LogitStore, epoch: int, indices: Any) -> torch.Tensor:
        read.append(len(indices))
        return targets(self, epoch, indices)

    monkeypatch.setattr(LogitStore, "targets", counted)
    answers = images.batch(from_pretrained(net), turn).answers
    assert answers is not None
    assert torch.equal(answers, expected)
    assert read == [4, 4]


def test_the_seeds_of_an_epochs_views_are_drawn_once() -> None:
    seeds = view_seeds(0, 5, 100)
    assert view_seeds(0, 5, 100) is seeds
    assert not np.array_equal(view_seeds(0, 6, 100), seeds)
    with pytest.raises(ValueError, match="read-only"):
        seeds[0] = 1


def test_crops_are_resized_as_the_images_of_the_supernet_are(net: str, folder: Path, tmp_path: Path) -> None:
    student = from_pretrained(net)
    student.config = replace(student.config, interpolation="bilinear")
    save_pretrained(student, tmp_path / "a:bilinear")
    other, lanczos = str(tmp_path / "a:bilinear"), {"name": str(folder), "interpolation": "lanczos"}
    assert images_recipe(other, folder, **AUGMENTED).view == replace(VIEW, interpolation="bilinear")
    assert replace(images_recipe(other, folder, **AUGMENTED), dataset=lanczos).view.interpolation == "lanczos"
    settings = settings_for(other, folder, epochs=1)
    found = distill.Distillation(settings).student  # a path with a colon is not a name of timm
    assert torch.equal(found.pos_embed, student.pos_embed)
    run_distill(settings, tmp_path / "store")
    assert LogitStore.open(tmp_path / "store").info.view["interpolation"] == "bilinear"
    # Earlier versions drew bicubic crops for every supernet.
    with pytest.MonkeyPatch.context() as before:
        before.setattr(distill, "view_of", lambda *_: VIEW)
        run_distill(settings, tmp_path / "old")
    taught = {"teacher": f"store:{tmp_path / 'old'}", "full_teacher": 1.0, **AUGMENTED}
    recipe = images_recipe(other, folder, **taught)
    recipe._images  # noqa: B018 - which checks the store
    assert recipe.view == VIEW
    run_distill(settings, tmp_path / "old", resume=True)
    assert distill.check_distill(settings, tmp_path / "old", 10).mismatched == 0
    with pytest.raises(ValueError, match="interpolation='cubic' is unknown; choose one of"):
        View(32, 3, interpolation="cubic")


def test_a_store_for_other_images_or_views_is_refused(net: str, folder: Path, tmp_path: Path, checkpoint: str) -> None:
    run_distill(settings_for(net, folder), tmp_path / "store")
    teacher = {"teacher": f"store:{tmp_path / 'store'}", "full_teacher": 1.0}
    with pytest.raises(ValueError, match="was written for other flip, rand_augment"):
        images_recipe(net, folder, crop_scale=(0.5, 1.0), **teacher)._images  # noqa: B018
    with pytest.raises(ValueError, match="was written for other images;"):
        images_recipe(net, folder / "val", **teacher, **AUGMENTED)._images  # noqa: B018


def test_a_store_for_other_labels_is_refused(net: str, folder: Path, tmp_path: Path) -> None:
    out, names = tmp_path / "store", tmp_path / "map.txt"
    run_distill(settings_for(net, folder), out)
    names.write_text("class_2\nclass_0\nclass_1\n")
    mapped: Any = {"name": str(folder), "class_map": str(names)}
    recipe = replace(images_recipe(net, folder, teacher=f"store:{out}", full_teacher=1.0, **AUGMENTED), dataset=mapped)
    words = "was written for other labels; pass the dataset"
    with pytest.raises(ValueError, match=words):
        recipe._images  # noqa: B018
    with pytest.raises(ValueError, match=words):
        distill.check_distill(replace(settings_for(net, folder), dataset=mapped), out, 3)
    with pytest.raises(ValueError, match=r"begun with other values of \['labels'\]"):
        run_distill(replace(settings_for(net, folder), dataset=mapped), out, resume=True)
    names.write_text("class_0\nclass_1\nclass_2\n")  # other words, the same labels
    recipe._images  # noqa: B018
    # Earlier versions noted none.
    noted = json.loads((out / "store.json").read_text())
    del noted["labels"]
    (out / "store.json").write_text(json.dumps(noted))
    run_distill(settings_for(net, folder), out, resume=True)
    assert distill.check_distill(settings_for(net, folder), out, 3).mismatched == 0


def test_a_store_that_was_begun_in_another_order_of_classes_is_not_gone_on_with(folder: Path, tmp_path: Path) -> None:
    named, student = random_net(CONFIG), saved_net(tmp_path / "student")
    for name, names in {"turned": ("class_2", "class_0", "class_1"), "same": ("class_0", "class_1", "class_2")}.items():
        named.config = replace(CONFIG, class_names=names)
        save_pretrained(named, tmp_path / name)
        settings = replace(settings_for(student, folder), teacher=str(tmp_path / name))
        out = tmp_path / f"store of {name}"
        run_distill(settings, out)
        noted = json.loads((out / "store.json").read_text())
        del noted["labels"]  # as of earlier versions, which asked in the teacher's order
        (out / "store.json").write_text(json.dumps(noted))
        (out / "progress.json").write_text('{"records": 20}')
        if name == "same":
            assert run_distill(settings, out, resume=True).done == 72
        else:
            with pytest.raises(ValueError, match=r"in the teacher's order of classes.* write the store anew"):
                run_distill(settings, out, resume=True)
            (out / "progress.json").write_text('{"records": 0}')
            assert run_distill(settings, out, resume=True).done == 72


def test_a_stopped_store_goes_on_to_the_same_bytes(
    net: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_for(net, folder)
    run_distill(settings, tmp_path / "whole")
    answers, calls = distill.Distillation.answers, []

    def interrupt(self: Any, images: Any, seeds: Any) -> torch.Tensor:
        calls.append(len(images))
        if len(calls) == 9:
            os.kill(os.getpid(), signal.SIGINT)
        return answers(self, images, seeds)

    monkeypatch.setattr(distill.Distillation, "answers", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_distill(settings, tmp_path / "parts")
    monkeypatch.undo()
    with pytest.raises(FileExistsError, match="--resume"):
        run_distill(settings, tmp_path / "parts")
    with pytest.raises(ValueError, match=r"begun with other values of \['top_k', 'seed'\]"):
        run_distill(settings_for(net, folder, top_k=3, seed=1), tmp_path / "parts", resume=True)
    assert LogitStore.create(tmp_path / "parts", LogitStore.open(tmp_path / "whole").info).done == 41
    run_distill(settings, tmp_path / "parts", resume=True, num_workers=2)
    for name in ("epoch_0000.bin", "epoch_0001.bin", "progress.json"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    with pytest.raises(FileNotFoundError, match="nothing to resume"):
        run_distill(settings, tmp_path / "none", resume=True)


def test_a_full_disk_is_one_line_and_loses_nothing(
    net: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["distill", "--student", net, "--teacher", net, "--dataset", folder, "--top-k", 2, "--batch-size", 5]
    prance(monkeypatch, *words, "--out", tmp_path / "whole")
    written, write_text = [], logit_store.write_text

    def until_it_is_full(path: Path, text: str) -> None:
        written.append(path)
        if len(written) == 5:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write_text(path, text)

    monkeypatch.setattr(logit_store, "write_text", until_it_is_full)
    message = refusal(monkeypatch, *words, "--out", tmp_path / "parts")
    assert "make room, and run the command again" in message
    assert "Traceback" not in message
    prance(monkeypatch, *words, "--out", tmp_path / "parts", "--resume")
    for name in ("epoch_0000.bin", "progress.json"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_what_does_not_fit_is_said_before_anything_is_written(net: str, folder: Path, tmp_path: Path) -> None:
    save_pretrained(Supernet(replace(CONFIG, num_classes=5)), tmp_path / "five")
    with pytest.raises(ValueError, match="gives 5 logits, the supernet 3"):
        run_distill(replace(settings_for(net, folder), teacher=str(tmp_path / "five")), tmp_path / "store")
    with pytest.raises(ValueError, match="prance_vit_tiny has random weights"):
        run_distill(replace(settings_for(net, folder), teacher="prance_vit_tiny"), tmp_path / "store")
    with pytest.raises(ValueError, match="weights are random here"):
        run_distill(replace(settings_for("timm:vit_tiny_patch16_224", folder), teacher="original"), tmp_path / "store")
    broken = from_pretrained(net)
    with torch.no_grad():
        broken.pos_embed.fill_(3e38)  # what comes of it is not finite
    save_pretrained(broken, tmp_path / "broken")
    with pytest.raises(ValueError, match="numbers that are not finite"):
        run_distill(replace(settings_for(net, folder), teacher=str(tmp_path / "broken")), tmp_path / "store")
    assert not (tmp_path / "store" / "progress.json").exists()
    shutil.copytree(folder, tmp_path / "images")
    shutil.rmtree(tmp_path / "images" / "train" / "class_2")
    with pytest.warns(UserWarning, match="2 classes"):
        run_distill(settings_for(net, tmp_path / "images"), tmp_path / "few")


def test_the_command_writes_a_store_and_checks_it(
    net: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["distill", "--student", net, "--dataset", folder, "--top-k", 2, "--out", tmp_path / "store"]
    words += ["--rand-augment", "rand-m5-n1", "--crop-scale", "0.5", "1"]
    prance(monkeypatch, *words, "--teacher", net)
    assert "36 images, 1 view(s) each, 576 bytes" in capsys.readouterr().out
    prance(monkeypatch, *words, "--teacher", net, "--check", 10)
    text = capsys.readouterr().out
    assert "10 records asked again" in text
    assert "by more than 0.02 in 0.00% of the records; 0.00% of the classes are others" in text
    other = saved_net(tmp_path / "other")
    weights = from_pretrained(other)
    with torch.no_grad():
        weights.head.bias += torch.tensor([3.0, 0, 0])  # type: ignore[union-attr]
    save_pretrained(weights, other)
    assert "the teacher's probabilities differ" in refusal(monkeypatch, *words, "--teacher", other, "--check", 10)
    assert "--check 0 must be at least 1" in refusal(monkeypatch, *words, "--teacher", net, "--check", 0)
    assert "batch_size=0 must be at least 1" in refusal(monkeypatch, *words, "--teacher", net, "--batch-size", 0)


@pytest.mark.parametrize("classes", [3, 250])
def test_a_teacher_with_the_same_answers_for_other_classes_is_noticed(
    classes: int, folder: Path, tmp_path: Path
) -> None:
    net = random_net(replace(CONFIG, num_classes=classes))
    save_pretrained(net, tmp_path / "net")
    settings = settings_for(str(tmp_path / "net"), folder, epochs=1, top_k=classes - 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # there are fewer folders than classes
        run_distill(settings, tmp_path / "store")
        assert distill.check_distill(settings, tmp_path / "store", 36).difference < 1e-3
        with torch.no_grad():
            for part in (net.head.weight, net.head.bias):  # type: ignore[union-attr]
                part.copy_(part.roll(1, 0))  # type: ignore[arg-type, operator]
        save_pretrained(net, tmp_path / "rolled")
        with pytest.raises(ValueError, match=r"by more than 0\.02 in \d+\.\d% of 36 records \(allowed: 1%\)"):
            distill.check_distill(replace(settings, teacher=str(tmp_path / "rolled")), tmp_path / "store", 36)
