"""Random networks of every token mode, and one image at a time by sliced weights: an independent network.

The authors' modes run under the authors' rules (`prance_embed_dim`), in networks with a class token as theirs are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Barrier
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from helpers import PATIENCE
from oracles import Token, evit, evit_fused, evit_mass, prune_then_merge, tome, tome_above
from torch import Tensor, nn

from supernet import SearchSpace, SubnetConfig, Supernet, SupernetConfig

OURS = ["prune", "prune_fused", "merge", "prune_merge", "tome"]
THRESHOLD = ["prune_mass", "merge_above"]
SIZED = ["merge", "prune_merge", "tome", "merge_above"]
AUTHORS = ["prune", "merge", "prune_merge"]
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "class-token": {"lln": True},
    "patches-only": {"class_token": False, "global_pool": "avg", "fc_norm": True, "lln": False},
    "avg-of-clip": {"global_pool": "avg", "pre_norm": True, "act": "quick_gelu", "norm_eps": 1e-5, "lln": True},
    "authors": {"prance_embed_dim": 32, "norm_eps": 1e-5, "lln": True},
    # What came later, each in one of these: tried where a decision precedes all groups but the first.
    "registers": {"reg_tokens": 3, "global_pool": "avg", "lln": False},
    "distilled": {"reg_tokens": 2, "distilled": True, "scale_norm": True, "final_norm": False, "lln": True},
    "map": {
        "class_token": False,
        "reg_tokens": 2,
        "global_pool": "map",
        "norm": "rms",
        "qk_norm": True,
        "glu": True,
        "act": "silu",
        "patch_norm": True,
        "pre_norm": True,
        "lln": False,
    },
}
LATER = ("registers", "distilled", "map")
BATCH = 10


def make_config(mode: str, architecture: str, decide_first: bool) -> SupernetConfig:
    space = SearchSpace(
        (2, 2) if decide_first else (1, 2, 2),
        embed_dims=(8, 16, 24),
        mlp_ratios=(1.1, 2.0),
        num_heads=(2,) if architecture == "authors" else (1, 2, 3),
        min_keep_rate=0.05,
        token_mode=mode,
        decide_first_group=decide_first,
    )
    return SupernetConfig(space, 24, 4, 3, 5, head_dim=8, **ARCHITECTURES[architecture])


CASES = {
    f"{mode}-{architecture}-{'first' if first else 'later'}": (mode, architecture, first)
    for architecture in ARCHITECTURES
    for mode in (AUTHORS if architecture == "authors" else OURS)
    for first in ((False,) if architecture in LATER else (False, True))
}


def images_for(net: Supernet, batch_size: int = BATCH, seed: int = 0) -> Tensor:
    c = net.config
    return torch.randn(batch_size, c.in_chans, c.img_size, c.img_size, generator=torch.Generator().manual_seed(seed))


def subnets_for(net: Supernet, batch_size: int = BATCH, seed: int = 1) -> SubnetConfig:
    """Random subnets; the first is full, the second the smallest, the third keeps all patches."""
    drawn = SubnetConfig.random(net.space, batch_size, torch.Generator().manual_seed(seed))
    for image, extreme in enumerate((SubnetConfig.full(net.space), SubnetConfig.min(net.space))):
        for name in ("embed_dim", "mlp_ratio", "keep_rate"):
            getattr(drawn, name)[image] = getattr(extreme, name)[0]
    drawn.keep_rate[2:3] = 1
    return drawn


def assert_close(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max().item() <= tolerance


def naive_reduction(
    mode: str, x: Tensor, scores: Tensor, keys: Tensor, sizes: list[float], rates: list[float], prefix: int, ours: bool
) -> list[Token]:
    """One image's tokens after a decision, by the formulas of `oracles`."""
    patches = len(x) - prefix
    kept = [patches]
    for rate in rates:
        # The authors count the class token, round down, and would leave no patch.
        kept.append(max(1, math.ceil(rate * kept[-1] - 1e-6) if ours else math.floor(rate * (kept[-1] + 1)) - 1))
    arrays = [t.detach().double().numpy() for t in (x, scores, keys)]
    values, score, key, size = *arrays, np.array(sizes)
    if mode in THRESHOLD:
        by_mass = mode == "prune_mass"
        return (evit_mass if by_mass else tome_above)(values, score if by_mass else key, size, rates[0], prefix)
    if not ours:
        survive = {"prune": kept[-1], "merge": patches, "prune_merge": kept[1]}[mode]
        return prune_then_merge(values, score, values, size, survive, kept[-1], prefix, weighted=False, ranked=True)
    if mode == "prune":
        return evit(values, score, size, kept[-1], prefix)
    if mode == "prune_fused":
        whole = kept[-1] + 1 >= patches
        return (evit if whole else evit_fused)(values, score, size, patches if whole else kept[-1], prefix)
    if mode == "tome":
        return tome(values, key, size, kept[-1] + prefix, prefix)
    survive = kept[1] if mode == "prune_merge" else patches
    return prune_then_merge(values, score, values, size, survive, kept[-1], prefix)


OwnReduction = Callable[[Tensor, list[float], list[float], Any], list[Token]]


def naive_head(net: Supernet, x: Tensor, sizes: list[float], norm: Callable[[Any, Tensor], Tensor]) -> Tensor:
    """Logits of one image's last tokens (N, C), patches weighted by what they stand for."""
    c, prefix = net.config, net.config.num_prefix_tokens
    weight = torch.tensor(sizes[prefix:])[:, None] / sum(sizes[prefix:])
    if c.global_pool == "token":
        features = norm(net.norm, x[:1])
    elif c.global_pool == "map":
        features = naive_map(net.pool, norm(net.norm, x[prefix:]), torch.tensor(sizes[prefix:]), norm, c)
    elif c.fc_norm:
        features = norm(net.norm, (x[prefix:] * weight).sum(0, keepdim=True))
    else:
        features = (norm(net.norm, x[prefix:]) * weight).sum(0, keepdim=True)
    assert net.head is not None
    logits = features[0] @ net.head.weight[:, : features.shape[1]].T + net.head.bias
    if net.head_dist is None:
        return logits
    second = norm(net.norm, x[1:2])[0] @ net.head_dist.weight[:, : x.shape[1]].T + net.head_dist.bias
    return (logits + second) / 2


def naive_map(pool: Any, x: Tensor, sizes: Tensor, norm: Callable[[Any, Tensor], Tensor], c: SupernetConfig) -> Tensor:
    """What a learned query finds in the patches (N, C) of one image: (1, full width)."""
    query = pool.query.view(-1, c.head_dim)
    kv = x @ pool.kv.weight[:, : x.shape[1]].T + pool.kv.bias
    k, v = kv.view(len(x), 2, len(query), c.head_dim).unbind(1)
    logits = torch.einsum("hc,khc->hk", query, k) / math.sqrt(c.head_dim) + sizes.log()
    found = torch.einsum("hk,khc->hc", logits.softmax(-1), v).reshape(1, -1)
    x = found @ pool.proj.weight.T + pool.proj.bias
    return (
        x
        + activation(norm(pool.norm, x) @ pool.fc1.weight.T + pool.fc1.bias, c.act) @ pool.fc2.weight.T
        + (pool.fc2.bias)
    )


def naive_norm(config: SupernetConfig, layer: Any, x: Tensor) -> Tensor:
    """Norm of the first channels; under the authors' rules with their zoom. Identities and nothing change nothing."""
    if layer is None or isinstance(layer, nn.Identity):
        return x
    w = x.shape[-1]
    if config.norm == "rms":
        return x / (x.square().mean(-1, keepdim=True) + config.norm_eps).sqrt() * layer.weight[:w]
    scaled = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + config.norm_eps).sqrt()
    zoom = 1 if config.prance_embed_dim is None else math.sqrt(w / config.prance_embed_dim)
    return scaled * layer.weight[:w] * zoom + layer.bias[:w]


def to_width(x: Tensor, w: int) -> Tensor:
    """The first w channels, zeros where there are fewer."""
    return F.pad(x, (0, w - x.shape[1])) if x.shape[1] < w else x[:, :w]


def activation(x: Tensor, act: str) -> Tensor:
    """GELU in one of two forms, or SiLU."""
    if act == "gelu":
        return x * (1 + (x / math.sqrt(2)).erf()) / 2
    return x / (1 + (-(1.702 if act == "quick_gelu" else 1.0) * x).exp())


def naive_embed(net: Supernet, image: Tensor, norm: Callable[[Any, Tensor], Tensor]) -> Tensor:
    """(N, C) tokens of one image before the first block."""
    patches: Any = net.patch_embed
    x = norm(net.patch_norm, nn.Sequential.forward(patches, image[None])[0].flatten(1).T)
    first = [token[0] for token in (net.cls_token, net.reg_token) if token is not None]
    return norm(net.norm_pre, torch.cat([*first, x]) + net.pos_embed[0])


def naive_mlp(block: Any, x: Tensor, hidden: int, norm: Callable[[Any, Tensor], Tensor], act: str) -> Tensor:
    """(N, hidden) what the last layer of the MLP reads, of tokens (N, C)."""
    y, w = norm(block.norm2, x), x.shape[1]
    h = y @ block.fc1.weight[:hidden, :w].T + block.fc1.bias[:hidden]
    if block.gate is None:
        return norm(block.mlp_norm, activation(h, act))
    return norm(block.mlp_norm, h * activation(y @ block.gate.weight[:hidden, :w].T + block.gate.bias[:hidden], act))


def naive(
    net: Supernet, image: Tensor, subnet: SubnetConfig, own: OwnReduction | None = None
) -> tuple[Tensor, list[int], list[float]]:
    """One normalised image by sliced weights: logits, the token that holds each patch, and the sizes of the tokens.

    Args:
        net: The network.
        image: One image.
        subnet: Its sizes.
        own: Reduces tokens (N, C) of given sizes at given rates in a block, for modes that `naive_reduction` has not.
    """
    c, space = net.config, net.space
    prefix, full, ours = c.num_prefix_tokens, space.embed_dims[-1], c.prance_embed_dim is None
    head_count = dict(zip(space.embed_dims, space.num_heads if len(space.num_heads) > 1 else [2] * 3, strict=True))
    norm = partial(naive_norm, c)
    x = naive_embed(net, image, norm)
    sizes, holder = [1.0] * len(x), list(range(prefix, len(x)))
    index, decision = 0, 0
    for group, blocks in enumerate(space.groups):
        for i in range(blocks):
            block: Any = net.blocks[index]
            w = int(subnet.embed_dim[0, index])
            heads, hidden = head_count[w], int(w * float(subnet.mlp_ratio[0, index]) + 1e-6)
            x = to_width(x, w)
            rows = heads * 3 * c.head_dim
            qkv = norm(block.norm1, x) @ block.qkv.weight[:rows, :w].T + block.qkv.bias[:rows]
            q, k, v = qkv.view(len(x), heads, 3, c.head_dim).unbind(2)
            q, k = norm(block.q_norm, q), norm(block.k_norm, k)
            bias = torch.tensor(sizes).log()
            attention = (torch.einsum("qhc,khc->hqk", q, k) / math.sqrt(c.head_dim) + bias).softmax(-1)
            out = norm(block.attn_norm, torch.einsum("hqk,khc->qhc", attention, v).flatten(1))
            x = x + out @ block.proj.weight[:w, : out.shape[1]].T + block.proj.bias[:w]
            if i == 0 and (group or space.decide_first_group):
                query = q[0] if c.class_token else q[prefix:].mean(0)
                logits = torch.einsum("hc,khc->hk", query, k) / math.sqrt(c.head_dim) + bias
                rates = subnet.keep_rate[0, decision].reshape(-1).tolist()
                scores = logits.softmax(-1).mean(0)
                if own is not None:
                    tokens = own(x, sizes, rates, block)
                else:
                    tokens = naive_reduction(space.token_mode, x, scores, k.mean(1), sizes, rates, prefix, ours)
                decision += 1
                x = torch.from_numpy(np.stack([token.x for token in tokens])).to(x.dtype)
                sizes = [token.size if own or space.token_mode in SIZED else 1.0 for token in tokens]
                went = {old: new for new, token in enumerate(tokens) for old in token.members}
                holder = [went.get(token, -1) for token in holder]
            h = naive_mlp(block, x, hidden, norm, c.act)
            boundary = i == blocks - 1 and group < len(space.groups) - 1
            given = full if boundary else w
            if not ours and index + 1 < space.depth:
                given = int(subnet.embed_dim[0, index + 1])
            if boundary and c.lln:
                x = x @ block.lln.weight[:given, :w].T + block.lln.bias[:given]
            x = to_width(x, given) + h @ block.fc2.weight[:given, :hidden].T + block.fc2.bias[:given]
            index += 1
    return naive_head(net, x, sizes, norm), holder, sizes


def assert_exports_with_a_free_batch_size(net: Supernet, subnet: SubnetConfig) -> None:
    """The extracted network goes through torch.export, and the result takes batches of any size."""
    free = ({0: torch.export.Dim("batch")},)
    exported = torch.export.export(net.extract(subnet), (images_for(net, 4),), dynamic_shapes=free).module()
    for batch_size in (2, 7):
        images = images_for(net, batch_size)
        assert_close(exported(images), net(images, subnet))


def computed_together(net: Supernet, images: Tensor, parts: Sequence[SubnetConfig], times: int) -> list[list[Tensor]]:
    """What several threads that begin at once compute, each its subnets again and again."""
    barrier = Barrier(len(parts))

    def run(subnet: SubnetConfig) -> list[Tensor]:
        barrier.wait(timeout=PATIENCE)
        return [net(images, subnet) for _ in range(times)]

    with ThreadPoolExecutor(len(parts)) as pool:
        return list(pool.map(run, parts))


def assert_gradients_are_sums_over_images(
    net: Supernet, images: Tensor, subnet: SubnetConfig, tolerance: float
) -> None:
    """Every parameter's gradient of a mixed batch, and that of one image after the other."""
    generator = torch.Generator().manual_seed(3)
    weights = torch.randn(len(images), net.config.num_classes, generator=generator)
    (net(images, subnet) * weights).sum().backward()
    together = {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}
    assert len(together) == len(list(net.parameters()))
    net.zero_grad()
    for i in range(len(images)):
        (net(images[i : i + 1], subnet[i]) * weights[i]).sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None
        scale = parameter.grad.abs().max()
        if name.endswith("k_norm.bias"):
            # What is added to all keys of a head alike changes no share.
            assert scale < 1e-6
            continue
        assert scale > 0, name
        assert (together[name] - parameter.grad).abs().max() <= tolerance * scale, name
