"""Semantic tokens (STViT, Chang et al., arXiv 2303.08685): patches gather around few centres, softly.

Centres begin as pooled windows of the image, look for the patches that are like them, move there, and share the patches
out once more. A keep rate is the number of centres. Tokens stand row by row: `Layout` says how many to a row for any
number of them, so that the centres of one decision have places at the next.

What differs from the paper, whose code for plain ViTs is not public: a centre is the mean of what it gathers (there a
sum of values in a whole block, which leaves nothing that sizes and pictures could follow); every patch is shared out
among the centres (there every centre divides one unit of attention among the patches), so that sizes sum to the number
of patches; and the class token, which the paper does without, passes unchanged.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, wraps
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ..arrays import Floats, Ints
from ..bounded import Bounded
from .modes import Assignment, TokenMode, column, register_token_mode

FEATURES = 32
"""Dimensions in which learned centres and patches are compared."""
SHARPNESS = 10.0
"""Logit of a patch whose features point where a centre's do."""
NEARNESS = 0.25
"""Logits that a patch loses one cell away from a centre; two cells away it is four times as many."""


class Layout:
    """Where so many tokens stand on a square image: as many rows as columns, near enough, the upper ones longer.

    Args:
        num_tokens: Tokens, at least one.

    Attributes:
        rows: Number of rows.
        row: (N,) row of every token.
        column: (N,) its place in the row.
        per_row: (N,) tokens in its row.
    """

    def __init__(self, num_tokens: int) -> None:
        self.rows = max(1, round(num_tokens**0.5))
        each = num_tokens // self.rows + (np.arange(self.rows) < num_tokens % self.rows)
        self.row = np.repeat(np.arange(self.rows), each)
        self.column = np.arange(num_tokens) - np.repeat(np.cumsum(each) - each, each)
        self.per_row = np.repeat(each, each)

    def cells(self, centres: Layout) -> Ints:
        """(N,) the centre in whose cell each token lies."""
        row = (2 * self.row + 1) * centres.rows // (2 * self.rows)
        first = np.searchsorted(centres.row, row)
        out: Ints = first + (2 * self.column + 1) * centres.per_row[first] // (2 * self.per_row)
        return out

    def distances(self, centres: Layout) -> Floats:
        """(K, N) squared distance of every token from every centre, in cells of the centre's."""
        y = ((self.row + 0.5) / self.rows - ((centres.row + 0.5) / centres.rows)[:, None]) * centres.rows
        x = (self.column + 0.5) / self.per_row - ((centres.column + 0.5) / centres.per_row)[:, None]
        out: Floats = y**2 + (x * centres.per_row[:, None]) ** 2
        return out


# Of a picture of 28 x 28 patches one takes megabytes, and there may be hundreds of pairs in a batch.
_HOST: Bounded[Floats] = Bounded(2**28)
_ON_DEVICE: Bounded[Tensor] = Bounded(2**28)


def _kept(table: Callable[..., Floats]) -> Callable[..., Floats]:
    """A table that is made once, as long as there is room."""

    @wraps(table)
    def kept(*numbers: int) -> Floats:
        return _HOST.get((table, *numbers), lambda: table(*numbers))

    return kept


@_kept
def distances(num_tokens: int, num_centres: int) -> Floats:
    """(K, N) squared distances, see `Layout.distances`."""
    return Layout(num_tokens).distances(Layout(num_centres))


@_kept
def windows(num_tokens: int, num_centres: int) -> Floats:
    """(K, N) ones where a token lies in the cell of a centre; in cells that hold none, at the nearest token."""
    inside = np.zeros((num_centres, num_tokens))
    inside[Layout(num_tokens).cells(Layout(num_centres)), np.arange(num_tokens)] = 1
    empty = np.flatnonzero(inside.sum(1) == 0)
    inside[empty, distances(num_tokens, num_centres)[empty].argmin(1)] = 1
    return inside


@_kept
def members(num_tokens: int, num_centres: int) -> Floats:
    """(K, M) the tokens of every window, its first one repeated where it has fewer than the largest."""
    inside = [np.flatnonzero(row) for row in windows(num_tokens, num_centres)]
    most = max(map(len, inside))
    return np.array([np.pad(tokens, (0, most - len(tokens)), constant_values=tokens[0]) for tokens in inside], float)


def neighbours(num_tokens: int, num_centres: int = 0) -> Floats:
    """(9, N) the tokens on the 3 x 3 places around each one, N where the image ends; rows of others in their steps."""
    return _neighbours(num_tokens)


@_kept
def _neighbours(num_tokens: int) -> Floats:
    layout, found = Layout(num_tokens), []
    for down in (-1, 0, 1):
        row = np.clip(layout.row + down, 0, layout.rows - 1)
        first = np.searchsorted(layout.row, row)
        above = (2 * layout.column + 1) * layout.per_row[first] // (2 * layout.per_row)
        for right in (-1, 0, 1):
            outside = (row != layout.row + down) | (above + right < 0) | (above + right >= layout.per_row[first])
            found.append(np.where(outside, num_tokens, first + above + right))
    return np.array(found, float)


def cells(num_tokens: int, num_centres: int) -> Floats:
    """(1, K) in which of `num_tokens` cells each centre lies."""
    return Layout(num_centres).cells(Layout(num_tokens))[None].astype(float)


TABLES: dict[str, Callable[[int, int], Floats]] = {
    "distances": distances,
    "windows": windows,
    "members": members,
    "neighbours": neighbours,
    "cells": cells,
}


# Not assume_constant_result, which gives one tensor a graph (findings/constant_result_tensor_once.sh).
@torch.compiler.allow_in_graph
def fixed_table(
    name: str, pair: tuple[int, int], shape: tuple[int, int], fill: float | None, device: torch.device
) -> Tensor:
    """(1, *shape) a table of one number of patches and centres; it is sent to a device once."""

    def values() -> NDArray[np.float32]:
        return _padded([TABLES[name](*pair)], shape, fill)

    if type(torch.empty(0)) is not Tensor:  # a compiler looks on, whose tensors have no values
        return torch.tensor(values(), device=device)

    def sent() -> Tensor:
        with torch.inference_mode(False):  # training will want it, too
            return torch.from_numpy(values()).to(device)

    return _ON_DEVICE.get((name, pair, shape, fill, device), sent)


def _padded(tables: list[Floats], shape: tuple[int, int], fill: float | None) -> NDArray[np.float32]:
    """(T, *shape) tables in the upper left of what is filled; see `Places.table`."""
    wide = shape[1] or max(table.shape[1] for table in tables)
    out = np.full((len(tables), shape[0], wide), fill or 0, dtype=np.float32)
    for table, into in zip(tables, out, strict=True):
        if fill is None:
            into[: len(table)] = table[:, :1]
        into[: len(table), : table.shape[1]] = table
    return out


class Places:
    """What is known of a padded batch without looking at it: where its patches and centres are.

    Args:
        lengths: (B,) or (1,) tokens per image; an int: of every image.
        counts: (B, stages) or (1, stages) tokens to remain; ints: of every image.
        prefix: First tokens that are no patches.
        num_tokens: N, patches and prefix of the longest image.
        device: Of the tensors.

    Attributes:
        real: (B, N - prefix, 1) whether a place holds a patch.
        beyond: (B, K, 1) whether an image has fewer centres.
    """

    def __init__(self, lengths: Any, counts: Any, prefix: int, num_tokens: int, device: torch.device) -> None:
        self.longest, self.device = num_tokens - prefix, device
        # Images that are all alike share one table, of any number of them: static networks are compiled so.
        self.pair: tuple[int, int] | None = None
        if isinstance(lengths, int) and isinstance(counts, tuple):
            self.pair = lengths - prefix, counts[-1] - prefix
        else:
            images = max(len(lengths), len(counts))
            self.patches = np.broadcast_to(lengths - prefix, images)
            self.centres = np.broadcast_to(counts[:, -1] - prefix, images)
            if (self.patches == self.patches[0]).all() and (self.centres == self.centres[0]).all():
                self.pair = int(self.patches[0]), int(self.centres[0])
        patches: Any
        centres: Any
        if self.pair is not None:
            patches, centres = self.pair
            self.most = self.pair[1]
        else:
            self.most = int(self.centres.max())
            patches, centres = column(self.patches.copy(), device), column(self.centres.copy(), device)
        self.real = (torch.arange(self.longest, device=device)[None] < patches)[..., None]
        self.beyond = (torch.arange(self.most, device=device)[None] >= centres)[..., None]

    def table(self, name: str, shape: tuple[int, int], fill: float | None = 0.0, of: int | None = None) -> Tensor:
        """(B, *shape) what one of `TABLES` says of every image's patches and centres, and `fill` where it says nothing.

        Args:
            name: Of the table.
            shape: Rows and columns; 0 columns: as many as the widest has.
            fill: None: what the row begins with.
            of: A number of patches instead of every image's own.
        """
        if self.pair is not None:
            return fixed_table(name, (self.pair[0] if of is None else of, self.pair[1]), shape, fill, self.device)
        patches = self.patches if of is None else np.full_like(self.centres, of)
        pairs, of_image = np.unique(np.stack([patches, self.centres], axis=1), axis=0, return_inverse=True)
        padded = _padded([TABLES[name](int(n), int(k)) for n, k in pairs], shape, fill)
        return torch.from_numpy(padded[of_image.reshape(-1)]).to(self.device)

    def over_patches(self, name: str) -> Tensor:
        """(B, K, N - prefix) a table with a row for every centre."""
        return self.table(name, (self.most, self.longest))


def _unit(values: Tensor) -> Tensor:
    """Vectors of length one."""
    return F.normalize(values.float(), dim=-1)


def _gathered(shares: Tensor, size: Tensor, values: Tensor) -> Tensor:
    """(B, K, D) means of values (B, N, D), by shares (B, K, N) of patches that stand for so many (B, N)."""
    weight = shares * size[:, None]
    return (weight / weight.sum(2, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)) @ values


def _shared_out(places: Places, logits: Tensor) -> Tensor:
    """(B, K, N - prefix) shares of every patch in the centres, which sum to one; zero where there is none."""
    return logits.masked_fill(places.beyond, float("-inf")).softmax(1) * places.real.transpose(1, 2)


def _assignment(places: Places, shares: Tensor, prefix: int) -> Tensor:
    """(B, N, prefix + K) the shares as a token mode gives them: the first tokens go into themselves."""
    own = torch.eye(prefix, device=shares.device).expand(shares.shape[0], -1, -1)
    shares = F.pad(shares.transpose(1, 2), (prefix, 0))
    return torch.cat([F.pad(own, (0, shares.shape[2] - prefix)), shares], dim=1)


def _clustering_macs(num_tokens: Ints, counts: Ints, dims: Ints, prefix: int) -> Ints:
    """(B,) two means and two comparisons of every patch with every centre."""
    out: Ints = 4 * (num_tokens - prefix) * (counts[:, -1] - prefix) * dims
    return out


@register_token_mode("semantic_frozen", metric="keys", uses_scores=False, sized=True, soft=True, macs=_clustering_macs)
def semantic_frozen(
    scores: Tensor | None, metric: Tensor | None, size: Tensor, lengths: Ints, counts: Ints, prefix: int
) -> Assignment:
    """Semantic tokens without training: patches gather by their keys in the block's own attention.

    Two rounds of soft k-means in the keys' directions, from the means of equal windows; a patch prefers centres that
    are near. For supernets that were trained without `semantic`.
    """
    assert metric is not None
    places = Places(lengths, counts, prefix, size.shape[1], size.device)
    keys = _unit(metric[:, prefix:].masked_fill(~places.real, 0))
    weight = size[:, prefix:].masked_fill(~places.real[..., 0], 0)
    far = NEARNESS * places.over_patches("distances")
    centres = _gathered(places.over_patches("windows"), weight, keys)
    shares = _shared_out(places, SHARPNESS * _unit(centres) @ keys.mT - far)
    centres = _gathered(shares, weight, keys)
    shares = _shared_out(places, SHARPNESS * _unit(centres) @ keys.mT - far)
    return _assignment(places, shares, prefix), size


def _beside(values: Tensor, index: Tensor) -> Tensor:
    """(B, R, S, D) of values (B, N, D), those that an index (B or 1, R, S) names."""
    rows = index.long().flatten(1)[..., None].expand(values.shape[0], -1, values.shape[2])
    return values.gather(1, rows).unflatten(1, index.shape[1:])


class SemanticTokens(nn.Module):
    """Semantic tokens whose comparison is learned; called as a token mode is, in static networks with ints for sizes.

    Patches are compared with centres in `FEATURES` dimensions of their own. The centres begin as windows of the image
    (`init`), move to the mean of what they gather, get a learned global part (the paper's global centres) and gather
    again.

    Args:
        config: The supernet's (`SupernetConfig`).
        embed_dim: Channels of the tokens.
        init: How windows are pooled: "avg", "max", or "conv", the mean after a residual of a depth-wise 3 x 3
            convolution, norm, GELU and a 1 x 1 convolution.

    Raises:
        ValueError: If `init` is none of these.
    """

    takes_ints = True

    def __init__(self, config: Any, embed_dim: int, init: str = "conv") -> None:
        super().__init__()
        if init not in ("avg", "max", "conv"):
            raise ValueError(f"init={init!r} is unknown; choose one of 'avg', 'max', 'conv'.")
        self.init, self.num_patches = init, config.num_patches
        # Centres and patches begin in the same features: what is alike is near from the start.
        features = torch.randn(embed_dim, FEATURES) * config.embed_dim**-0.5
        self.keys, self.queries = nn.Parameter(features.clone()), nn.Parameter(features)
        self.global_centres = nn.Parameter(nn.init.trunc_normal_(torch.empty(config.num_patches, FEATURES), std=0.02))
        self.log_sharpness = nn.Parameter(torch.tensor(SHARPNESS).log())
        self.log_nearness = nn.Parameter(torch.tensor(NEARNESS).log())
        if init == "conv":
            self.around = nn.Parameter(nn.init.trunc_normal_(torch.empty(9, FEATURES), std=0.02))
            self.mix = nn.Linear(FEATURES, FEATURES)
            nn.init.zeros_(self.mix.weight)
            nn.init.zeros_(self.mix.bias)

    def forward(
        self, scores: Tensor | None, metric: Tensor | None, size: Tensor, lengths: Any, counts: Any, prefix: int
    ) -> Assignment:
        """Shares of every patch in the centres, see `supernet.tokens.modes`."""
        assert metric is not None
        places = Places(lengths, counts, prefix, size.shape[1], size.device)
        patches, width = metric[:, prefix:].masked_fill(~places.real, 0), metric.shape[2]
        weight = size[:, prefix:].masked_fill(~places.real[..., 0], 0)
        patches = F.layer_norm(patches, (width,))
        keys, values = _unit(patches @ self.keys[:width]), (patches @ self.queries[:width]).float()
        far = self.log_nearness.exp() * places.over_patches("distances")
        shares = self._gather(places, self._pooled(places, values, weight), keys, far)
        cell = places.table("cells", (1, places.most), of=self.num_patches)[:, 0].long()
        centres = _gathered(shares, weight, values) + self.global_centres[cell]
        return _assignment(places, self._gather(places, centres, keys, far), prefix), size

    def _gather(self, places: Places, centres: Tensor, keys: Tensor, far: Tensor) -> Tensor:
        """(B, K, N - prefix) shares in centres (B, K, FEATURES)."""
        return _shared_out(places, self.log_sharpness.exp() * (_unit(centres) @ keys.mT) - far)

    def _pooled(self, places: Places, values: Tensor, weight: Tensor) -> Tensor:
        """(B, K, FEATURES) what windows hold."""
        if self.init == "max":
            return _beside(values, places.table("members", (places.most, 0), fill=None)).amax(2)
        if self.init == "conv":
            values = values + self._around(places, values)
        return _gathered(places.over_patches("windows"), weight, values)

    def _around(self, places: Places, values: Tensor) -> Tensor:
        """(B, N - prefix, FEATURES) a depth-wise convolution, norm, GELU and a 1 x 1 convolution."""
        beside = places.table("neighbours", (9, places.longest), fill=places.longest).clamp(max=places.longest)
        padded = F.pad(values.masked_fill(~places.real, 0), (0, 0, 0, 1))
        # Features are float32 whatever the network's precision; its layer takes and gives its own.
        mixed = torch.einsum("bjnf,jf->bnf", _beside(padded, beside), self.around.float())
        mixed_residual: Tensor = self.mix(F.gelu(F.layer_norm(mixed, (FEATURES,))).to(self.around.dtype))
        return mixed_residual.float()


def _learned_macs(num_tokens: Ints, counts: Ints, dims: Ints, prefix: int, init: str) -> Ints:
    """(B,) of `SemanticTokens`: projections, what an initialisation costs, and the clustering."""
    patches, centres = num_tokens - prefix, counts[:, -1] - prefix
    products = patches * centres * (3 if init == "max" else 4)
    around = patches * (9 + FEATURES) * (init == "conv")
    out: Ints = FEATURES * (2 * patches * dims + products + around)
    return out


for _name, _init in {"semantic": "conv", "semantic_avg": "avg", "semantic_max": "max"}.items():
    register_token_mode(
        _name,
        TokenMode(
            module=partial(SemanticTokens, init=_init),
            metric="tokens",
            uses_scores=False,
            sized=True,
            soft=True,
            macs=partial(_learned_macs, init=_init),
        ),
    )
