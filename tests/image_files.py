"""Small folders of image files whose contents are known, and a supernet that they fit."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CONFIGS
from helpers import random_net
from PIL import Image

from prance_env import InferenceEngine
from prance_env.images.loading import load_dataset
from prance_env.images.source import ImageSource
from prance_env.images.transform import ImageTransform

SIZE = (50, 44)
CONFIG = replace(CONFIGS["conv-fixed-lln"], num_classes=3)
TRANSFORM = ImageTransform(CONFIG.img_size, 3, 0.875, "bicubic")


def picture(seed: int, size: tuple[int, int] = SIZE) -> Image.Image:
    """A smooth picture in colour, different for every seed, so that JPEG hardly changes it."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (3, 3, 3)).astype(np.uint8))
    return coarse.resize(size, Image.Resampling.BICUBIC)


def noise_file(height: int = 60, width: int = 70, seed: int = 0, kind: str = "PNG") -> bytes:
    """The bytes of a picture in grey."""
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width), np.uint8)).save(out, kind)
    return out.getvalue()


def image_folder(
    root: Path, per_class: int = 4, classes: int = 3, splits: tuple[str, ...] = ("train", "val"), seed: int = 0
) -> Path:
    """`root/<split>/<class>/<file>`, every other file a PNG; without splits, `root/<class>/<file>`."""
    for s, split in enumerate(splits or ("",)):
        for k in range(classes):
            folder = root / split / f"class_{k}"
            folder.mkdir(parents=True)
            for i in range(per_class):
                ending = "png" if i % 2 else "jpg"
                picture(10000 * seed + 1000 * s + 100 * k + i).save(folder / f"{i:03d}.{ending}")
    return root


def files_of(folder: Path) -> list[Path]:
    """In the order of the images."""
    return sorted(p for p in folder.rglob("*") if p.is_file())


def expected_pixels(files: list[Path]) -> torch.Tensor:
    """What the files show."""
    return torch.from_numpy(np.stack([TRANSFORM(Image.open(f)) for f in files]))


def everything(source: ImageSource) -> torch.Tensor:
    """All images."""
    return source.fetch(np.arange(len(source)))


def break_files(root: Path, *numbers: int) -> list[Path]:
    """Cuts files short, or fills them with text."""
    files = files_of(root)
    for k in numbers:
        files[k].write_bytes(files[k].read_bytes()[:200] if k % 2 == 0 else b"no image")
    return files


def engine_with_a_stand_in(root: Path) -> tuple[InferenceEngine, list[int]]:
    """Twelve images, of which the last of the first class is broken, and the labels of those that are shown."""
    break_files(image_folder(root, splits=("val",)), 3)
    source = load_dataset(str(root), "val", CONFIG, on_error="skip")
    return InferenceEngine(random_net(CONFIG), source), [0, 0, 0, 1] + [1] * 4 + [2] * 4


def hugging_face_folder(
    root: Path,
    broken: tuple[int, ...] = (),
    names: Sequence[str] = ("0", "1", "2"),
    fraction: float | None = None,
    seed: int = 0,
) -> tuple[Path, list[Path]]:
    """A parquet data set with the splits train and validation, and the files that went into the latter.

    Its labels are classes with names, or numbers with a fraction.
    """
    datasets = pytest.importorskip("datasets")
    (root / "data").mkdir(exist_ok=True)
    image_folder(root / f"files-{seed}", 3, seed=seed)
    for split, name in (("train", "train"), ("val", "validation")):
        files = break_files(root / f"files-{seed}" / split, *broken)
        rows = {
            "image": [{"bytes": f.read_bytes(), "path": f.name} for f in files],
            "label": [int(f.parent.name[-1]) + (fraction or 0) for f in files],
        }
        label = datasets.ClassLabel(names=list(names)) if fraction is None else datasets.Value("float64")
        features = datasets.Features(image=datasets.Image(), label=label)
        datasets.Dataset.from_dict(rows, features=features).to_parquet(str(root / "data" / f"{name}.parquet"))
    return root / "data", files


def shards(
    root: Path, broken: tuple[int, ...] = (), info: bool = True, label: str = "cls", fraction: float = 0
) -> list[Path]:
    """Two WebDataset shards of the validation images of a folder, which are returned."""
    pytest.importorskip("webdataset")
    image_folder(root / "files", 6)
    files = break_files(root / "files" / "val", *broken)
    (root / "shards").mkdir()
    for shard in range(2):
        with tarfile.open(root / "shards" / f"pictures-val-{shard}.tar", "w") as tar:
            for k in range(9 * shard, 9 * shard + 9):
                value = str(files[k].parent.name[-1])
                sidecar = ("cls", value) if label == "cls" else ("json", json.dumps({label: int(value) + fraction}))
                for ending, data in ((files[k].suffix[1:], files[k].read_bytes()), (sidecar[0], sidecar[1].encode())):
                    entry = tarfile.TarInfo(f"sample{k:04d}.{ending}")
                    entry.size = len(data)
                    tar.addfile(entry, io.BytesIO(data))
    if info:
        names = [f"pictures-val-{k}.tar" for k in range(2)]
        split = {"name": "val", "num_samples": 18, "filenames": names, "shard_lengths": [9, 9]}
        (root / "shards" / "_info.json").write_text(json.dumps({"splits": {"val": split}}))
    return files
