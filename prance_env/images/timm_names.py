"""Data sets by their names in timm: torchvision's, Hugging Face's, TensorFlow's, and WebDataset shards."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from .config import DatasetConfig
from .decoded import DecodedSource
from .pixel_map import StreamItem, pixel_map
from .source import ImageDataset, ImageSource
from .transform import ImageTransform

# Names of one split, the most usual first; readers differ in which they know.
_SPLITS = {"val": ("val", "validation", "valid"), "validation": ("validation", "val", "valid")}
# torchvision's data sets take every unknown split for the test images.
_TORCH_SPLITS = ("train", "training", "val", "valid", "validation", "eval", "test")


@dataclass(frozen=True)
class Items:
    """An indexable timm data set by number.

    Attributes:
        items: A `timm.data.ImageDataset`, or a torchvision data set.
        config: What it was opened with.
        split: Name of the split.
        fingerprint: What Hugging Face knows it by, or a digest of the labels.
    """

    items: Any
    config: DatasetConfig
    split: str
    fingerprint: str

    def __len__(self) -> int:
        return len(self.items)

    def open(self, index: int) -> Image.Image:
        """Opens one; may raise anything if it is broken."""
        reader = getattr(self.items, "reader", None)
        return self.items[index][0] if reader is None else Image.open(reader[index][0])

    def name(self, index: int) -> str:
        """Its file name if the reader knows it, else the number."""
        try:
            name = self.items.filename(index)
        except (AttributeError, KeyError, TypeError):
            name = None
        return f"{self.config.name} {self.split}: {name or f'[{index}]'}"

    def identity(self) -> str:
        """What tells these files from others."""
        return f"{self.config} {self.split} {self.fingerprint}"


def load_timm(
    config: DatasetConfig,
    split: str,
    transform: ImageTransform,
    num_workers: int,
    on_error: str,
    cache_dir: Path,
) -> ImageSource:
    """Opens a data set of `timm.data.create_dataset`.

    What can be indexed is decoded when it is needed. A stream is decoded once, from beginning to end, into a file in
    `cache_dir` that is then mapped into memory.

    Args:
        config: What to open.
        split: As the reader calls it; "val" is also looked for under its usual other names.
        transform: Brings images to size.
        num_workers: Processes that decode.
        on_error: "raise" or "skip", what to do with broken images.
        cache_dir: For streams.

    Raises:
        ValueError: If timm cannot open it, or the split is unknown.
        OSError: If an image of a stream is broken and `on_error` is "raise".
    """
    if config.prefix == "wds":
        return _load_shards(config, split, transform, num_workers, on_error, cache_dir)
    opened, split = _open(config, split)
    if config.prefix == "hfds":
        _check_columns(opened.reader, config)
    if config.prefix in ("hfids", "tfds"):

        def stream() -> Iterator[StreamItem]:
            for number, (image, label) in enumerate(opened):
                yield StreamItem(f"{config.name} {split}: [{number}]", image, int(label))

        identity = f"{config} {split} {transform}"
        return pixel_map(stream, transform, identity, cache_dir, num_workers, on_error)
    labels = torch.tensor(_labels(opened), dtype=torch.int64)
    known = getattr(getattr(getattr(opened, "reader", None), "dataset", None), "_fingerprint", None)
    fingerprint = known or hashlib.sha256(labels.numpy().tobytes()).hexdigest()
    return DecodedSource(Items(opened, config, split, fingerprint), labels, transform, num_workers, on_error)


def _open(config: DatasetConfig, split: str) -> tuple[Any, str]:
    """The data set, and the name under which the reader knows the split."""
    from timm.data import create_dataset

    if config.prefix == "torch" and split not in _TORCH_SPLITS:
        raise ValueError(f"split={split!r} is unknown; choose one of {_TORCH_SPLITS}.")
    options: dict[str, Any] = {
        "class_map": config.read_class_map(),
        "input_key": config.input_key,
        "target_key": config.target_key,
        "num_samples": config.num_samples,
    }
    problems = []
    for name in _SPLITS.get(split, (split,)):
        try:
            return create_dataset(
                config.name,
                root=config.root,
                split=name,
                is_training=False,
                download=config.download,
                input_img_mode="",
                **{k: v for k, v in options.items() if v is not None},
            ), name
        except Exception as e:
            problems.append(f"split {name!r}: {type(e).__name__}: {e}")
    raise ValueError(
        f"dataset={config.name!r} with root={config.root!r} could not be opened. {' '.join(problems)} Check the name "
        "and the split; pass dataset={'name': ..., 'root': FOLDER, 'download': True} to have it fetched into FOLDER."
    )


def _check_columns(reader: Any, config: DatasetConfig) -> None:
    row = reader.dataset[0]
    # timm casts the image column, which makes an empty one where there is none.
    columns = [name for name, value in row.items() if value is not None]
    for what, key in (("input_key", reader.image_key), ("target_key", reader.label_key)):
        if key not in columns:
            raise ValueError(f"dataset={config.name!r} has no column {what}={key!r}; it has {columns}.")


def _labels(opened: Any) -> list[int]:
    """Labels of an indexable data set, if possible without decoding an image."""
    reader: Any = getattr(opened, "reader", None)
    if hasattr(reader, "iter_targets"):
        labels = list(reader.iter_targets())
    elif reader is not None:
        labels = [reader[i][1] for i in range(len(reader))]
    else:
        known = getattr(opened, "targets", None)
        labels = [opened[i][1] for i in range(len(opened))] if known is None else list(known)
    try:
        return [-1 if label is None else int(label) for label in labels]
    except (TypeError, ValueError) as e:
        raise ValueError(f"The labels are not single whole numbers, but such as {labels[0]!r}; pass target_key.") from e


def _load_shards(
    config: DatasetConfig, split: str, transform: ImageTransform, num_workers: int, on_error: str, cache_dir: Path
) -> ImageDataset:
    """timm finds the shards; reading them here keeps the name of every sample, which its reader loses."""
    import webdataset

    config = replace(config, root=config.root or config.name.partition("/")[2])
    opened, split = _open(config, split)
    reader = opened.reader
    shards = [os.path.join(reader.root, name) for name in reader.split_info.filenames]
    endings = reader.input_key.split(";")
    target_key = config.target_key or reader.split_info.alt_label

    def stream() -> Iterator[StreamItem]:
        for sample in webdataset.DataPipeline(webdataset.SimpleShardList(shards), webdataset.tarfile_to_samples()):
            name = f"{sample['__url__']}: {sample['__key__']}"
            image = next((sample[ending] for ending in endings if ending in sample), None)
            try:
                label = int(json.loads(sample["json"])[target_key] if target_key else sample["cls"])
            except (KeyError, TypeError, ValueError) as e:
                where = f"{target_key!r} in its .json" if target_key else ".cls"
                raise ValueError(f"{name} has no whole number as label in {where}; pass target_key.") from e
            if image is None:
                found = sorted(k for k in sample if not k.startswith("__"))
                raise ValueError(f"{name} has no image ending in {endings}, only {found}; pass input_key.")
            yield StreamItem(name, image, label)

    stats = [(name, os.stat(name).st_size, os.stat(name).st_mtime_ns) for name in shards if os.path.exists(name)]
    return pixel_map(
        stream, transform, f"{config} {split} {shards} {stats} {transform}", cache_dir, num_workers, on_error
    )
