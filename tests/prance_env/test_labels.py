"""Which label a class has: one order for all splits, numbers as numbers, and whole numbers only."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import pytest
import torch
from helpers import ENV_ID
from image_files import CONFIG, hugging_face_folder, picture, shards
from PIL import Image

from agents.deployed.pictures import class_names
from prance_env import EnvSettings
from prance_env.images import timm_names
from prance_env.images.config import DatasetConfig
from prance_env.images.decoded import DecodedSource
from prance_env.images.labels import labels_of, reader_labels, whole
from prance_env.images.loading import load_dataset
from prance_env.images.source import ImageDataset, check_fits
from prance_env.images.timm_names import load_timm
from prance_env.images.transform import ImageTransform

TWELVE = replace(CONFIG, num_classes=12)


def folders(root: Path, **splits: list[str]) -> Path:
    """One image in every class of every split."""
    for split, names in splits.items():
        for k, name in enumerate(names):
            (root / split / name).mkdir(parents=True)
            picture(k).save(root / split / name / "0.png")
    return root


def labels(dataset: Any, split: str, config: Any = TWELVE) -> list[int]:
    return load_dataset(dataset, split, config).labels.tolist()


def test_classes_that_are_numbers_are_warned_about_and_taken_as_labels_if_one_says_so(tmp_path: Path) -> None:
    names = [str(k) for k in range(12)]
    folder = str(folders(tmp_path, train=names, val=names))
    with pytest.warns(UserWarning, match=r"label 2 is the class '10', by alphabet\..*'class_map': 'numeric'"):
        assert labels(folder, "val") == list(range(12))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # Images stay in the order of the folders: 0, 1, 10, 11, 2, ...
        expected = [0, 1, 10, 11, *range(2, 10)]
        assert labels({"name": folder, "class_map": "numeric"}, "val") == expected
        assert labels({"name": "torch/folder", "root": folder, "class_map": "numeric"}, "val") == expected
        assert labels({"name": folder, "class_map": "numeric"}, "train") == expected


@pytest.mark.parametrize("names", [["00", "01", "02", "10"], [str(k) for k in range(10)], ["a", "b", "10", "9"]])
def test_names_whose_alphabet_is_their_order_are_no_reason_to_warn(names: list[str], tmp_path: Path) -> None:
    folder = str(folders(tmp_path, train=names))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert labels(folder, "train", replace(CONFIG, num_classes=len(names))) == list(range(len(names)))


def test_every_door_of_an_environment_takes_numbers_as_labels(checkpoint: str, tmp_path: Path) -> None:
    folder = str(folders(tmp_path, val=["2", "0"]))
    arguments: dict[str, Any] = {
        "checkpoint": checkpoint,
        "dataset": {"name": folder, "class_map": "numeric"},
        "split": "val",
    }
    assert gym.make(ENV_ID, **arguments).reset(options={"index": 1})[1]["label"] == 2
    assert EnvSettings(**arguments).engine().labels.tolist() == [0, 2]


@pytest.mark.parametrize(
    ("names", "words"), [(["1", "cat"], r"has \['cat'\]"), (["1", "01"], r"has \['01', '1'\]"), (["-1"], r"\['-1'\]")]
)
def test_names_that_are_no_labels_are_refused_as_numbers(names: list[str], words: str, tmp_path: Path) -> None:
    folder = str(folders(tmp_path, val=names))
    with pytest.raises(ValueError, match=rf"class_map='numeric' needs classes .* named by their labels.*{words}"):
        labels({"name": folder, "class_map": "numeric"}, "val")


def test_a_class_that_one_split_lacks_shifts_no_label(tmp_path: Path) -> None:
    folder = str(folders(tmp_path, training=["ant", "bee", "cat"], val=["ant", "cat"], test=["cat"]))
    three = replace(CONFIG, num_classes=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert labels(folder, "train", three) == [0, 1, 2]
        assert labels(folder, "val", three) == [0, 2]
        assert labels(folder, "test", three) == [2]
        assert labels({"name": "torch/image_folder", "root": folder}, "val", three) == [0, 2]
    (tmp_path / "val" / "bat").mkdir()
    picture(5).save(tmp_path / "val" / "bat" / "0.png")
    with pytest.raises(ValueError, match=r"val has the classes \['bat'\], which the training split.*class_map"):
        labels(folder, "val", three)
    (tmp_path / "classes.txt").write_text("cat\nbat\nant\n")
    assert labels({"name": folder, "class_map": str(tmp_path / "classes.txt")}, "val", three) == [2, 1, 0]


def test_a_supernet_that_knows_its_classes_says_their_labels(tmp_path: Path) -> None:
    folder = str(folders(tmp_path, train=["ant", "bee", "cat"], val=["bee"]))
    knowing = replace(CONFIG, num_classes=4, class_names=("cat", "dog", "bee", "ant"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert labels(folder, "train", knowing) == [3, 2, 0]
        assert labels(folder, "val", knowing) == [2]
        (tmp_path / "map.txt").write_text("bee\ncat\nant\n")
        assert labels({"name": folder, "class_map": str(tmp_path / "map.txt")}, "train", knowing) == [2, 0, 1]
    for k, name in enumerate(("eel", "fox")):
        for split in ("train", "val"):
            (tmp_path / split / name).mkdir(exist_ok=True)
            picture(k).save(tmp_path / split / name / "0.png")
        with pytest.warns(UserWarning, match=r"the classes \['eel'.*does not know.*\['cat', 'dog', 'bee', 'ant'\]"):
            assert labels(folder, "val", knowing) == [1, *range(3, 4 + k)]


def test_hidden_folders_are_no_classes(tmp_path: Path) -> None:
    folder = str(folders(tmp_path, val=[".ipynb_checkpoints", "ant", "bee"]))
    assert labels(folder, "val", replace(CONFIG, num_classes=2)) == [0, 1]
    (tmp_path / "val" / ".empty").mkdir()
    assert labels(folder, "val", replace(CONFIG, num_classes=2)) == [0, 1]


def test_the_label_of_every_name_is_said_for_all_three_ways(tmp_path: Path) -> None:
    assert labels_of(["b", "a"], DatasetConfig("x"), "x") == {"b": 0, "a": 1}
    assert labels_of(["7", "3"], DatasetConfig("x", class_map="numeric"), "x") == {"7": 7, "3": 3}


# ---- sources with labels of their own -------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["hfds", "hfids"])
def test_classes_of_hugging_face_are_warned_about_as_folders_are(kind: str, tmp_path: Path) -> None:
    names = sorted(str(k) for k in range(12))
    data, _ = hugging_face_folder(tmp_path, names=names)
    chosen = {"name": f"{kind}/{data}", "root": str(tmp_path / "hf")} | ({"num_samples": 9} if kind == "hfids" else {})

    def found(**more: Any) -> list[int]:
        source = load_dataset({**chosen, **more}, "validation", TWELVE, cache_dir=tmp_path / "cache")
        return source.labels.tolist()

    with pytest.warns(UserWarning, match=r"validation: label 2 is the class '10'.*'numeric'"):
        assert found() == [0] * 3 + [1] * 3 + [2] * 3
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert found(class_map="numeric") == [0] * 3 + [1] * 3 + [10] * 3
        (tmp_path / "map.txt").write_text("\n".join(["10", "1", "0", *names[3:]]))
        assert found(class_map=str(tmp_path / "map.txt")) == [2] * 3 + [1] * 3 + [0] * 3
        (tmp_path / "map.txt").write_text("\n".join(["0", "10", "1", *names[3:]]))  # the same file
        assert found(class_map=str(tmp_path / "map.txt")) == [0] * 3 + [2] * 3 + [1] * 3
    with pytest.warns(UserWarning, match=r"validation has 12 classes, the supernet 100; label k is the k-th"):
        load_dataset(chosen, "validation", replace(CONFIG, num_classes=100), cache_dir=tmp_path / "cache")


class Reader(list[tuple[Image.Image, int]]):
    """What timm opens under the name of Hugging Face ("hfds"), or as a stream of TensorFlow's ("tfds")."""

    image_key, label_key, num_samples = "image", "label", 3

    def __init__(self) -> None:
        super().__init__((picture(k), k) for k in range(3))
        self.features = {"label": SimpleNamespace(names=["ant", "bee", "cat"])}
        self.dataset = SimpleNamespace(features=self.features, _fingerprint="x")
        self.builder = SimpleNamespace(info=SimpleNamespace(features=self.features), config=None)
        self.reader = self


@pytest.mark.parametrize("kind", ["hfds", "tfds"])
def test_sources_by_name_say_what_their_labels_mean(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timm_names, "_open", lambda config, split: (Reader(), split))
    monkeypatch.setattr(timm_names, "_check_columns", lambda *_: None)
    transform = ImageTransform.of(CONFIG)
    for own, meant in {
        (): {0: "ant", 1: "bee", 2: "cat"},
        ("cat", "ant", "bee"): {1: "ant", 2: "bee", 0: "cat"},
        ("cow", "ant", "bee"): {0: "ant", 1: "bee", 2: "cat"},  # with a warning that it does not know the cat
    }.items():
        net = replace(CONFIG, num_classes=3, class_names=own)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            source: Any = load_timm(DatasetConfig(f"{kind}/x"), "val", transform, 0, "raise", tmp_path, net)
        assert source.class_names == meant, own
        assert [meant[label] for label in source.labels.tolist()] == ["ant", "bee", "cat"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["hfds", "hfids", "wds"])
def test_fractions_are_no_labels(kind: str, tmp_path: Path) -> None:
    if kind == "wds":
        shards(tmp_path, label="kind", fraction=0.6)
        chosen: dict[str, Any] = {"name": "wds/x", "root": str(tmp_path / "shards"), "target_key": "kind"}
    else:
        data, _ = hugging_face_folder(tmp_path, fraction=0.6)
        chosen = {"name": f"{kind}/{data}", "root": str(tmp_path / "hf")}
        chosen |= {"num_samples": 9} if kind == "hfids" else {}
    with pytest.raises(ValueError, match=r"the label 0\.6 is no whole number; pass target_key"):
        load_dataset(chosen, "val" if kind == "wds" else "validation", CONFIG, cache_dir=tmp_path / "cache")


@pytest.mark.parametrize("label", [2, 2.0, "2", b"2", torch.tensor(2), True])
def test_whole_numbers_are_labels_in_whatever_form(label: Any) -> None:
    assert whole(label, "x") == int(label)


@pytest.mark.parametrize("label", [2.6, "2.6", "cat", None, [1, 2], float("nan"), float("inf"), torch.tensor(0.5)])
def test_nothing_else_is_one(label: Any) -> None:
    with pytest.raises(ValueError, match=r"x: the label .* is no whole number; pass target_key"):
        whole(label, "x")


def test_labels_that_are_names_are_mapped_by_a_file_or_as_numbers(tmp_path: Path) -> None:
    (tmp_path / "map.txt").write_text("cat\ndog\n")
    by_file = reader_labels([], DatasetConfig("x", class_map=str(tmp_path / "map.txt")), "x")
    assert [by_file("dog", "x"), by_file("cat", "x")] == [1, 0]
    with pytest.raises(ValueError, match=r"x: \[3\]: class_map='.*' lacks the class 'cow'; add it"):
        by_file("cow", "x: [3]")
    assert reader_labels([], DatasetConfig("x", class_map="numeric"), "x")("7", "x") == 7


def test_a_source_of_ones_own_with_fractional_labels_is_refused() -> None:
    images = torch.zeros(2, CONFIG.in_chans, CONFIG.img_size, CONFIG.img_size, dtype=torch.uint8)
    source = replace(
        ImageDataset.from_tensors(images, torch.zeros(2, dtype=torch.int64)), labels=torch.tensor([0.0, 1.6])
    )
    with pytest.raises(ValueError, match=r"labels are torch\.float32; expected whole numbers"):
        check_fits(source, CONFIG)


def test_class_names_that_are_no_text_are_refused_by_the_name_of_their_file(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    dataset = DatasetConfig("x", class_map=str(path))
    path.write_bytes("Kühe\n".encode("latin1"))
    for read in (dataset.read_class_map, lambda: class_names(dataset, 2)):
        with pytest.raises(ValueError, match=r"names\.txt is no text in UTF-8 \(byte 0xfc at position 1\)"):
            read()
    # A form feed ends no line, and a byte order mark is no letter.
    path.write_bytes("\ufeffcat\f \ndog\x0b2".encode())
    assert dataset.read_class_map() == {"cat": 0, "dog\x0b2": 1}
    assert class_names(dataset, 2) == ("cat", "dog\x0b2")
    with pytest.warns(UserWarning, match=r"names\.txt has 2 classes, the network 3: they are called by their numbers"):
        assert class_names(dataset, 3) is None


def test_names_of_classes_are_those_of_the_labels(tmp_path: Path) -> None:
    folder = str(folders(tmp_path, val=["ant", "bee"], test=["cat"]))
    for dataset in ({"name": folder}, {"name": "torch/image_folder", "root": folder}):
        found = load_dataset(dataset, "val", replace(CONFIG, num_classes=2))
        assert isinstance(found, DecodedSource)
        assert class_names(DatasetConfig(**dataset), 2, "val") == ("ant", "bee") == tuple(found.class_names.values())
        assert class_names(DatasetConfig(**dataset), 1, "test") == ("cat",)
        assert class_names(DatasetConfig(**dataset), 2, "train") is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert class_names(DatasetConfig(str(tmp_path / "val")), 2, "test") == ("ant", "bee")
