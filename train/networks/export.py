"""`prance export`: one subnet in files that run without its supernet."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from torch import Tensor
from torch.export import Dim, ExportedProgram

from supernet import StaticViT, SubnetConfig, Supernet
from supernet.checkpoint import CONFIG
from supernet.extract import DESCRIPTION, describe, extract, load_static, write_weights
from supernet.files import WEIGHTS, checksum_of
from supernet.reading import read_json
from supernet.staging import finish_commit, staged

from ..options import given_flags
from ..report.tables import Table
from .subnet_choice import choose_subnet, open_supernet

FILES = {"onnx": "model.onnx", "torch": "model.pt2", "safetensors": WEIGHTS}
TOLERANCE = 1e-4
"""Allowed difference, for logits up to 1; in proportion for larger ones, as float32 rounds them."""
BATCH_SIZES = (1, 2, 5)
ONNX_LIMIT = 2**31
"""Bytes that a protobuf file can hold."""


@dataclass(frozen=True)
class ExportedFile:
    """One file that was written.

    Attributes:
        path: Where it is.
        takes: "uint8", "float32", or both, comma-separated.
        difference: Largest absolute difference of its logits from the supernet's.
        allowed: What it may be.
    """

    path: Path
    takes: str
    difference: float
    allowed: float


@dataclass(frozen=True)
class ExportSettings:
    """What `prance export` writes."""

    format: tuple[Literal["onnx", "torch", "safetensors"], ...] = ("onnx",)
    """What to write; onnx needs the extra [export]. supernet.load_static loads safetensors."""
    supernet: str = "digits"
    """Registered name, or a folder written by save_pretrained; digits is the bundled one."""
    static: Path | None = None
    """Instead of a supernet: folder of a static network, such as prance train static writes."""
    subnet: str | None = None
    """full, min, a JSON file or JSON text of one subnet (SubnetConfig.to_json), or a static agent's file."""
    keep_rate: tuple[float, ...] = ()
    """Instead of --subnet: keep rate of every decision, or one for each stage of the token mode; 1 if not given."""
    embed_dim: int | None = None
    """Instead of --subnet: width of every decided block; the full one if not given."""
    mlp_ratio: float | None = None
    """Instead of --subnet: hidden width of every decided MLP over its width; the full one if not given."""
    uint8: bool = False
    """ONNX and torch files take uint8 images and normalise them."""
    seed: int = 0
    """Fixes the random images."""


def run_export(settings: ExportSettings, out: Path) -> None:
    """Writes one subnet to `out` and says what was written.

    Raises:
        FileNotFoundError: If there is no such supernet, or no such file with a subnet.
        ValueError: If what was asked for is not exactly one subnet, or cannot be written; see `export_subnet`.
    """
    console, earlier = Console(), _present(out)
    if settings.static is not None:
        if given := given_flags(settings, ("supernet", "subnet", "keep_rate", "embed_dim", "mlp_ratio")):
            raise ValueError(
                f"{given[0]} is for a supernet; --static {settings.static} is one network, taken as it is."
            )
        static = load_static(settings.static)
        files = export_static(static, static, out, settings.format, settings.uint8, settings.seed)
        _print(files, earlier - _present(out), console)
        console.print(f"{static.macs():,} MACs an image, {static.params():,} parameters. {_compared('network')}")
        return
    net = open_supernet(settings.supernet)
    chosen = choose_subnet(net.config, settings.subnet, settings.keep_rate, settings.embed_dim, settings.mlp_ratio)
    files = export_subnet(net, chosen, out, settings.format, settings.uint8, settings.seed)
    _print(files, earlier - _present(out), console)
    macs, full = int(net.macs(chosen)), int(net.macs())
    console.print(
        f"{macs:,} MACs an image ({macs / full:.1%} of the full network), {int(net.params(chosen)):,} parameters, "
        f"token mode {net.space.token_mode}. {_compared('supernet')}"
    )


def export_subnet(
    net: Supernet, subnet: SubnetConfig, out: Path, formats: Sequence[str], uint8: bool = False, seed: int = 0
) -> list[ExportedFile]:
    """Writes one subnet, after running every file and comparing it with the supernet.

    Args:
        net: The supernet, on the CPU in float32.
        subnet: Exactly one subnet.
        out: Folder, created if missing. `static.json` describes the network; what an earlier export wrote in other
            formats stays if it is of the same network, and is removed if not.
        formats: Keys of `FILES`.
        uint8: Whether ONNX and torch files take uint8 images and normalise them, instead of normalised float32 ones.
        seed: Seed of the random images that the comparison uses.

    Returns:
        The files, `static.json` excepted.

    Raises:
        FileExistsError: If a file would be replaced that no earlier export wrote, such as a supernet's weights.
        ValueError: If a format is unknown or an extra is missing, the subnet is not exactly one of the search space, or
            a file's logits differ by more than is allowed. Nothing is written then; earlier files stay.
    """
    return export_static(extract(net, subnet), lambda batch: net(batch, subnet), out, formats, uint8, seed)


def export_static(
    static: StaticViT,
    original: Callable[[Tensor], Tensor],
    out: Path,
    formats: Sequence[str],
    uint8: bool = False,
    seed: int = 0,
) -> list[ExportedFile]:
    """Writes a static network, after running every file and comparing it with what it was made from.

    Args:
        static: The network, on the CPU in float32.
        original: Gives logits of images, with which those of the files are compared.
        out: Folder, created if missing. `static.json` describes the network.
        formats: Keys of `FILES`.
        uint8: As of `export_subnet`.
        seed: Seed of the random images that the comparison uses.

    Returns:
        The files, `static.json` excepted.

    Raises:
        ValueError: As `export_subnet`.
    """
    _check_formats(formats)
    if "onnx" in formats and 4 * static.params() >= ONNX_LIMIT:
        raise ValueError(
            f"{static.params():,} parameters exceed the 2 GiB of an ONNX file; use --format torch or safetensors."
        )
    finish_commit(out)
    earlier = exported_files(out)
    named = {DESCRIPTION, *(FILES[name] for name in formats)}
    check_replaced(out, named, earlier, "export of one subnet")
    stale = earlier - named
    with staged(out, stale) as folder:
        takes = _write_all(static, formats, uint8, folder, out)
        images = _random_images(static, uint8, seed)
        with torch.no_grad():
            expected = [original(batch) for batch in images]
        allowed = TOLERANCE * max(1.0, max(float(logits.abs().max()) for logits in expected))
        files = []
        for path, dtypes in takes.items():
            difference = _difference(_runner(path), images, expected)
            if not difference <= allowed:
                raise ValueError(
                    f"{path.name} differs from the original by {difference:.1e} (allowed: {allowed:.1e}) and was not "
                    "kept. Other random images (--seed) tell whether two nearly equal scores changed their order."
                )
            files.append(ExportedFile(out / path.name, dtypes, difference, allowed))
        # `staged` looks at what is stale when the block ends. What is of the same subnet is not: it is described.
        stale -= {*_described(folder)["files"]}
    return files


def check_replaced(out: Path, names: Collection[str], own: Collection[str], what: str) -> None:
    """Checks that an export replaces nothing but an earlier one.

    Args:
        out: Folder.
        names: What is going to be written.
        own: What an earlier export wrote.
        what: Of which kind that is.

    Raises:
        FileExistsError: If another file has one of the names.
    """
    if others := sorted(name for name in names if name not in own and (out / name).exists()):
        raise FileExistsError(
            f"{out} holds {' and '.join(others)} of something else than an {what}; pass another --out."
        )


def exported_files(out: Path) -> set[str]:
    """Names of what an earlier export of one subnet wrote to a folder; none if what is described there is no export."""
    try:
        described = _described(out)["files"]
        names = {name for name in FILES.values() if "takes" in described.get(name, {})}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return set()
    if not names:
        return set()
    # A supernet or an adaptive model that was saved over it since has the weights.
    return {DESCRIPTION, *names} - ({WEIGHTS} if (out / CONFIG).exists() else set())


def _described(folder: Path) -> dict[str, Any]:
    return read_json(folder / DESCRIPTION, dict[str, Any], "export again into another folder")


def _present(out: Path) -> set[str]:
    """Those of `exported_files` that are there."""
    return {name for name in exported_files(out) if (out / name).is_file()}


def _write_all(static: StaticViT, formats: Sequence[str], uint8: bool, folder: Path, out: Path) -> dict[Path, str]:
    """Writes the files and their description, with what is in `out` already; returns what dtypes each takes."""
    graph = "uint8" if uint8 else "float32"
    takes = {folder / FILES[name]: "uint8, float32" if name == "safetensors" else graph for name in formats}
    if {"onnx", "torch"} & {*formats}:
        program = traced(static, uint8)
    for path in takes:
        if path.suffix == ".onnx":
            write_onnx(program, path)
        elif path.suffix == ".pt2":
            torch.export.save(program, path)
        else:
            write_weights(static, path)
    description = describe(static, [*takes]) | {"weights": checksum_of(static.state_dict())}
    for path, dtypes in takes.items():
        description["files"][path.name]["takes"] = dtypes
    description["files"] = _of_the_same(description, out) | description["files"]
    (folder / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n")
    return takes


def _of_the_same(description: dict[str, Any], out: Path) -> dict[str, Any]:
    """What `static.json` says of the files of an earlier export, if that was of the same network."""
    present = _present(out) - {DESCRIPTION}
    earlier = _described(out) if present else {"files": {}}
    if {**earlier, "files": None} != {**json.loads(json.dumps(description)), "files": None}:
        return {}
    return {name: about for name, about in earlier["files"].items() if name in present}


def _check_formats(formats: Sequence[str]) -> None:
    unknown = [name for name in formats if name not in FILES]
    if unknown or not formats:
        given = f"format={unknown} is unknown" if unknown else "--format names none"
        raise ValueError(f"{given}; choose one or more of {sorted(FILES)}.")
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if "onnx" in formats and missing:
        raise ValueError(f"--format onnx needs {' and '.join(missing)}: pip install -e '.[export]'.")


@torch.no_grad()
def traced(static: StaticViT, uint8: bool) -> ExportedProgram:
    """The computation of a static network on batches of any size, of uint8 images or of normalised ones."""
    config = static.config
    # Two images, since a size of one would be taken for a constant.
    images = torch.zeros(2, config.in_chans, config.img_size, config.img_size)
    images = images.to(torch.uint8) if uint8 else images
    program = torch.export.export(static, (images,), dynamic_shapes=({0: Dim("batch")},), strict=False)
    for node in program.graph.nodes:
        # Names files of the machine that exported.
        node.meta.pop("stack_trace", None)
    return program


def write_onnx(program: ExportedProgram, path: Path) -> None:
    """Writes what `torch.export.export` gave as one ONNX file, with input `images` and output `logits`.

    Sorting stays stable, which PyTorch's exporter has no translation for.
    """
    import onnx
    import onnxscript

    op: Any = onnxscript.opset18

    def stable_sort(values: Any, stable: bool | None = None, dim: int = -1, descending: bool = False) -> Any:
        # TopK is stable by ONNX's specification: of equal values the one with the lower index comes first.
        size = op.Gather(op.Shape(values), op.Constant(value_ints=[dim]), axis=0)
        return op.TopK(values, size, axis=dim, largest=int(descending), sorted=1)

    with quiet("onnxscript"):
        torch.onnx.export(
            program,
            f=str(path),
            input_names=["images"],
            output_names=["logits"],
            dynamo=True,
            external_data=False,
            verbose=False,
            custom_translation_table={torch.ops.aten.sort.stable: stable_sort},
        )
    model = onnx.load(path)
    for node in model.graph.node:
        del node.metadata_props[:]
    symbol = model.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    for value in [*model.graph.input, *model.graph.output, *model.graph.value_info]:
        for size in value.type.tensor_type.shape.dim:
            if size.dim_param:
                size.dim_param = size.dim_param.replace(symbol, "batch")
    onnx.save(model, path)


@contextmanager
def quiet(name: str) -> Iterator[None]:
    """Only errors of a logger, for a while."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _runner(path: Path) -> Callable[[Tensor], Tensor]:
    """The function that a file holds."""
    if path.suffix == ".pt2":
        return torch.export.load(path).module()
    if path.suffix == ".safetensors":
        return load_static(path.parent)
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def _random_images(net: StaticViT, uint8: bool, seed: int) -> list[Tensor]:
    c, generator = net.config, torch.Generator().manual_seed(seed)
    shapes = [(batch_size, c.in_chans, c.img_size, c.img_size) for batch_size in BATCH_SIZES]
    images = [torch.randint(256, shape, generator=generator, dtype=torch.uint8) for shape in shapes]
    return images if uint8 else [(batch / 255 - net.mean) / net.std for batch in images]


@torch.no_grad()
def _difference(run: Callable[[Tensor], Tensor], images: list[Tensor], expected: list[Tensor]) -> float:
    """Largest absolute difference of logits; NaN if one is NaN."""
    largest = torch.zeros(())
    for batch, target in zip(images, expected, strict=True):
        logits = run(batch)
        # Without a classifier the supernet pads its features with zeros.
        target = target[:, : logits.shape[1]]
        if logits.shape != target.shape:
            raise ValueError(
                f"The file gives {tuple(logits.shape)} for {len(batch)} images, not {tuple(target.shape)}."
            )
        largest = torch.maximum(largest, (logits - target).abs().max())
    return float(largest)


def _print(files: list[ExportedFile], removed: set[str], console: Console) -> None:
    folder = files[0].path.parent
    table = Table("file", "takes", title=f"Written to {folder}")
    table.add_column("bytes", justify="right")
    table.add_column("largest difference", justify="right")
    table.add_column("allowed", justify="right")
    for file in files:
        size = f"{file.path.stat().st_size:,}"
        table.add_row(file.path.name, file.takes, size, f"{file.difference:.1e}", f"{file.allowed:.1e}")
    table.add_row(DESCRIPTION, "", f"{(folder / DESCRIPTION).stat().st_size:,}", "", "")
    console.print(table)
    if removed:
        names = " and ".join(sorted(removed))
        console.print(f"Removed from there: {names}, which an earlier export wrote of another network.")
    if any("float32" in file.takes for file in files):
        console.print(f"Float images must be normalised already, with the mean and std in {DESCRIPTION}.")


def _compared(what: str) -> str:
    sizes = ", ".join(map(str, BATCH_SIZES))
    return f"Logits were compared with the {what}'s on random images in batches of {sizes}."
