"""Streams are kept under what is in their files, not under their names, and one that was cut short is an error."""

from __future__ import annotations

import os
import shutil
import tarfile
import types
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from helpers import ENV_ID
from image_files import CONFIG, everything, expected_pixels, hugging_face_folder, shards

from prance_env import EnvSettings
from prance_env.images.loading import load_dataset
from prance_env.images.timm_names import _version

pytest.importorskip("datasets")
pytest.importorskip("webdataset")


def hub_folder(root: Path, seed: int) -> tuple[dict[str, Any], torch.Tensor]:
    """A streamed data set, and the pixels of its validation images."""
    root.mkdir(exist_ok=True)
    data, files = hugging_face_folder(root, seed=seed)
    return {"name": f"hfids/{data}", "root": str(root / "hf"), "num_samples": 9}, expected_pixels(files)


@pytest.mark.slow
def test_a_stream_whose_files_are_written_again_is_decoded_again(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    for seed in (1, 2):
        chosen, pixels = hub_folder(tmp_path / "data", seed)
        for _ in range(2):
            source = load_dataset(chosen, "validation", CONFIG, cache_dir=cache)
            torch.testing.assert_close(everything(source), pixels, rtol=0, atol=0)
    assert len(list(cache.iterdir())) == 2


@pytest.mark.slow
def test_equal_relative_names_of_two_projects_are_two_data_sets(
    checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    for seed, project in ((1, "one"), (2, "two")):
        _, pixels = hub_folder(tmp_path / project, seed)
        # As long, and written at the same moment.
        for file in (tmp_path / project / "data").iterdir():
            os.truncate(file, file.stat().st_size)
            os.utime(file, ns=(10**18, 10**18))
        monkeypatch.chdir(tmp_path / project)
        dataset = {"name": "hfids/data", "root": "hf", "num_samples": 9}
        arguments: dict[str, Any] = {"checkpoint": checkpoint, "dataset": dataset, "split": "validation"}
        arguments["cache_dir"] = str(tmp_path / "cache")
        env = gym.make(ENV_ID, **arguments)
        env.reset(seed=0)
        inner: Any = env.unwrapped
        torch.testing.assert_close(everything(inner.settings.engine().dataset), pixels, rtol=0, atol=0)
        settings = EnvSettings(**arguments)
        torch.testing.assert_close(everything(settings.engine().dataset), pixels, rtol=0, atol=0)
        seen.append(settings.engine().start(np.arange(9)).prob)
    assert (seen[0] != seen[1]).any()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hfds", "torch"])
def test_the_cache_of_a_data_set_that_is_written_again_is_another_one(name: str, tmp_path: Path) -> None:
    identities = []
    for seed in (1, 2):
        data, _ = hugging_face_folder(tmp_path, seed=seed)
        shutil.copytree(tmp_path / f"files-{seed}", tmp_path / "files", dirs_exist_ok=True)
        chosen = {"name": f"hfds/{data}", "root": str(tmp_path / "hf")}
        if name == "torch":
            chosen = {"name": "torch/folder", "root": str(tmp_path / "files")}
        identities.append([load_dataset(chosen, "val", CONFIG).identity() for _ in range(2)])
    assert identities[0][0] == identities[0][1] != identities[1][0] == identities[1][1]


def test_a_builder_of_tensorflow_is_known_by_its_files(tmp_path: Path) -> None:
    builder = types.SimpleNamespace(data_dir=str(tmp_path), config=object())
    (tmp_path / "x-00000-of-00001.tfrecord").write_bytes(b"12")
    found = [_version(builder), _version(builder)]
    (tmp_path / "x-00000-of-00001.tfrecord").write_bytes(b"123")
    assert found[0] == found[1] != _version(builder)


# ---- cut short ------------------------------------------------------------------------------------------------------


def cut(shard: Path, files: int) -> None:
    """Leaves the first so many files of a shard, without the end."""
    with tarfile.open(shard) as tar:
        end = tar.getmembers()[files].offset
    os.truncate(shard, end)


def test_a_shard_that_was_cut_between_two_files_is_an_error(tmp_path: Path) -> None:
    files = shards(tmp_path)
    name, cache = f"wds/{tmp_path / 'shards'}", tmp_path / "cache"
    cut(tmp_path / "shards" / "pictures-val-1.tar", 10)
    with pytest.raises(ValueError, match=r"pictures-val-1\.tar has no end: it was cut off.*on_error='skip'"):
        load_dataset(name, "val", CONFIG, cache_dir=cache)
    with (
        pytest.warns(UserWarning, match="has no end"),
        pytest.raises(ValueError, match=r"holds 14 images, .* holds 18"),
    ):
        load_dataset(name, "val", CONFIG, on_error="skip", cache_dir=cache)
    (tmp_path / "shards" / "_info.json").unlink()
    with pytest.warns(UserWarning, match="has no end"):
        source = load_dataset(name, "pictures-val-{0..1}.tar", CONFIG, on_error="skip", cache_dir=cache)
    torch.testing.assert_close(everything(source), expected_pixels(files[:14]), rtol=0, atol=0)


def test_a_shard_that_lacks_images_is_an_error_even_if_it_has_an_end(tmp_path: Path) -> None:
    shards(tmp_path)
    shard = tmp_path / "shards" / "pictures-val-1.tar"
    cut(shard, 10)
    shard.write_bytes(shard.read_bytes() + bytes(10240))
    for _ in range(2):  # nothing of it is taken for complete the second time
        with pytest.raises(ValueError, match=r"holds 14 images, but says that it holds 18.*_info\.json"):
            load_dataset(f"wds/{tmp_path / 'shards'}", "val", CONFIG, cache_dir=tmp_path / "cache")


def test_shards_hold_as_many_images_as_the_example_of_the_help_says(tmp_path: Path) -> None:
    shards(tmp_path, info=False)
    chosen = {"name": "wds/shards", "root": str(tmp_path / "shards"), "num_samples": 18}
    split = "pictures-val-{0..1}.tar"
    assert len(load_dataset(chosen, split, CONFIG, cache_dir=tmp_path / "cache")) == 18
    with pytest.raises(ValueError, match=r"holds 18 images, but says that it holds 50000"):
        load_dataset({**chosen, "num_samples": 50000}, split, CONFIG, cache_dir=tmp_path / "cache")


def test_broken_images_that_are_left_out_are_not_missing(tmp_path: Path) -> None:
    shards(tmp_path, broken=(4, 10))
    with pytest.warns(UserWarning, match="cannot be decoded"):
        source = load_dataset(
            f"wds/{tmp_path / 'shards'}", "val", CONFIG, on_error="skip", cache_dir=tmp_path / "cache"
        )
    assert len(source) == 16


def test_a_stream_that_is_shorter_than_one_says_is_an_error(tmp_path: Path) -> None:
    chosen, _ = hub_folder(tmp_path, 0)
    with pytest.raises(ValueError, match=r"holds 9 images, but says that it holds 10.*num_samples"):
        load_dataset({**chosen, "num_samples": 10}, "validation", CONFIG, cache_dir=tmp_path / "cache")
