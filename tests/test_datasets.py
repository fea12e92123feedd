"""Image sources: folders, timm's names, streams, registered tensors; broken images and clear errors."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import signal
import tarfile
import time
import warnings
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from conftest import CONFIGS
from helpers import ENV_ID, make_engine, transcript, unit_actions
from image_files import files_of, image_folder, picture

import prance_env
from prance_env import EnvSettings, ImageDataset, InferenceEngine, RewardConfig
from prance_env.dataset_config import DatasetConfig
from prance_env.datasets import ImageSource, check_dataset, check_fits, load_dataset, register_dataset
from prance_env.decoded_source import DecodedSource
from prance_env.image_transform import ImageTransform
from prance_env.lanes import Lanes
from supernet import Supernet, freeze, save_pretrained

CONFIG = replace(CONFIGS["conv-fixed-lln"], num_classes=3)
TRANSFORM = ImageTransform(CONFIG.img_size, 3, 0.875, "bicubic")


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Random weights for colour images of 32 pixels and three classes."""
    folder = tmp_path_factory.mktemp("supernet")
    generator = torch.Generator().manual_seed(0)
    net = freeze(Supernet(CONFIG))
    for parameter in net.parameters():
        parameter.normal_(0, 0.2, generator=generator)
    save_pretrained(net, folder)
    return str(folder)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train and val, three classes of twelve images each."""
    return image_folder(tmp_path_factory.mktemp("images"), per_class=12)


def expected_pixels(files: list[Path]) -> torch.Tensor:
    """What the files show."""
    from PIL import Image

    return torch.from_numpy(np.stack([TRANSFORM(Image.open(f)) for f in files]))


def everything(source: ImageSource) -> torch.Tensor:
    """All images."""
    return source.fetch(np.arange(len(source)))


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
    for split in ("train", "val", "test"):
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
    [("hfds/x", "datasets", r"prance-env\[hf\]"), ("wds/x", "webdataset", r"prance-env\[wds\]")],
)
def test_a_missing_package_is_named_before_anything_is_loaded(
    name: str, package: str, install: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prance_env.dataset_config.find_spec", lambda wanted: None if wanted == package else object())
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


def test_the_identity_of_tensors_is_their_content() -> None:
    images, labels = torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64)
    first = ImageDataset.from_tensors(images, labels)
    assert ImageDataset.from_tensors(images.clone(), labels.clone()).identity() == first.identity()
    other = images.clone()
    other[3, 2, 7, 7] = 1
    assert ImageDataset.from_tensors(other, labels).identity() != first.identity()
    assert ImageDataset.from_tensors(images, labels + 1).identity() != first.identity()


# ---- broken images --------------------------------------------------------------------------------------------------


def break_files(root: Path, *numbers: int) -> list[Path]:
    """Cuts files short, or fills them with text."""
    files = files_of(root)
    for k in numbers:
        files[k].write_bytes(files[k].read_bytes()[:200] if k % 2 == 0 else b"no image")
    return files


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_broken_image_is_raised_with_its_path(num_workers: int, tmp_path: Path) -> None:
    files = break_files(image_folder(tmp_path, 12, splits=()), 20)
    source = load_dataset(str(tmp_path), "val", CONFIG, num_workers)
    torch.testing.assert_close(source.fetch(np.arange(20)), expected_pixels(files[:20]), rtol=0, atol=0)
    with pytest.raises(OSError, match=rf"{files[20]} \(image 20\) cannot be decoded.*on_error='skip'"):
        everything(source)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_broken_image_is_skipped_for_the_next_good_one(num_workers: int, tmp_path: Path) -> None:
    files = break_files(image_folder(tmp_path, 12, splits=()), 3, 4, 20, 35)
    instead = {3: 5, 4: 5, 20: 21, 35: 0}
    index = np.array([4, 3, *range(36), 20])
    source = load_dataset(str(tmp_path), "val", CONFIG, num_workers, "skip")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        images = source.fetch(index)
        source.fetch(index)
    named = [str(w.message).split(" ")[0] for w in caught]
    assert sorted(named) == sorted(str(files[k]) for k in instead)
    shown = source.shown(index)
    assert shown.tolist() == [instead.get(i, i) for i in index.tolist()]
    torch.testing.assert_close(images, expected_pixels([files[i] for i in shown]), rtol=0, atol=0)


def test_the_stand_in_does_not_depend_on_the_order_of_asking(tmp_path: Path) -> None:
    files = break_files(image_folder(tmp_path, 12, splits=()), 4, 5)
    alone = load_dataset(str(tmp_path), "val", CONFIG, 0, "skip")
    with pytest.warns(UserWarning, match="image 5"):
        alone.fetch(np.array([5]))
    with pytest.warns(UserWarning, match="image 4"):
        images = alone.fetch(np.array([4]))
    torch.testing.assert_close(images, expected_pixels([files[6]]), rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:.*cannot be decoded")
def test_a_folder_of_broken_images_ends_with_an_error(tmp_path: Path) -> None:
    break_files(image_folder(tmp_path, 1, splits=()), 0, 1, 2)
    source = load_dataset(str(tmp_path), "val", CONFIG, 0, "skip")
    with pytest.raises(OSError, match="Nor can any other image"):
        source.fetch(np.array([1]))


@pytest.mark.filterwarnings("ignore:.*cannot be decoded")
def test_an_episode_on_a_broken_image_is_one_on_its_stand_in(checkpoint: str, tmp_path: Path) -> None:
    break_files(image_folder(tmp_path, 12, splits=()), 10, 11, 35)
    kwargs: dict[str, Any] = {"checkpoint": checkpoint, "dataset": str(tmp_path), "on_error": "skip"}
    envs = gym.make_vec(ENV_ID, num_envs=4, **kwargs)
    observations, infos = envs.reset(options={"index": np.array([11, 12, 35, 2])})
    assert infos["index"].tolist() == [12, 12, 0, 2]
    assert infos["label"].tolist() == [1, 1, 0, 0]
    np.testing.assert_array_equal(observations[0], observations[1])
    engine = envs.lanes.engine  # type: ignore[attr-defined]
    engine._compute = None  # from now on broken images are known to be
    np.testing.assert_array_equal(engine.start(np.array([35, 11])).index, [0, 12])
    for _ in range(3):
        infos = envs.step(np.zeros(envs.action_space.shape, dtype=np.float32))[4]
    assert infos["prediction"][0] == infos["prediction"][1]


# ---- workers --------------------------------------------------------------------------------------------------------


def folder_kwargs(checkpoint: str, folder: Path, **changes: Any) -> dict[str, Any]:
    """Arguments of an environment over `folder`."""
    return {"checkpoint": checkpoint, "dataset": str(folder), "split": "val", "num_workers": 2, **changes}


def report_transcript(kwargs: dict[str, Any], queue: Any) -> None:
    """Plays in a child and sends what happened."""
    torch.set_num_threads(1)
    queue.put(transcript(gym.make(f"prance_env:{ENV_ID}", **kwargs), seed=5))


@pytest.mark.parametrize(
    ("method", "daemon"),
    [
        ("fork", True),
        ("fork", False),
        pytest.param("spawn", True, marks=pytest.mark.slow),
        pytest.param("spawn", False, marks=pytest.mark.slow),
    ],
)
def test_children_give_the_same_episodes(method: str, daemon: bool, checkpoint: str, folder: Path) -> None:
    kwargs = folder_kwargs(checkpoint, folder)
    env = gym.make(ENV_ID, **kwargs)
    here = transcript(env, seed=5)
    source = env.unwrapped.settings.engine().dataset  # type: ignore[attr-defined]
    source.prefetch(np.arange(36))  # the parent's workers are busy when the child is forked
    context: Any = multiprocessing.get_context(method)
    queue = context.Queue()
    child = context.Process(target=report_transcript, args=(kwargs, queue), daemon=daemon)
    child.start()
    assert queue.get(timeout=120) == here
    child.join(timeout=60)
    assert child.exitcode == 0
    assert len(everything(source)) == 36


def fetch_in_child(source: ImageSource, queue: Any) -> None:
    """Decodes everything with workers of the child's own."""
    queue.put(everything(source).numpy())


@pytest.mark.parametrize(
    ("method", "daemon"), [("fork", True), ("fork", False), pytest.param("spawn", False, marks=pytest.mark.slow)]
)
def test_a_source_that_is_in_use_can_be_handed_to_a_child(method: str, daemon: bool, folder: Path) -> None:
    source = load_dataset(str(folder), "val", CONFIG, 2)
    source.prefetch(np.arange(36))
    context: Any = multiprocessing.get_context(method)
    queue = context.Queue()
    child = context.Process(target=fetch_in_child, args=(source, queue), daemon=daemon)
    child.start()
    np.testing.assert_array_equal(queue.get(timeout=120), everything(source))
    child.join(timeout=60)
    assert child.exitcode == 0


def test_a_worker_that_was_killed_is_reported_and_replaced(folder: Path) -> None:
    source = load_dataset(str(folder), "val", CONFIG, 1)
    expected = everything(source)
    assert isinstance(source, DecodedSource)
    (process,) = source._pool._executor._processes.values()  # type: ignore[union-attr]
    os.kill(process.pid, signal.SIGSTOP)
    source.prefetch(np.arange(36))
    process.kill()
    process.join()
    with pytest.raises(RuntimeError, match=r"process that decodes images has died.*num_workers"):
        everything(source)
    torch.testing.assert_close(everything(source), expected, rtol=0, atol=0)


def test_workers_end_with_their_parent(folder: Path) -> None:
    context = multiprocessing.get_context("fork")
    queue: Any = context.Queue()
    child = context.Process(target=report_workers, args=(str(folder), queue))
    child.start()
    workers = queue.get(timeout=60)
    assert len(workers) == 2
    child.kill()
    child.join()
    deadline = time.monotonic() + 20
    while any(alive(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not [pid for pid in workers if alive(pid)]


def report_workers(folder: str, queue: Any) -> None:
    """Sends the ids of its workers and waits to be killed."""
    source = load_dataset(folder, "val", CONFIG, 2)
    everything(source)
    assert isinstance(source, DecodedSource)
    queue.put(list(source._pool._executor._processes))  # type: ignore[union-attr]
    time.sleep(600)


def alive(pid: int) -> bool:
    """Whether a process runs, which a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


# ---- prefetching ----------------------------------------------------------------------------------------------------


def lanes_over(checkpoint: str, folder: Path, **changes: Any) -> Lanes:
    """Eight seeded lanes over the folder, with an engine of their own."""
    settings = EnvSettings(
        "digits", checkpoint, str(folder), "val", RewardConfig(), "cls", True, "cpu", num_workers=2, **changes
    )
    settings.engine.__func__.__globals__["shared_engine"].cache_clear()
    lanes = Lanes(settings, 8)
    for lane in range(8):
        lanes.seed(lane, lane)
    return lanes


def test_the_next_episodes_images_are_asked_for_ahead(
    checkpoint: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[int]] = []
    original = DecodedSource.prefetch
    monkeypatch.setattr(
        DecodedSource, "prefetch", lambda self, index: (asked.append(index.tolist()), original(self, index))[1]
    )
    lanes = lanes_over(checkpoint, folder, cache_mb=0.0)
    plain = lanes_over(checkpoint, folder, cache_mb=0.0)
    plain.engine.dataset.lookahead = 0  # type: ignore[misc]
    for _ in range(5):
        asked.clear()
        lanes.start(np.arange(8))
        ahead = asked[-1]
        drawn = lanes.infos()["index"]
        plain.start(np.arange(8))
        np.testing.assert_array_equal(plain.infos()["index"], drawn)
        following = [int(np.random.default_rng().__class__(_copy(lanes, i)).integers(36)) for i in range(8)]
        assert ahead == sorted(set(following))


def _copy(lanes: Lanes, lane: int) -> np.random.PCG64:
    generator = lanes.generators[lane]
    assert generator is not None
    bits = np.random.PCG64()
    bits.state = generator.bit_generator.state
    return bits


def test_what_is_prefetched_is_decoded_before_it_is_fetched_and_not_again(folder: Path) -> None:
    source = load_dataset(str(folder), "val", CONFIG, 1)
    assert isinstance(source, DecodedSource)
    index = np.array([3, 1, 30])
    source.prefetch(index)
    futures = [source._pending[i][0] for i in index.tolist()]
    for future in futures:
        future.result(timeout=60)
    source._pool.submit = None  # type: ignore[assignment,method-assign]
    source._work = lambda indices: [] if not indices else pytest.fail(f"{indices} decoded again")  # type: ignore[assignment]
    files = files_of(folder / "val")
    torch.testing.assert_close(source.fetch(index), expected_pixels([files[i] for i in index]), rtol=0, atol=0)
    assert not source._pending


def test_prefetched_images_that_nobody_fetches_are_forgotten(folder: Path) -> None:
    source = load_dataset(str(folder), "val", CONFIG, 1)
    assert isinstance(source, DecodedSource)
    source.lookahead = 10
    for begin in range(0, 30, 5):
        source.prefetch(np.arange(begin, begin + 5))
    assert list(source._pending) == list(range(20, 30))
    source.prefetch(np.arange(20, 23))  # asked for again: now the youngest
    source.prefetch(np.arange(0, 7))
    assert list(source._pending) == [20, 21, 22, *range(7)]
    assert all(isinstance(f, Future) for f, _ in source._pending.values())


def test_the_next_chunk_is_decoded_while_the_network_computes(
    checkpoint: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prance_env.engine.CACHE_BATCH", 10)
    engine = lanes_over(checkpoint, folder).engine
    pending: list[list[int]] = []
    original = Supernet.begin
    monkeypatch.setattr(
        Supernet, "begin", lambda net, images: (pending.append(list(engine.dataset._pending)), original(net, images))[1]
    )
    engine.start(np.arange(36))
    assert pending == [list(range(10, 20)), list(range(20, 30)), list(range(30, 36)), []]


def test_a_full_cache_needs_no_prefetching(checkpoint: str, folder: Path) -> None:
    lanes = lanes_over(checkpoint, folder)
    assert lanes.engine.lookahead > 0
    lanes.engine.start(np.arange(36))
    assert lanes.engine.lookahead == 0


# ---- timm's names ---------------------------------------------------------------------------------------------------


def test_a_torchvision_data_set_by_its_timm_name(folder: Path) -> None:
    source = load_dataset({"name": "torch/folder", "root": str(folder)}, "val", CONFIG)
    torch.testing.assert_close(everything(source), expected_pixels(files_of(folder / "val")), rtol=0, atol=0)
    assert source.labels.tolist() == [0] * 12 + [1] * 12 + [2] * 12
    with pytest.raises(ValueError, match=r"split='tset' is unknown.*'val'"):
        load_dataset({"name": "torch/folder", "root": str(folder)}, "tset", CONFIG)
    with pytest.raises(ValueError, match=r"'torch/nosuch'.*could not be opened.*nosuch"):
        load_dataset({"name": "torch/nosuch", "root": str(folder)}, "val", CONFIG)


def hugging_face_folder(root: Path, broken: tuple[int, ...] = ()) -> tuple[Path, list[Path]]:
    """A parquet data set with the splits train and validation, and the files that went into the latter."""
    datasets = pytest.importorskip("datasets")
    (root / "data").mkdir()
    image_folder(root / "files", 3)
    for split, name in (("train", "train"), ("val", "validation")):
        files = break_files(root / "files" / split, *broken)
        rows = {
            "image": [{"bytes": f.read_bytes(), "path": f.name} for f in files],
            "label": [int(f.parent.name[-1]) for f in files],
        }
        features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(3))
        datasets.Dataset.from_dict(rows, features=features).to_parquet(str(root / "data" / f"{name}.parquet"))
    return root / "data", files


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_hugging_face_data_set(num_workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, files = hugging_face_folder(tmp_path)
    chosen = {"name": f"hfds/{data}", "root": str(tmp_path / "hf")}
    source = load_dataset(chosen, "val", CONFIG, num_workers)  # whose own name is "validation"
    torch.testing.assert_close(everything(source), expected_pixels(files), rtol=0, atol=0)
    assert source.labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3
    assert load_dataset(chosen, "validation", CONFIG).identity() == source.identity()
    assert load_dataset(chosen, "train", CONFIG).identity() != source.identity()
    with pytest.raises(ValueError, match=r"could not be opened.*'tset'.*validation"):
        load_dataset(chosen, "tset", CONFIG)
    for key in ("input_key", "target_key"):
        with pytest.raises(ValueError, match=rf"no column {key}='picture'; it has \['image', 'label'\]"):
            load_dataset({**chosen, key: "picture"}, "val", CONFIG)


def test_a_broken_image_of_a_hugging_face_data_set_is_named(tmp_path: Path) -> None:
    data, files = hugging_face_folder(tmp_path, broken=(4,))
    source = load_dataset({"name": f"hfds/{data}", "root": str(tmp_path / "hf")}, "val", CONFIG)
    with pytest.raises(OSError, match=rf"{data} validation: {files[4].name} \(image 4\) cannot be decoded"):
        everything(source)


def shards(root: Path, broken: tuple[int, ...] = (), info: bool = True, label: str = "cls") -> list[Path]:
    """Two WebDataset shards of the validation images of a folder, which are returned."""
    pytest.importorskip("webdataset")
    image_folder(root / "files", 6)
    files = break_files(root / "files" / "val", *broken)
    (root / "shards").mkdir()
    for shard in range(2):
        with tarfile.open(root / "shards" / f"pictures-val-{shard}.tar", "w") as tar:
            for k in range(9 * shard, 9 * shard + 9):
                value = str(files[k].parent.name[-1])
                sidecar = ("cls", value) if label == "cls" else ("json", json.dumps({label: int(value)}))
                for ending, data in ((files[k].suffix[1:], files[k].read_bytes()), (sidecar[0], sidecar[1].encode())):
                    entry = tarfile.TarInfo(f"sample{k:04d}.{ending}")
                    entry.size = len(data)
                    tar.addfile(entry, io.BytesIO(data))
    if info:
        names = [f"pictures-val-{k}.tar" for k in range(2)]
        split = {"name": "val", "num_samples": 18, "filenames": names, "shard_lengths": [9, 9]}
        (root / "shards" / "_info.json").write_text(json.dumps({"splits": {"val": split}}))
    return files


@pytest.mark.parametrize("num_workers", [0, 2])
def test_shards_are_decoded_once_into_a_memory_map(
    num_workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = shards(tmp_path)
    name = f"wds/{tmp_path / 'shards'}"
    source = load_dataset(name, "val", CONFIG, num_workers, cache_dir=tmp_path / "cache")
    torch.testing.assert_close(everything(source), expected_pixels(files), rtol=0, atol=0)
    assert source.labels.tolist() == [0] * 6 + [1] * 6 + [2] * 6

    monkeypatch.setattr("prance_env.pixel_map._decoded", None)  # the second time nothing is decoded
    again = load_dataset(name, "val", CONFIG, cache_dir=tmp_path / "cache")
    torch.testing.assert_close(everything(again), everything(source), rtol=0, atol=0)
    assert again.identity() == source.identity()
    with pytest.raises(ValueError, match=r"could not be opened.*nosuch"):
        load_dataset(name, "nosuch", CONFIG, cache_dir=tmp_path / "cache")


def test_shards_are_given_by_braces_and_labels_by_a_key(tmp_path: Path) -> None:
    shards(tmp_path, info=False, label="kind")
    chosen = {"name": "wds/pictures", "root": str(tmp_path / "shards"), "target_key": "kind"}
    source = load_dataset(chosen, "pictures-val-{0..1}.tar", CONFIG, cache_dir=tmp_path / "cache")
    assert source.labels.tolist() == [0] * 6 + [1] * 6 + [2] * 6
    with pytest.raises(ValueError, match=r"pictures-val-0.tar: sample0000 has no whole number.*target_key"):
        load_dataset({**chosen, "target_key": "sort"}, "pictures-val-{0..1}.tar", CONFIG, cache_dir=tmp_path / "c")
    with pytest.raises(ValueError, match=r"sample0000 has no image ending in \['webp'\].*'jpg'.*input_key"):
        load_dataset({**chosen, "input_key": "webp"}, "pictures-val-{0..1}.tar", CONFIG, cache_dir=tmp_path / "c")


def test_a_broken_image_in_a_shard_is_named_and_raised_or_left_out(tmp_path: Path) -> None:
    files = shards(tmp_path, broken=(4, 10))
    name = f"wds/{tmp_path / 'shards'}"
    with pytest.raises(OSError, match=r"pictures-val-0.tar: sample0004 cannot be decoded.*on_error='skip'"):
        load_dataset(name, "val", CONFIG, cache_dir=tmp_path / "cache")
    with pytest.warns(UserWarning, match=r"pictures-val-.*tar: sample00(04|10) cannot be decoded") as caught:
        source = load_dataset(name, "val", CONFIG, on_error="skip", cache_dir=tmp_path / "cache")
    assert sum("cannot be decoded" in str(w.message) for w in caught) == 2
    good = [f for k, f in enumerate(files) if k not in (4, 10)]
    torch.testing.assert_close(everything(source), expected_pixels(good), rtol=0, atol=0)
    assert source.labels.tolist() == [int(f.parent.name[-1]) for f in good]


def test_a_memory_map_that_is_damaged_is_made_again(tmp_path: Path) -> None:
    files = shards(tmp_path)
    name, cache = f"wds/{tmp_path / 'shards'}", tmp_path / "cache"
    load_dataset(name, "val", CONFIG, cache_dir=cache)
    (made,) = cache.iterdir()
    header = (made / "header.json").read_bytes()

    def damage(file: str, data: bytes) -> None:
        (made / file).write_bytes(data)
        with pytest.warns(UserWarning, match=f"{made} is damaged"):
            source = load_dataset(name, "val", CONFIG, cache_dir=cache)
        torch.testing.assert_close(everything(source), expected_pixels(files), rtol=0, atol=0)

    damage("pixels", (made / "pixels").read_bytes()[:-1])
    damage("labels", b"")
    damage("header.json", header[:-5])
    damage("header.json", header.replace(b"18", b"17"))
    (made / ".pixels.left").write_bytes(b"of a killed process")
    (made / "header.json").unlink()
    load_dataset(name, "val", CONFIG, cache_dir=cache)
    assert not list(made.glob(".*"))


def test_a_stream_of_hugging_face(tmp_path: Path) -> None:
    data, files = hugging_face_folder(tmp_path)
    chosen = {"name": f"hfids/{data}", "root": str(tmp_path / "hf"), "num_samples": 9}
    source = load_dataset(chosen, "validation", CONFIG, cache_dir=tmp_path / "cache")
    torch.testing.assert_close(everything(source), expected_pixels(files), rtol=0, atol=0)
    assert source.labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3


# ---- and an engine over them ----------------------------------------------------------------------------------------


def test_search_and_evaluation_do_without_a_difficulty(any_net: Supernet) -> None:
    from agents.static_search import evolve_static_front

    engine = make_engine(any_net, 12)
    assert isinstance(engine.dataset, ImageDataset)
    plain = ImageDataset.from_tensors(engine.dataset.images, engine.dataset.labels)
    found = evolve_static_front(InferenceEngine(any_net, plain), np.arange(12), 40, seed=0)
    assert len(found.macs_fraction) == 40
    assert np.isfinite(unit_actions(any_net.space, 2)).all()
