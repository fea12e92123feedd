"""`prance export --adaptive`: network, policy and menu as one ONNX file that runs without PyTorch."""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn

from agents import AdaptiveViT
from agents.deployed.menu import Menu
from supernet.staging import staged
from supernet.static_vit import StaticEnds

from . import onnx_runner
from .export import check_replaced, quiet
from .onnx_menu import OPSET, MenuGraph

GRAPH, RUNNER, ABOUT = "model.onnx", "run.py", "adaptive"
CHECKED = 256
TOLERANCE, LEAST_SAME = 1e-4, 0.995


class Stem(nn.Module):
    """From an image to tokens.

    Args:
        ends: Whose stem it is.
    """

    def __init__(self, ends: StaticEnds) -> None:
        super().__init__()
        self.ends = ends

    def forward(self, image: Tensor) -> Tensor:
        """(1, C, H, W) to (1, N, C)."""
        return self.ends.tokens_of(self.ends.normalised(image))


@dataclass(frozen=True)
class Checked:
    """How an exported model compares with the one in PyTorch.

    Attributes:
        images: How many were compared.
        same: Share of them for which all entries that were picked are the same.
        difference: Largest absolute difference of logits among these.
        allowed: What it may be.
        labels: Share of all images with the same class.
    """

    images: int
    same: float
    difference: float
    allowed: float
    labels: float


def export_adaptive(
    model: AdaptiveViT, images: Tensor, out: Path, budgets: list[float], uint8: bool = False
) -> Checked:
    """Writes a model with its menu, after running it and comparing it with PyTorch.

    Args:
        model: In float32 on the CPU, with a menu.
        images: (N, C, H, W) uint8 to compare on.
        out: The file, if it ends with .onnx; else a folder for `model.onnx` and its runner `run.py`.
        budgets: Prices to compare at, one after the other; empty of agents that know none.
        uint8: Whether the graph takes uint8 images and normalises them, instead of normalised float32 ones.

    Raises:
        FileExistsError: If a file would be replaced that no earlier export of the kind wrote.
        ValueError: If the model is of a kind that has no such graph, has no menu, or the file answers differently;
            nothing is written then.
        ModuleNotFoundError: If the extra is missing.
    """
    if missing := [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]:
        raise ModuleNotFoundError(f"--adaptive needs {' and '.join(missing)}: pip install -e '.[export]'.")
    import onnx

    menu = model.menu
    if menu is None:
        raise ValueError("The model has no menu; call model.make_menu(images) first.")
    graph = MenuGraph(model.net, menu, onnx)
    alone = out.suffix == ".onnx"
    name, into = (out.name, out.parent) if alone else (GRAPH, out)
    _check_replaced(into, name, alone)
    with staged(into) as folder:
        written = graph.write(_stem(model, uint8, folder))
        onnx.helper.set_model_props(written, {ABOUT: json.dumps(_about(model, menu, uint8))})
        onnx.checker.check_model(written)
        onnx.save(written, folder / name)
        if not alone:
            shutil.copy(onnx_runner.__file__, folder / RUNNER)
        checked = compare(menu, folder / name, images, budgets, uint8)
        if checked.same < LEAST_SAME or not checked.difference <= checked.allowed:
            raise ValueError(
                f"{name} picks the same entries for {checked.same:.2%} of {checked.images} images (at least "
                f"{LEAST_SAME:.1%} are asked for) and differs by {checked.difference:.1e} (allowed: "
                f"{checked.allowed:.1e}); it was not kept."
            )
    return checked


def _check_replaced(folder: Path, name: str, alone: bool) -> None:
    """Lets graphs of adaptive networks be replaced, and the runner, whether or not they were written together."""
    own = {name} if _is_adaptive(folder / name) else set()
    own |= {RUNNER} if _is_runner(folder / RUNNER) else set()
    check_replaced(folder, {name} if alone else {name, RUNNER}, own, "export of an adaptive network")


def _is_adaptive(path: Path) -> bool:
    """Whether an ONNX file says of itself that it is an adaptive network; nothing in it is run."""
    import onnx

    if not path.is_file():
        return False
    try:
        return any(note.key == ABOUT for note in onnx.load(path, load_external_data=False).metadata_props)
    except Exception:  # protobuf has its own for what is no ONNX file
        return False


def _is_runner(path: Path) -> bool:
    """Whether a file begins as the runner does, of whatever version."""
    with suppress(OSError, ValueError), path.open() as f, open(onnx_runner.__file__) as ours:
        return f.readline() == ours.readline()
    return False


@torch.no_grad()
def _stem(model: AdaptiveViT, uint8: bool, folder: Path) -> Any:
    """The stem as an ONNX model; it may be of any kind, so that PyTorch's exporter writes it."""
    import onnx

    assert model.menu is not None
    c = model.net.config
    image = torch.zeros(1, c.in_chans, c.img_size, c.img_size, dtype=torch.uint8 if uint8 else torch.float32)
    path = folder / "stem.onnx"
    with quiet("onnxscript"):
        torch.onnx.export(
            Stem(model.menu.ends).eval(), (image,), str(path), input_names=["image"], output_names=["tokens"],
            dynamo=True, external_data=False, verbose=False, opset_version=OPSET,
        )  # fmt: skip
    stem = onnx.load(path)
    path.unlink()
    for node in stem.graph.node:
        # Names files of the machine that exported.
        del node.metadata_props[:]
    return stem


def _about(model: AdaptiveViT, menu: Menu, uint8: bool) -> dict[str, Any]:
    c, conditioning = model.net.config, model.interface.conditioning
    # Image files have no other channels.
    prepared = asdict(model.preprocessing.transform(c)) if c.in_chans in (1, 3) else None
    return {
        "input": [1, c.in_chans, c.img_size, c.img_size],
        "takes": "uint8" if uint8 else "float32",
        "mean": list(c.mean),
        "std": list(c.std),
        "classes": [*model.names],
        "prices": None if conditioning is None else [conditioning.low, conditioning.high],
        "spent": None if menu.calibration is None else menu.calibration.to_dict(),
        "full_macs": menu.full_macs,
        "entries": [len(e) for e in menu.entries],
        "pictures": prepared,
    }


def compare(menu: Menu, path: Path, images: Tensor, budgets: list[float], uint8: bool) -> Checked:
    """Runs the file with its own runner on images, and the menu in PyTorch."""
    run = onnx_runner.AdaptiveModel(path, threads=torch.get_num_threads())
    asked: list[Any] = budgets or [None]
    same, labels, difference, largest = [], [], 0.0, 1.0
    for number in range(len(images)):
        image, budget = images[number : number + 1], asked[number % len(asked)]
        expected = menu(image, budget)
        given = image.numpy() if uint8 else menu.ends.normalised(image).numpy()
        found = run(given, budget)
        assert expected.picked is not None
        logits = expected.logits.numpy()
        same.append(bool((found["picked"] == expected.picked[0]).all()))
        labels.append(int(found["logits"].argmax()) == int(logits.argmax()))
        if same[-1]:
            if int(found["macs"]) != int(expected.macs[0]) or (found["patches"] != expected.patches[0]).any():
                raise ValueError(f"image {number}: the file counts {found['macs']} MACs, PyTorch {expected.macs[0]}.")
            # Python's max() passes over NaN, which is no agreement.
            difference = float(np.maximum(difference, np.abs(found["logits"] - logits).max()))
            largest = float(np.maximum(largest, np.abs(logits).max()))
    return Checked(len(images), float(np.mean(same)), difference, TOLERANCE * largest, float(np.mean(labels)))


def report(checked: Checked, out: Path, console: Console) -> None:
    """Says what was written."""
    size = (out if out.suffix == ".onnx" else out / GRAPH).stat().st_size
    console.print(f"Written to {out} ({size:,} bytes).")
    console.print(
        f"Compared with PyTorch on {checked.images} images, one at a time: the same entries for {checked.same:.2%}, "
        f"the same class for {checked.labels:.2%}, largest difference of logits {checked.difference:.1e} (allowed: "
        f"{checked.allowed:.1e})."
    )
