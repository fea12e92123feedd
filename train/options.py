"""Arguments that several commands share."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from tyro.conf import arg

Device = Annotated[str, arg(help="Torch device: cpu, cuda, cuda:1, ...")]
Threads = Annotated[int, arg(help="CPU threads of torch; 0 leaves torch's choice.")]
Split = Literal["train", "val", "test"]

Dataset = Annotated[
    str | None,
    arg(
        metavar="NAME|FOLDER|JSON",
        help="Images: digits, a folder in ImageNet's layout, a timm name such as hfds/..., or JSON such as "
        '{"name": "wds/shards", "num_samples": 50000} (docs/images.md); those of the environment id if not given.',
    ),
]
TokenMode = Annotated[
    Literal["prune", "prune_fused", "merge", "prune_merge", "tome"] | None,
    arg(help="How patches leave; as the supernet's folder says if not given."),
]
Precision = Literal["float32", "bfloat16", "float16"]
DType = Annotated[Precision, arg(help="Precision of the supernet.")]


def parse_dataset(text: str | None) -> str | dict[str, Any] | None:
    """What `--dataset` says, as environments take it: a name, or the fields of `DatasetConfig`.

    Raises:
        ValueError: If the text begins like JSON and is none.
    """
    if text is None or not text.lstrip().startswith("{"):
        return text
    try:
        fields: dict[str, Any] = json.loads(text)
    except json.JSONDecodeError as e:
        raise ValueError(
            f'--dataset {text} is not JSON ({e}); quote it for the shell: --dataset \'{{"name": "FOLDER", '
            '"crop_pct": 0.9}\'.'
        ) from e
    return fields


def set_threads(threads: int) -> None:
    """Gives torch so many threads.

    Raises:
        ValueError: If the number is negative.
    """
    import torch

    if threads < 0:
        raise ValueError(f"--threads {threads} must be 0 or more.")
    if threads:
        torch.set_num_threads(threads)
