"""A subnet as a plain module with exactly its own parameters: out of a supernet, into a folder and back."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import TypedDict

from .block_sizes import BlockSizes, group_sizes, sizes_from
from .config import SupernetConfig
from .files import WEIGHTS, check_tensors, read_safetensors, write_tensors
from .heads import ImageClassifier, end_layers
from .plain import check_blocks, check_names, check_plain
from .plan import plan_group
from .reading import OPEN, read_json
from .staging import finish_commit, staged
from .static_group import StaticGroup
from .static_vit import StaticBlock, StaticEnds, StaticViT
from .subnet import GroupChoice, SubnetConfig
from .zero_shot import head_sources

DESCRIPTION = "static.json"
FORMAT = 1


class _Description(TypedDict):
    """What `load_static` needs of `describe`."""

    format: Literal[1]
    blocks: list[dict[str, Any]]
    subnet: dict[str, Any] | None
    config: SupernetConfig
    files: dict[str, dict[str, Any]]


_Description.__pydantic_config__ = OPEN  # type: ignore[attr-defined]


class ElasticNet(Protocol):
    """What a subnet can be cut out of: a `Supernet`, or a module with the same weights under the same names."""

    config: SupernetConfig
    mean: Tensor
    std: Tensor

    def state_dict(self) -> Mapping[str, Tensor]: ...


def extract(net: ElasticNet, subnet: SubnetConfig) -> StaticViT:
    """Copies the weights that one subnet uses into a plain module.

    Args:
        net: The supernet.
        subnet: Exactly one subnet.

    Returns:
        A module in evaluation mode whose logits are `net(images, subnet)`.

    Raises:
        ValueError: If `subnet` holds more than one, is not in the search space, or reduces tokens by thresholds; if
            layers of the supernet have hooks, parametrisations or other classes, which would be lost; or if the
            classifier is not the one of the configuration.
        TypeError: If it is no SubnetConfig.
    """
    static = StaticViT(net.config, subnet, "meta")
    widths, weights = subnet.embed_dim[0].tolist(), net.state_dict()
    zooms = {"norm.weight": net.config.zoom(widths[-1])}
    for i, width in enumerate(widths):
        zooms |= {f"blocks.{i}.{name}": zoom for name, zoom in _zooms(net.config, width).items()}
    check_extractable(net)
    check_names(weights.keys() & static.state_dict(), static.state_dict(), "This supernet")
    _fill(static, weights, zooms, head_sources(net.config, widths[-1]))
    static.mean, static.std = net.mean.clone(), net.std.clone()
    return static.eval()


def check_extractable(net: ElasticNet) -> None:
    """Refuses networks that do more than their weights say.

    Raises:
        ValueError: If layers have hooks, parametrisations or other classes, or the classifier is not the one of the
            configuration.
    """
    if isinstance(net, nn.Module):
        check_plain(end_layers(net))
        if isinstance(blocks := dict(net.named_children()).get("blocks"), nn.ModuleList):
            check_blocks(blocks, range(len(blocks)))
    if isinstance(net, ImageClassifier):
        net.check_classifier()


def extract_ends(net: ElasticNet, width: int) -> StaticEnds:
    """What is before the first and after the last block, of one width; its weights are views, not copies.

    By the authors' rules those of the last norm are a copy, as a factor goes with the width.

    Args:
        net: The supernet.
        width: Channels of the tokens after the last block.
    """
    with torch.device("meta"):
        ends = StaticEnds(net.config, width).requires_grad_(False)
    zooms, sources = {"norm.weight": net.config.zoom(width)}, head_sources(net.config, width)
    _fill(ends, net.state_dict(), zooms, sources, copies=False)
    ends.mean, ends.std = net.mean, net.std
    return ends.eval()


def extract_group(net: ElasticNet, group: int, choice: GroupChoice) -> StaticGroup:
    """One group of blocks as one choice makes it, for any number of tokens; its weights are views, not copies.

    By the authors' rules those of the norms are copies, as a factor goes with the width.

    Args:
        net: The supernet.
        group: Which.
        choice: Exactly one.

    Raises:
        ValueError: If it reduces tokens by thresholds.
    """
    config, weights = net.config, net.state_dict()
    full = np.array([config.num_tokens])
    sizes = group_sizes(config, plan_group(config, group, choice, full, np.array([config.embed_dim])))
    with torch.device("meta"):
        static = StaticGroup(config, sizes, choice.rates).requires_grad_(False)
    for number, block in zip(config.space.blocks(group), static.blocks, strict=True):
        prefix = f"blocks.{number}."
        own = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
        width = int(choice.embed_dim[0, number - config.space.blocks(group)[0]])
        _fill(block, own, _zooms(config, width), copies=False)
    return static.eval()


def extract_block(config: SupernetConfig, weights: Mapping[str, Tensor], number: int, sizes: BlockSizes) -> StaticBlock:
    """Copies the weights that one block of a subnet uses into a plain module, in evaluation mode.

    Args:
        config: The supernet.
        weights: Its weights by name (`state_dict`).
        number: Which block.
        sizes: Its sizes.
    """
    prefix = f"blocks.{number}."
    with torch.device("meta"):
        block = StaticBlock(config, sizes)
    own = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
    _fill(block, own, _zooms(config, sizes.embed_dim))
    return block.eval()


def _zooms(config: SupernetConfig, width: int) -> dict[str, float]:
    """Factors on the weights of a block of that width."""
    return {f"norm{n}.weight": config.zoom(width) for n in (1, 2)}


def _fill(
    module: nn.Module,
    weights: Mapping[str, Tensor],
    zooms: dict[str, float],
    sources: Mapping[str, str] | None = None,
    copies: bool = True,
) -> None:
    """Gives a module on "meta" the first entries of the weights along every dimension, times a factor.

    `sources` names the weights that have another name in the supernet. Without `copies` they are views, as far as no
    factor changes them.
    """
    sources, cut = sources or {}, {}
    for name, target in module.state_dict().items():
        own = weights[sources.get(name, name)][tuple(slice(n) for n in target.shape)]
        cut[name] = own.clone(memory_format=torch.contiguous_format) if copies else own
    for name, zoom in zooms.items():
        if name in cut and zoom != 1:
            cut[name] = cut[name] * zoom
    module.load_state_dict(cut, assign=True)


def save_static(static: StaticViT, folder: str | Path) -> None:
    """Writes `model.safetensors` and `static.json`, both or none of them.

    Args:
        static: The network.
        folder: Created if missing.

    Raises:
        ValueError: If layers were replaced or parametrised, so that the folder could not be loaded.
    """
    plain = StaticViT(static.config, static.block_sizes, "meta")
    check_names(static.state_dict(), plain.state_dict(), "This static network")
    with staged(Path(folder)) as stage:
        write_weights(static, stage / WEIGHTS)
        (stage / DESCRIPTION).write_text(json.dumps(describe(static, [stage / WEIGHTS]), indent=2) + "\n")


def write_weights(static: StaticViT, path: str | Path) -> None:
    """Writes the weights alone, as safetensors."""
    write_tensors({k: v.detach().cpu().contiguous() for k, v in static.state_dict().items()}, path)


def describe(static: StaticViT, files: list[Path]) -> dict[str, Any]:
    """What `static.json` says: everything that is needed to use the files beside it.

    Args:
        static: The network.
        files: Its files; their digests tell later whether they belong to this description.

    Returns:
        Plain data. `config` and `subnet`, or without a subnet `blocks`, determine the network; the rest follows.

    Raises:
        ValueError: If its classifier is not the one of its configuration.
    """
    static.check_classifier()
    config = static.config
    return {
        "format": FORMAT,
        "input": ["batch", config.in_chans, config.img_size, config.img_size],
        "mean": list(config.mean),
        "std": list(config.std),
        "num_classes": config.num_classes,
        "token_mode": config.space.token_mode,
        "macs": static.macs(),
        "params": static.params(),
        "blocks": static.sizes(),
        "subnet": None if static.subnet is None else json.loads(static.subnet.to_json()),
        "config": config.to_dict(),
        "files": {path.name: {"bytes": path.stat().st_size, "sha256": _digest(path)} for path in files},
    }


def load_static(folder: str | Path) -> StaticViT:
    """Loads what `save_static` or `prance export --format safetensors` wrote; no supernet is made.

    Returns:
        The network in evaluation mode, on the CPU in the precision of the file.

    Raises:
        FileNotFoundError: If the folder or one of the two files is missing.
        ValueError: If a file is damaged, does not fit, or the two were not written together; nothing is half-loaded.
    """
    folder = Path(folder)
    finish_commit(folder)
    path = folder / DESCRIPTION
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} holds no {DESCRIPTION}; pass a folder that save_static or prance export wrote."
        )
    data: Any = read_json(path, _Description, "export the network again")
    config, subnet, digest = data["config"], data["subnet"], data["files"].get(WEIGHTS, {}).get("sha256")
    try:
        blocks = sizes_from(data["blocks"], config.head_dim)
        static = StaticViT(config, blocks if subnet is None else SubnetConfig.from_json(json.dumps(subnet)), "meta")
    except (KeyError, TypeError, ValueError, RuntimeError) as e:
        raise ValueError(f"{path} does not describe a static network ({e!r}); export the network again.") from e
    if blocks != static.block_sizes:
        raise ValueError(
            f"{path}: `blocks` are not the sizes that its `config` and `subnet` give here. The file was changed, or "
            "written by another version; export the network again."
        )
    state, _ = read_safetensors(folder / WEIGHTS)
    check_tensors(state, {k: tuple(v.shape) for k, v in static.state_dict().items()}, str(folder / WEIGHTS))
    if digest != _digest(folder / WEIGHTS):
        raise ValueError(
            f"{folder / WEIGHTS} is not the file that {DESCRIPTION} lists: it was changed, or only one of the two was "
            "replaced; export the network again with --format safetensors."
        )
    static.load_state_dict(state, assign=True)
    static.mean, static.std = (
        torch.tensor(v, device="cpu").view(1, -1, 1, 1).to(static.pos_embed) for v in (config.mean, config.std)
    )
    return static.eval()


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as f:
        while chunk := f.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
