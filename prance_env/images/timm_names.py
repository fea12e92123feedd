"""Data sets by their names in timm: torchvision's, Hugging Face's, TensorFlow's, and WebDataset shards."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import torch
from PIL import Image

from supernet import SupernetConfig
from supernet.files import digest_of

from .config import ADDRESS, DatasetConfig
from .decoded import SKIP, DecodedSource
from .labels import reader_labels, warn_of_few, whole
from .opening import open_image
from .pixel_map import StreamItem, pixel_map
from .source import ImageDataset, ImageSource
from .transform import ImageTransform

# Names of one split, the most usual first; readers differ in which they know.
_SPLITS = {"val": ("val", "validation", "valid"), "validation": ("validation", "val", "valid")}
# torchvision's data sets take every unknown split for the test images.
END_OF_TAR = 1024
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
        return self.items[index][0] if reader is None else open_image(reader[index][0])

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
    net: SupernetConfig,
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
        net: The supernet; fewer classes, or names that it does not know, are worth a warning.

    Raises:
        ValueError: If timm cannot open it, the split is unknown, a label is no whole number, or a stream holds fewer
            images than it says.
        OSError: If an image of a stream is broken and `on_error` is "raise".
    """
    if config.prefix == "wds":
        return _load_shards(config, split, transform, num_workers, on_error, cache_dir)
    opened, split = _open(config, split)
    source = f"{config.name} {split}"
    reader: Any = getattr(opened, "reader", None)
    if config.prefix == "hfds":
        _check_columns(reader, config)
    names = _class_names(reader, config, split)
    label_of = reader_labels(names, config, source, net.class_names)
    called = {label_of(k, source): name for k, name in enumerate(names)}
    if names:
        warn_of_few(len(names), net, config, source)
    if config.prefix in ("hfids", "tfds"):

        def stream() -> Iterator[StreamItem]:
            for number, (image, label) in enumerate(_undecoded(reader, opened)):
                name = f"{source}: [{number}]"
                yield StreamItem(name, _bytes_of(image) if isinstance(image, dict) else image, label_of(label, name))

        named = net.class_names if net.class_names and config.class_map is None else ""
        identity = f"{config} {config.read_class_map()} {split} {_version(reader.builder)} {transform}{named}"
        decoded = pixel_map(stream, transform, identity, cache_dir, num_workers, on_error, reader.num_samples)
        return replace(decoded, class_names=called)
    labels = torch.tensor(
        [-1 if label is None else label_of(label, f"{source}: [{i}]") for i, label in enumerate(_labels(opened))],
        dtype=torch.int64,
        device="cpu",
    )
    known = getattr(getattr(reader, "dataset", None), "_fingerprint", None)
    if known is None:
        known = digest_of(config.paths()) + hashlib.sha256(labels.numpy().tobytes()).hexdigest()
    return DecodedSource(Items(opened, config, split, known), labels, transform, num_workers, on_error, called)


def _undecoded(reader: Any, opened: Any) -> Any:
    """A stream whose images nobody has opened yet: Hugging Face would try every format that Pillow knows."""
    if hasattr(reader, "ds"):
        from datasets import Image as ImageFeature

        reader._lazy_init()
        reader.ds = reader.ds.cast_column(reader.input_key, ImageFeature(decode=False))
    return opened


def _bytes_of(image: dict[str, Any]) -> bytes:
    return image["bytes"] if image.get("bytes") else Path(image["path"]).read_bytes()


def _version(builder: Any) -> str:
    """What tells the files of a streaming builder from an earlier or another version of them.

    Args:
        builder: Of Hugging Face, which knows its files and, on the hub, their revision; or of TensorFlow Datasets.
    """
    folder = getattr(builder, "data_dir", None)  # TensorFlow's, with the version in its name
    files = [str(path) for paths in (getattr(builder.config, "data_files", None) or {}).values() for path in paths]
    paths = [path for path in (folder, *files) if path is not None and os.path.exists(path)]
    told = [getattr(builder, name, None) for name in ("config_id", "hash")]
    return f"{told} {files} {folder} {digest_of(paths)}"


def _open(config: DatasetConfig, split: str) -> tuple[Any, str]:
    """The data set, and the name under which the reader knows the split."""
    from timm.data import create_dataset

    if config.prefix == "torch" and split not in _TORCH_SPLITS:
        raise ValueError(f"split={split!r} is unknown; choose one of {_TORCH_SPLITS}.")
    options: dict[str, Any] = {
        "input_key": config.input_key,
        "target_key": config.target_key,
        "num_samples": config.num_samples,
    }
    problems = []
    for name in _SPLITS.get(split, (split,)):
        try:
            opened = create_dataset(
                _pinned(config),
                root=config.root,
                split=name,
                is_training=False,
                download=config.download,
                input_img_mode="",
                **{k: v for k, v in options.items() if v is not None},
            )
            if getattr(opened, "loader", None) is not None:  # torchvision's would try every format that Pillow knows
                opened.loader = open_image
            return opened, name
        except Exception as e:
            problems.append(f"split {name!r}: {type(e).__name__}: {e}")
    raise ValueError(
        f"dataset={config.name!r} with root={config.root!r} could not be opened. {' '.join(problems)} Check the name "
        "and the split; pass dataset={'name': ..., 'root': FOLDER, 'download': True} to have it fetched into FOLDER."
    )


def _pinned(config: DatasetConfig) -> str:
    """The name under which timm finds the data set; of a revision on the hub, the folder that it was fetched to."""
    prefix, slash, rest = config.name.partition("/")
    if config.revision is None:
        return config.name
    from huggingface_hub import snapshot_download

    folder = snapshot_download(rest, repo_type="dataset", revision=config.revision, cache_dir=config.root)
    return f"{prefix}{slash}{folder}"


def _check_columns(reader: Any, config: DatasetConfig) -> None:
    row = reader.dataset[0]
    # timm casts the image column, which makes an empty one where there is none.
    columns = [name for name, value in row.items() if value is not None]
    for what, key in (("input_key", reader.image_key), ("target_key", reader.label_key)):
        if key not in columns:
            raise ValueError(f"dataset={config.name!r} has no column {what}={key!r}; it has {columns}.")


def _class_names(reader: Any, config: DatasetConfig, split: str) -> list[str]:
    """What the numbers that a reader of Hugging Face or TensorFlow Datasets gives stand for; empty if unknown."""
    if config.prefix == "hfds":
        features = reader.dataset.features
    elif config.prefix in ("hfids", "tfds"):
        features = reader.builder.info.features
        if features is None:  # files say so when they are opened
            features = reader.builder.as_streaming_dataset(split=split).features
    else:
        return []
    key = config.target_key or "label"
    return list(getattr(features[key], "names", None) or []) if features is not None and key in features else []


def _labels(opened: Any) -> list[Any]:
    """Labels of an indexable data set as its reader gives them, if possible without decoding an image."""
    reader: Any = getattr(opened, "reader", None)
    if hasattr(reader, "iter_targets"):
        labels = list(reader.iter_targets())
    elif reader is not None:
        labels = [reader[i][1] for i in range(len(reader))]
    else:
        known = getattr(opened, "targets", None)
        labels = [opened[i][1] for i in range(len(opened))] if known is None else list(known)
    return labels


def _load_shards(
    config: DatasetConfig, split: str, transform: ImageTransform, num_workers: int, on_error: str, cache_dir: Path
) -> ImageDataset:
    """timm finds the shards; reading them here keeps the name of every sample, which its reader loses."""
    from webdataset.tariterators import group_by_keys, tar_file_expander

    config = replace(config, root=config.root or config.name.partition("/")[2])
    opened, split = _open(config, split)
    reader = opened.reader
    shards = [os.path.join(reader.root, name) for name in reader.split_info.filenames]
    endings = reader.input_key.split(";")
    target_key = config.target_key or reader.split_info.alt_label

    def stream() -> Iterator[StreamItem]:
        # Not by WebDataset's own opener, which runs commands; and members are not decoded by their endings, some of
        # which mean pickles: only the image, the label and the JSON of a sample are looked at, here.
        for sample in group_by_keys(tar_file_expander({"url": s, "stream": _opened(s)} for s in shards)):
            name = f"{sample['__url__']}: {sample['__key__']}"
            image = next((sample[ending] for ending in endings if ending in sample), None)
            try:
                label = whole(json.loads(sample["json"])[target_key] if target_key else sample["cls"], name)
            except (KeyError, TypeError, ValueError) as e:
                where = f"{target_key!r} in its .json" if target_key else ".cls"
                raise ValueError(f"{name} has no whole number as label in {where}; pass target_key. ({e})") from e
            if image is None:
                found = sorted(k for k in sample if not k.startswith("__"))
                raise ValueError(f"{name} has no image ending in {endings}, only {found}; pass input_key.")
            yield StreamItem(name, image, label)

    for shard in shards:
        _check_whole(shard, on_error)
    identity = f"{config} {split} {shards} {digest_of([s for s in shards if os.path.exists(s)])} {transform}"
    return pixel_map(stream, transform, identity, cache_dir, num_workers, on_error, reader.num_samples)


def _opened(shard: str) -> Any:
    """The bytes of a shard, from a file or from the web."""
    return urlopen(shard, timeout=60) if ADDRESS.fullmatch(shard) else open(shard, "rb")


def _check_whole(shard: str, on_error: str) -> None:
    """A tar ends in zeros, at least 1,024 of them; one that was cut between two files is read without complaint."""
    if not shard.endswith(".tar") or not os.path.isfile(shard):
        return
    with open(shard, "rb") as file:
        file.seek(max(0, os.path.getsize(shard) - END_OF_TAR))
        if file.read().strip(b"\0") or os.path.getsize(shard) < END_OF_TAR:
            message = f"{shard} has no end: it was cut off, and images are missing. Copy it again"
            if on_error == "raise":
                raise ValueError(f"{message}, or {SKIP}.")
            warnings.warn(f"{message}.", stacklevel=3)
