"""Data sets run nothing, whatever they name or hold, and nothing in a folder hangs or takes gigabytes."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import ENV_ID
from image_files import CONFIG, everything, expected_pixels, files_of, image_folder, picture, shards
from PIL import EpsImagePlugin, Image

from prance_env import EnvSettings
from prance_env.images.config import DatasetConfig
from prance_env.images.loading import load_dataset
from prance_env.images.opening import open_image
from supernet.files import state_of


@pytest.mark.parametrize(
    ("dataset", "place"),
    [
        ({"name": "wds/x", "root": "pipe:touch {marker}"}, "pipe:touch"),
        ({"name": "wds/pipe:touch {marker}"}, "pipe:touch"),
        ({"name": "wds/x", "root": "https://x.invalid/' ; touch {marker} ; '"}, "https://x.invalid"),
        ({"name": "wds/x", "root": "sftp://x.invalid/y"}, "sftp:"),
        ({"name": "wds/x", "root": "file:///data"}, "file:"),
        ({"name": "torch/cifar10", "root": "pipe:touch {marker}"}, "pipe:touch"),
        ({"name": "hfds/hf://datasets/a/b"}, "hf:"),
    ],
)
def test_what_would_run_or_open_anything_else_is_refused(
    dataset: dict[str, str], place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prance_env.images.config.find_spec", lambda name: True)  # before packages are looked for
    chosen = {k: v.replace("{marker}", str(tmp_path / "marker")) for k, v in dataset.items()}
    with pytest.raises(ValueError, match=rf"would read from .{place}.*allowed are paths"):
        EnvSettings.from_id(ENV_ID, dataset=chosen)
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize(
    ("dataset", "fetches"),
    [
        ("digits", False),
        ("{folder}", False),
        ({"name": "torch/folder", "root": "{folder}"}, False),
        ({"name": "torch/cifar10", "root": "{folder}", "download": True}, True),
        ("hfds/user/pictures", True),
        ("hfds/{folder}", False),
        ({"name": "wds/x", "root": "https://x.invalid/shards"}, True),
        ({"name": "wds/{folder}"}, False),
    ],
)
def test_what_is_read_from_the_network_is_known(dataset: Any, fetches: bool, tmp_path: Path) -> None:
    def filled(value: Any) -> Any:
        return value.replace("{folder}", str(tmp_path)) if isinstance(value, str) else value

    chosen = {k: filled(v) for k, v in dataset.items()} if isinstance(dataset, dict) else filled(dataset)
    assert DatasetConfig.from_value(chosen).fetches == fetches


def test_members_of_shards_are_not_unpickled(tmp_path: Path) -> None:
    files = shards(tmp_path)
    shard = next((tmp_path / "shards").glob("*-0.tar"))
    code = f"cos\nsystem\n(S'touch {tmp_path / 'marker'}'\ntR.".encode()
    with tarfile.open(shard) as tar:
        members = [(m.name, tar.extractfile(m).read()) for m in tar if m.isfile()]  # type: ignore[union-attr]
    with tarfile.open(shard, "w") as tar:
        for name, data in [*members[:2], *((f"sample0000.{e}", code) for e in ("pyd", "pickle", "pth")), *members[2:]]:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    source = load_dataset(f"wds/{tmp_path / 'shards'}", "val", CONFIG, cache_dir=tmp_path / "cache")
    torch.testing.assert_close(everything(source), expected_pixels(files), rtol=0, atol=0)
    assert not (tmp_path / "marker").exists()


def test_postscript_is_not_run_whatever_its_file_is_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = image_folder(tmp_path / "images")
    file = files_of(folder / "val")[1]
    picture(0).save(tmp_path / "x.eps")
    shutil.copy(tmp_path / "x.eps", file)
    called: list[Any] = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *args, **named: called.append(args))
    for dataset in (str(folder), {"name": "torch/folder", "root": str(folder)}):
        with pytest.raises(OSError, match=f"{file.name}.*cannot identify"):
            everything(load_dataset(dataset, "val", CONFIG))
    assert not called


def test_only_regular_files_are_images(tmp_path: Path) -> None:
    folder = image_folder(tmp_path / "images")
    files = files_of(folder / "val")
    os.mkfifo(folder / "val" / "class_0" / "000a.png")
    (folder / "val" / "class_1" / "folder.png").mkdir()
    (folder / "val" / "class_2" / "gone.png").symlink_to("nowhere")
    assert len(load_dataset(str(folder), "val", CONFIG)) == len(files)
    with pytest.raises(OSError, match="not a regular file"):
        open_image(folder / "val" / "class_0" / "000a.png")


@pytest.mark.parametrize("place", ["val/loop", "val/class_0/loop"])
@pytest.mark.parametrize("target", ["/", "images"])
def test_links_that_lead_back_are_named(place: str, target: str, tmp_path: Path) -> None:
    folder = image_folder(tmp_path / "images")
    (folder / place).symlink_to(target if target == "/" else folder)
    (folder / "train" / "loop").mkdir()
    state_of(folder)  # comes to an end
    with pytest.raises(ValueError, match=f"{place} is a link to a folder that it is in"):
        load_dataset(str(folder), "val", CONFIG)


def test_links_that_lead_elsewhere_are_followed(tmp_path: Path) -> None:
    folder = image_folder(tmp_path / "images")
    (folder / "val" / "class_2").rename(tmp_path / "elsewhere")
    (folder / "val" / "class_2").symlink_to(tmp_path / "elsewhere")
    source = load_dataset(str(folder), "val", CONFIG)
    files = [p for k in range(3) for p in sorted((folder / "val" / f"class_{k}").iterdir())]
    torch.testing.assert_close(everything(source), expected_pixels(files), rtol=0, atol=0)


def test_pictures_that_would_take_gigabytes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = image_folder(tmp_path / "images")
    file = files_of(folder / "val")[1]
    Image.new("L", (1, 200_000)).save(file)
    with pytest.raises(OSError, match=f"{file.name}.*1 x 200000 pixels are too long and narrow"):
        everything(load_dataset(str(folder), "val", CONFIG))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 199_999)
    with pytest.raises(OSError, match=f"{file.name}.*more than 199999"):
        everything(load_dataset(str(folder), "val", CONFIG))


def test_file_names_need_not_be_utf_8(checkpoint: str, tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/im\xe4ges"))
    image_folder(folder)
    for file in files_of(folder / "val"):
        file.rename(file.with_name(os.fsdecode(b"\xff") + file.name))
    settings = EnvSettings.from_id(
        ENV_ID, dataset=str(folder), split="val", checkpoint=checkpoint, cache_dir=str(tmp_path / "cache")
    )
    engine = settings.engine()
    assert np.isfinite(engine.observe(engine.start(np.arange(4)), "cls").numpy()).all()
