"""Folders and registered tensors, and clear errors about what cannot be one."""

from __future__ import annotations

import os
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from helpers import ENV_ID, make_engine, unit_actions
from image_files import CONFIG, TRANSFORM, everything, expected_pixels, files_of, image_folder, picture
from PIL import Image

import prance_env
from prance_env import ImageDataset, InferenceEngine
from prance_env.images import opening
from prance_env.images.config import DatasetConfig
from prance_env.images.decoded import DecodedSource
from prance_env.images.folders import image_files
from prance_env.images.loading import check_dataset, load_dataset, register_dataset
from prance_env.images.opening import FORMATS, SUFFIXES, known_formats
from prance_env.images.source import ImageSource, check_fits
from prance_env.images.transform import ImageTransform
from supernet import Supernet

# ---- folders --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_folder_gives_its_images_in_order_with_the_classes_by_alphabet(folder: Path, num_workers: int) -> None:
    source = load_dataset(str(folder), "val", CONFIG, num_workers)
    files = files_of(folder / "val")
    assert isinstance(source, ImageSource)
    assert len(source) == len(files) == 36
    assert source.labels.tolist() == [0] * 12 + [1] * 12 + [2] * 12
    assert source.difficulty.tolist() == [0] * 36
    index = np.array([35, 0, 7, 7, *range(30)])
    torch.testing.assert_close(source.fetch(index), expected_pixels([files[i] for i in index]), rtol=0, atol=0)


@pytest.mark.parametrize("named", ["val", "validation", "valid"])
@pytest.mark.parametrize("asked", ["val", "validation"])
def test_splits_go_by_their_usual_names(named: str, asked: str, tmp_path: Path) -> None:
    image_folder(tmp_path, 1, splits=("train", named))
    source = load_dataset(str(tmp_path), asked, CONFIG)
    torch.testing.assert_close(everything(source), expected_pixels(files_of(tmp_path / named)), rtol=0, atol=0)


def test_a_folder_without_splits_serves_all_of_them(tmp_path: Path) -> None:
    image_folder(tmp_path, 2, splits=())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(load_dataset(str(tmp_path), "train", CONFIG)) == 6
    for split in ("val", "test"):
        with pytest.warns(UserWarning, match=f"measured on split='{split}' says nothing of a network or an agent"):
            assert len(load_dataset(str(tmp_path), split, CONFIG)) == 6


def test_a_missing_split_is_named_with_those_that_are_there(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"split='test'.*'train', 'val'"):
        load_dataset(str(folder), "test", CONFIG)
    with pytest.raises(ValueError, match=r"split='tset'.*train.*val.*test"):
        load_dataset(str(folder), "tset", CONFIG)


def test_empty_folders_and_folders_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"<class>/<image files>.*class folder"):
        load_dataset(str(tmp_path), "val", CONFIG)
    (tmp_path / "cat").mkdir()
    with pytest.raises(ValueError, match=r"<class>/<image files>.*cat"):
        load_dataset(str(tmp_path), "val", CONFIG)
    with pytest.raises(ValueError, match=r"'no/such'.*'digits'.*register_dataset.*ImageNet.*hfds"):
        load_dataset("no/such", "val", CONFIG)


def test_every_format_that_is_opened_is_listed_and_hidden_files_are_not(tmp_path: Path) -> None:
    (tmp_path / "cat" / ".ipynb_checkpoints").mkdir(parents=True)
    endings = {name: FORMATS[name][0] for name in known_formats() & set(FORMATS)}
    for name, ending in endings.items():
        picture(0).save(tmp_path / "cat" / f"0{ending}", name)
    for hidden in ("._0.png", ".ipynb_checkpoints/0.png"):
        picture(1).save(tmp_path / "cat" / hidden)
    files = image_files(tmp_path / "cat")
    assert {Path(file).name for file in files} == {f"0{ending}" for ending in endings.values()}
    source = load_dataset(str(tmp_path), "val", CONFIG)
    images = everything(source).float()
    assert len(images) == len(files)
    assert ((images - images[0]).abs().mean((1, 2, 3)) < 20).all()
    identity = source.identity()
    (tmp_path / "cat" / ".DS_Store").touch()
    picture(1).save(tmp_path / "cat" / ".1.png")
    assert load_dataset(str(tmp_path), "val", CONFIG).identity() == identity


def test_the_endings_are_those_that_pillow_knows() -> None:
    known_formats()
    theirs = {suffix for suffix, name in Image.registered_extensions().items() if name in FORMATS}
    assert theirs - set(SUFFIXES) <= {".pfm"}, "whose numbers have no range"


def test_a_format_that_this_pillow_lacks_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "0.avif").write_bytes(b"\0\0\0\x1cftypavif" + bytes(100))
    monkeypatch.setattr(opening, "known_formats", lambda: {*FORMATS} - {"AVIF"})
    with pytest.raises(OSError, match=r"0\.avif.*Pillow [\d.]+ here reads no AVIF; install a newer one, or convert it"):
        everything(load_dataset(str(tmp_path), "val", CONFIG))


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_folder_is_named(folder: Path, tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0)
    with pytest.raises(PermissionError, match=str(closed)):
        load_dataset(str(closed), "val", CONFIG)


def test_a_class_map_says_which_label_a_folder_has(folder: Path, tmp_path: Path) -> None:
    names = tmp_path / "classes.txt"
    names.write_text("class_2\n\nclass_0\nclass_1\n")
    source = load_dataset({"name": str(folder), "class_map": str(names)}, "val", CONFIG)
    assert source.labels.tolist() == [1] * 12 + [2] * 12 + [0] * 12
    names.write_text("class_2\nclass_0\n")
    with pytest.raises(ValueError, match=r"lacks the classes.*class_1"):
        load_dataset({"name": str(folder), "class_map": str(names)}, "val", CONFIG)
    with pytest.raises(FileNotFoundError, match="class_map="):
        load_dataset({"name": str(folder), "class_map": "nowhere.txt"}, "val", CONFIG)


def test_the_number_of_classes_must_fit_the_supernet(folder: Path) -> None:
    with pytest.warns(UserWarning, match=r"3 classes, the supernet 5.*class_map"):
        load_dataset(str(folder), "val", replace(CONFIG, num_classes=5))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        source = load_dataset(str(folder), "val", CONFIG)
    check_fits(source, CONFIG)
    with pytest.raises(ValueError, match=r"labels go up to 2.*num_classes=2"):
        check_fits(source, replace(CONFIG, num_classes=2))
    with pytest.raises(ValueError, match=r"Image 3 has no label"):
        check_fits(ImageDataset.from_tensors(everything(source)[:4], torch.tensor([0, 1, 2, -1])), CONFIG)


def test_the_transform_can_be_chosen(folder: Path) -> None:
    chosen = {"name": str(folder), "crop_pct": 1.0, "interpolation": "bilinear"}
    source = load_dataset(chosen, "val", CONFIG)
    assert isinstance(source, DecodedSource)
    assert source.transform == ImageTransform(32, 3, 1.0, "bilinear")
    for field, value in (("crop_pct", 0), ("crop_pct", 1.1), ("interpolation", "cubic")):
        with pytest.raises(ValueError, match=f"{field}={value!r}"):
            DatasetConfig.from_value({"name": str(folder), field: value})


def test_identity_changes_with_the_files_the_transform_and_nothing_else(tmp_path: Path) -> None:
    image_folder(tmp_path, 2)

    def identity(**options: Any) -> str:
        return load_dataset({"name": str(tmp_path), **options}, "val", CONFIG).identity()

    first = identity()
    assert identity() == first
    assert identity(crop_pct=1.0) != first
    file = files_of(tmp_path / "val")[2]
    os.utime(file, ns=(1, 1))
    assert identity() != first


# ---- what dataset= says ---------------------------------------------------------------------------------------------


def test_arguments_that_have_no_meaning_are_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"unknown fields \['colour'\].*'crop_pct'"):
        check_dataset({"name": str(folder), "colour": 1}, "val")
    with pytest.raises(ValueError, match="neither a name nor a dict"):
        check_dataset({"root": "x"}, "val")
    with pytest.raises(ValueError, match=r"no use for \['root'\].*crop_pct"):
        check_dataset({"name": str(folder), "root": "x"}, "val")
    with pytest.raises(ValueError, match=r"'digits' has no use for \['crop_pct'\]"):
        check_dataset({"name": "digits", "crop_pct": 1.0}, "val")


@pytest.mark.parametrize(
    ("name", "package", "install"),
    [("hfds/x", "datasets", r"-e '\.\[hf\]"), ("wds/x", "webdataset", r"-e '\.\[wds\]")],
)
def test_a_missing_package_is_named_before_anything_is_loaded(
    name: str, package: str, install: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prance_env.images.config.find_spec", lambda wanted: None if wanted == package else object())
    with pytest.raises(ModuleNotFoundError, match=rf"{name}.*{package}.*pip install.*{install}"):
        gym.make(ENV_ID, dataset=name)


@pytest.mark.parametrize(
    ("name", "value"), [("cache_mb", -1), ("cache_mb", float("nan")), ("num_workers", -1), ("on_error", "ignore")]
)
def test_arguments_out_of_range_are_refused_at_construction(name: str, value: Any) -> None:
    for make in (gym.make, gym.make_vec):
        with pytest.raises(ValueError, match=f"{name}={value!r}"):
            make(ENV_ID, **{name: value})


# ---- registered tensors ---------------------------------------------------------------------------------------------


def test_registered_tensors_are_a_data_set(checkpoint: str) -> None:
    images = torch.stack([torch.from_numpy(TRANSFORM(picture(i))) for i in range(5)])
    labels = torch.arange(5) % 3

    def loader(split: str) -> ImageDataset:
        if split != "val":
            raise ValueError(f"split={split!r} is unknown; there is only 'val'.")
        return ImageDataset.from_tensors(images, labels, labels, "class")

    prance_env.register_dataset("five pictures", loader)
    env = gym.make(ENV_ID, checkpoint=checkpoint, dataset="five pictures", split="val")
    _, info = env.reset(seed=0, options={"index": 4})
    assert (info["index"], info["label"]) == (4, 1)
    with pytest.raises(ValueError, match="there is only 'val'"):
        gym.make(ENV_ID, checkpoint=checkpoint, dataset="five pictures").reset()
    with pytest.raises(ValueError, match=r"'five pictures' is taken.*digits"):
        register_dataset("five pictures", lambda split: loader(split))
    register_dataset("five pictures", loader)
    with pytest.raises(ValueError, match="without slashes"):
        register_dataset("a/b", loader)
    register_dataset("a list", lambda split: [1, 2])  # type: ignore[arg-type,return-value]
    with pytest.raises(ValueError, match=r"'a list' gave a list.*from_tensors"):
        load_dataset("a list", "val")


def test_tensors_of_another_kind_are_refused() -> None:
    images, labels = torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64)
    for bad in (images / 255, images[0], images[:0]):
        with pytest.raises(ValueError, match="expected uint8"):
            ImageDataset.from_tensors(bad, labels)
    for bad in (labels[:3], labels / 2, labels[:, None]):
        with pytest.raises(ValueError, match=r"labels are.*one per image"):
            ImageDataset.from_tensors(images, bad)
        with pytest.raises(ValueError, match=r"difficulty are.*one per image"):
            ImageDataset.from_tensors(images, labels, bad)
    for name, arrays in (
        ("images", (images.numpy(), labels)),
        ("labels", (images, labels.numpy())),
        ("difficulty", (images, labels, labels.numpy())),
    ):
        with pytest.raises(TypeError, match=rf"{name} is a numpy\.ndarray; pass torch\.from_numpy\({name}\)"):
            ImageDataset.from_tensors(*arrays)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"labels is a list; pass a torch\.Tensor"):
        ImageDataset.from_tensors(images, [0, 1, 2, 3])  # type: ignore[arg-type]


def test_the_identity_of_tensors_is_their_content() -> None:
    images, labels = torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64)
    first = ImageDataset.from_tensors(images, labels)
    assert ImageDataset.from_tensors(images.clone(), labels.clone()).identity() == first.identity()
    other = images.clone()
    other[3, 2, 7, 7] = 1
    assert ImageDataset.from_tensors(other, labels).identity() != first.identity()
    assert ImageDataset.from_tensors(images, labels + 1).identity() != first.identity()


# ---- and an engine over them ----------------------------------------------------------------------------------------


def test_search_and_evaluation_do_without_a_difficulty(any_net: Supernet) -> None:
    from train.search.static import evolve_static_front

    engine = make_engine(any_net, 12)
    assert isinstance(engine.dataset, ImageDataset)
    plain = ImageDataset.from_tensors(engine.dataset.images, engine.dataset.labels)
    found = evolve_static_front(InferenceEngine(any_net, plain), np.arange(12), 40, seed=0)
    assert len(found.macs_fraction) == 40
    assert np.isfinite(unit_actions(any_net.space, 2)).all()
