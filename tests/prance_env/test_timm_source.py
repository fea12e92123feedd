"""Data sets by timm's names: torchvision, Hugging Face, WebDataset shards, streams."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from image_files import CONFIG, everything, expected_pixels, files_of, hugging_face_folder, shards

from prance_env.images.loading import load_dataset

# ---- timm's names ---------------------------------------------------------------------------------------------------


def test_a_torchvision_data_set_by_its_timm_name(folder: Path) -> None:
    source = load_dataset({"name": "torch/folder", "root": str(folder)}, "val", CONFIG)
    torch.testing.assert_close(everything(source), expected_pixels(files_of(folder / "val")), rtol=0, atol=0)
    assert source.labels.tolist() == [0] * 12 + [1] * 12 + [2] * 12
    with pytest.raises(ValueError, match=r"split='tset' is unknown.*'val'"):
        load_dataset({"name": "torch/folder", "root": str(folder)}, "tset", CONFIG)
    with pytest.raises(ValueError, match=r"'torch/nosuch'.*could not be opened.*nosuch"):
        load_dataset({"name": "torch/nosuch", "root": str(folder)}, "val", CONFIG)


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


@pytest.mark.parametrize("num_workers", [0, 2])
def test_shards_are_decoded_once_into_a_memory_map(
    num_workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = shards(tmp_path)
    name = f"wds/{tmp_path / 'shards'}"
    source = load_dataset(name, "val", CONFIG, num_workers, cache_dir=tmp_path / "cache")
    torch.testing.assert_close(everything(source), expected_pixels(files), rtol=0, atol=0)
    assert source.labels.tolist() == [0] * 6 + [1] * 6 + [2] * 6

    monkeypatch.setattr("prance_env.images.pixel_map._decoded", None)  # the second time nothing is decoded
    again = load_dataset(name, "val", CONFIG, cache_dir=tmp_path / "cache")
    torch.testing.assert_close(everything(again), everything(source), rtol=0, atol=0)
    assert again.identity() == source.identity()
    with pytest.raises(ValueError, match=r"could not be opened.*nosuch"):
        load_dataset(name, "nosuch", CONFIG, cache_dir=tmp_path / "cache")


@pytest.mark.parametrize("failing", ["folder", "disk"])
def test_shards_are_kept_in_memory_where_nothing_can_be_written(
    failing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, cache = shards(tmp_path), tmp_path / "cache"
    if failing == "folder":
        cache.write_text("")
    else:

        def full(path: Path) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("supernet.files.flush", full)
    with pytest.warns(UserWarning, match=r"cannot be written.*kept in memory") as warned:
        source = load_dataset(f"wds/{tmp_path / 'shards'}", "val", CONFIG, cache_dir=cache)
    assert len([w for w in warned if "kept in memory" in str(w.message)]) == 1
    torch.testing.assert_close(everything(source), expected_pixels(files), rtol=0, atol=0)
    assert source.labels.tolist() == [0] * 6 + [1] * 6 + [2] * 6


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
