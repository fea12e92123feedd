"""Meta-networks of PRANCE's authors (repository ChildTang/PRANCE): their weights, their rules, their bookkeeping.

Written from a description of what their code computes; none of it is copied. Their rules differ from ours in four
points, all behind `SupernetConfig.prance_embed_dim`:

* Layer norms are multiplied by sqrt(embed_dim / full width).
* A block hands on the width of the next block, the full one while that is not decided; the first block of a group reads
  what it was handed and narrows at its projection.
* Tokens are sorted by class attention at every decision, even if all stay; int(rate * tokens) remain, the class token
  counted.
* Merged tokens are a plain mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..arrays import Floats, Ints, namespace, whole
from ..config import SearchSpace, SupernetConfig
from ..files import check_tensors, read_weights, weights_by_name
from ..plan import hidden_dims
from ..registry import supernet_config
from ..subnet import GroupChoice
from ..tokens.merge import merge_macs, merge_ranked
from ..tokens.modes import Assignment, TokenMode, column, ranking, ranks_of, register_token_mode
from ..tokens.modes import token_mode as find_token_mode
from ..vit import Supernet

HEAD_DIM = 64
"""Channels per head in all of the authors' networks."""


def _counts(num_tokens: Ints, keep_rates: Floats, prefix: int) -> Ints:
    stages = []
    for stage in range(keep_rates.shape[1]):
        # A patch must stay beside the class token; the authors' code fails there, or averages all into the class token.
        kept = whole(keep_rates[:, stage] * num_tokens).clip(min=2)
        num_tokens = namespace(num_tokens).minimum(kept, num_tokens)
        stages.append(num_tokens)
    out: Ints = namespace(num_tokens).stack(stages, 1)
    return out


def _assign(
    scores: Tensor | None, metric: Tensor | None, size: Tensor, lengths: Ints, counts: Ints, prefix: int
) -> Assignment:
    """Sorted by score; what is not kept is dropped or, if there is a metric, merged as a plain mean."""
    assert scores is not None
    order = ranking(scores, lengths, prefix)
    ranks = ranks_of(order)
    into = torch.where(ranks < column(counts[:, -1], scores.device), ranks, -1)
    if metric is None:
        return into, None
    return merge_ranked(order, metric, into, counts, lengths, prefix), torch.ones_like(size)


_PRUNE = TokenMode(_assign, counts=_counts, always=True, on_device=True)
_MERGE = replace(_PRUNE, metric="tokens", sized=True, macs=merge_macs)
AUTHORS_MODES = {"prune": _PRUNE, "merge": _MERGE, "prune_merge": replace(_MERGE, num_rates=2)}
for _name, _mode in AUTHORS_MODES.items():
    register_token_mode(_name, _mode, authors=True)


SPACES = {256: "prance_vit_tiny", 448: "prance_vit_small", 768: "prance_vit_base"}
"""Registered space of a meta-network by its full width."""


def load_prance_checkpoint(
    path_or_state_dict: str | Path | Mapping[str, Tensor],
    config: SupernetConfig | SearchSpace | None = None,
    *,
    token_mode: str = "prune",
) -> Supernet:
    """Reads a meta-network of the authors; it runs by their rules (see above).

    Args:
        path_or_state_dict: A checkpoint of theirs (read with `weights_only=True`) or safetensors, or the weights.
        config: Its search space, which no weight tells; a whole configuration may be given, too. None: the published
            space of a meta-network of that width (Tiny, Small or Base). What the weights do tell is taken from them.
        token_mode: "prune", "merge" or "prune_merge".

    Returns:
        The supernet in evaluation mode. `min_keep_rate` is 0, since the authors take an action as the rate itself.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file holds no weights, keys are missing, unexpected or misshapen (they are listed), the space
            is unknown or does not fit, or the token mode is unknown.
    """
    find_token_mode(token_mode, authors=True)
    state = _tensors_in(path_or_state_dict)
    source = str(path_or_state_dict) if isinstance(path_or_state_dict, str | Path) else "The state dict"
    config = _prance_config(state, config, token_mode, source)
    check_tensors(state, _prance_shapes(state, config), source)
    net = Supernet(config)
    net.load_state_dict(_converted(state, net))
    return net.eval()


def _tensors_in(path_or_state_dict: str | Path | Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights by name.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it holds something else than weights.
    """
    if isinstance(path_or_state_dict, Mapping):
        return weights_by_name(path_or_state_dict)
    return weights_by_name(read_weights(Path(path_or_state_dict), "checkpoint"))


def _prance_config(
    state: Mapping[str, Tensor], config: SupernetConfig | SearchSpace | None, token_mode: str, source: str
) -> SupernetConfig:
    """Everything that the weights tell, around the space that was given or is known for their width."""
    needed = ("pos_embed", "patch_embed_super.proj.weight", "head.weight")
    if missing := [k for k in needed if k not in state]:
        raise ValueError(
            f"{source} is no meta-network of PRANCE: missing {', '.join(missing)}; it has {list(state)[:5]}."
        )
    full, patch = state["pos_embed"].shape[-1], state["patch_embed_super.proj.weight"].shape[-1]
    depth = 1 + max((int(k.split(".")[1]) for k in state if k.startswith("blocks.")), default=-1)
    ends = [i for i in range(depth) if f"blocks.{i}.lln.weight" in state]
    groups = tuple(int(n) for n in np.diff([0, *(i + 1 for i in ends), depth]))
    if config is None:
        if full not in SPACES:
            raise ValueError(
                f"{source} has the width {full}, which no published space has ({SPACES}); pass config=SearchSpace(...)."
            )
        config = supernet_config(SPACES[full])
    space = config.space if isinstance(config, SupernetConfig) else config
    if space.groups != groups:
        raise ValueError(f"config has groups={space.groups}, but the linear maps of {source} end the groups {groups}.")
    if space.embed_dims[-1] > full:
        raise ValueError(f"config has embed_dims={space.embed_dims}, but {source} is only {full} wide.")
    base = config if isinstance(config, SupernetConfig) else SupernetConfig(space=space)
    return replace(
        base,
        space=replace(space, token_mode=token_mode, min_keep_rate=0.0),
        img_size=patch * round((state["pos_embed"].shape[1] - 1) ** 0.5),
        patch_size=patch,
        in_chans=state["patch_embed_super.proj.weight"].shape[1],
        num_classes=state["head.weight"].shape[0],
        head_dim=HEAD_DIM,
        norm_eps=1e-5,
        prance_embed_dim=full,
    )


def _prance_shapes(state: Mapping[str, Tensor], config: SupernetConfig) -> dict[str, tuple[int, ...]]:
    """Shape of every weight of the authors' network (their names)."""
    full, p, c = config.prance_embed_dim or 0, config.patch_size, config.in_chans
    depth, ends = config.space.depth, {config.space.blocks(g)[-1] for g in range(len(config.space.groups) - 1)}
    hidden = state["blocks.0.fc1.bias"].shape[0] if "blocks.0.fc1.bias" in state else 0
    widest = int(hidden_dims(np.array(config.embed_dim), np.array(config.space.mlp_ratios[-1])))
    if hidden and hidden < widest:
        raise ValueError(f"config needs MLPs of {widest} hidden units; the weights have {hidden}: lower mlp_ratios.")
    if config.space.max_heads * HEAD_DIM > full:
        raise ValueError(
            f"config has num_heads={config.space.num_heads}; {full} channels hold {full // HEAD_DIM} heads."
        )
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, full),
        "pos_embed": (1, config.num_tokens, full),
        "patch_embed_super.proj.weight": (full, c, p, p),
        "patch_embed_super.proj.bias": (full,),
        "norm.weight": (full,),
        "norm.bias": (full,),
        "head.weight": (config.num_classes, full),
        "head.bias": (config.num_classes,),
    }
    for i in range(depth):
        linears = {
            "attn.qkv": (3 * full, full),
            "attn.proj": (full, full),
            "fc1": (hidden, full),
            "fc2": (full, hidden),
        }
        if i in ends:
            linears["lln"] = (full, full)
        for name, shape in linears.items():
            shapes |= {f"blocks.{i}.{name}.weight": shape, f"blocks.{i}.{name}.bias": shape[:1]}
        for name in ("attn_layer_norm", "ffn_layer_norm"):
            shapes |= {f"blocks.{i}.{name}.weight": (full,), f"blocks.{i}.{name}.bias": (full,)}
    return shapes


def _converted(state: Mapping[str, Tensor], net: Supernet) -> dict[str, Tensor]:
    """Their weights under our names, cut to the channels that the space can use."""
    names = {"attn_layer_norm": "norm1", "ffn_layer_norm": "norm2", "attn.proj": "proj", "attn.qkv": "qkv"}
    heads = net.space.max_heads
    inner = heads * HEAD_DIM
    # Their weight rows are interleaved, channel by channel; their biases are not.
    channel = torch.arange(inner).view(heads, 1, HEAD_DIM)
    part = torch.arange(3).view(1, 3, 1)
    weight_rows, bias_rows = (3 * channel + part).flatten(), (part * inner + channel).flatten()
    own = net.state_dict()
    out = {}
    for key, value in state.items():
        name = key.replace("patch_embed_super.proj", "patch_embed.0")
        for theirs, ours in names.items():
            name = name.replace(theirs, ours)
        if ".qkv." in name:
            value = value[weight_rows if name.endswith("weight") else bias_rows]
        out[name] = value[tuple(slice(n) for n in own[name].shape)].float().clone()
    return out


def average_choice(space: SearchSpace, choice: GroupChoice) -> GroupChoice:
    """What the authors' batched inference makes of the choices of a batch: one for all images.

    Widths and ratios are the mean over the images, rounded to a whole number (half to even) and moved to the nearest
    choice (the smaller of two); pruning rates are the mean; the merging rate is that of the first image.

    Args:
        space: The search space.
        choice: One choice per image.
    """

    def nearest(values: Tensor, allowed: tuple[float, ...]) -> Tensor:
        choices = torch.tensor(allowed, dtype=torch.float64)
        mean = values.double().mean(0).round()
        return choices[(mean[:, None] - choices).abs().argmin(1)].expand(values.shape)

    keep = choice.keep_rate.mean(0, keepdim=True).expand_as(choice.keep_rate).clone()
    if space.token_mode == "merge":
        keep[:] = choice.keep_rate[0]
    elif space.token_mode == "prune_merge":
        keep[:, 1] = choice.keep_rate[0, 1]
    return GroupChoice(
        nearest(choice.embed_dim, space.embed_dims).long(), nearest(choice.mlp_ratio, space.mlp_ratios), keep
    )
