"""Computing images of different lengths and widths in one batch, without masks over what is not there.

Tokens of B images are packed into one (T, C) buffer, image after image. Linear layers run once per distinct width
over a contiguous slice of rows; attention runs over chunks of images of (nearly) equal length.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

Ints = NDArray[np.int64]

# One more attention call costs about as much as this many additional padded query-key pairs per head.
CALL_COST_PAIRS = 4096


def starts(lengths: Ints) -> Ints:
    """First row of every image in the packed buffer: (B,)."""
    out = np.zeros_like(lengths)
    np.cumsum(lengths[:-1], out=out[1:])
    return out


def rows_of(images: Ints, lengths: Ints) -> Ints:
    """Packed rows of `images`, in that order, in a buffer of images of the given lengths."""
    n = lengths[images]
    return np.repeat(starts(lengths)[images] - starts(n), n) + np.arange(n.sum())


def take_rows(x: Tensor, rows: Ints) -> Tensor:
    """Rows of a packed (T, ...) buffer."""
    return x.index_select(0, torch.from_numpy(rows).to(x.device))


def runs(*keys: Ints) -> list[tuple[int, int]]:
    """Half-open ranges [i, j) over which all (B,) keys are constant."""
    changes = np.zeros(len(keys[0]), dtype=bool)
    changes[0] = True
    for key in keys:
        changes[1:] |= key[1:] != key[:-1]
    bounds = [*np.flatnonzero(changes).tolist(), len(changes)]
    return list(pairwise(bounds))


def length_chunks(lengths: Ints) -> list[tuple[int, int]]:
    """Cuts ascending lengths into ranges that are padded to their longest, so that calls plus padding cost least.

    Dynamic programme over the distinct lengths: a chunk costs (images) * (longest)^2 + CALL_COST_PAIRS.
    """
    distinct = runs(lengths)
    best = [0] + [0] * len(distinct)
    cut = [0] * (len(distinct) + 1)
    for j, (_, end) in enumerate(distinct, start=1):
        pairs = int(lengths[end - 1]) ** 2
        costs = [best[i] + (end - distinct[i][0]) * pairs + CALL_COST_PAIRS for i in range(j)]
        cut[j] = int(np.argmin(costs))
        best[j] = costs[cut[j]]
    chunks, j = [], len(distinct)
    while j:
        chunks.append((distinct[cut[j]][0], distinct[j - 1][1]))
        j = cut[j]
    return chunks[::-1]


def attention(
    qkv: Tensor, lengths: Ints, num_heads: int, log_size: Tensor | None, with_scores: bool, class_token: bool = True
) -> tuple[Tensor, Tensor | None]:
    """Softmax attention within every image of a packed batch.

    Args:
        qkv: (T, num_heads * 3 * head_dim), ordered (head, q|k|v, channel).
        lengths: (B,) tokens per image, class token first.
        num_heads: Number of heads.
        log_size: (T,) added to the logits of every key (proportional attention); None adds nothing.
        with_scores: Whether to compute what the class token attends to.
        class_token: Whether there is one; otherwise the mean of all queries takes its place in the scores.

    Returns:
        Output (T, num_heads * head_dim), and the attention of the class token to every token of its image, averaged
        over heads, (T,) float32 or None. One extra query row; the full attention matrix is never built.
    """
    order = np.argsort(lengths, kind="stable")
    if lengths.min() == lengths.max():
        shape = (len(lengths), int(lengths[0]))
        size = None if log_size is None else log_size.view(shape)
        return _padded_attention(qkv.view(*shape, -1), None, size, num_heads, with_scores, class_token)
    first = starts(lengths)
    outs, scores, rows = [], [], []
    for begin, end in length_chunks(lengths[order]):
        images = order[begin:end]
        n = lengths[images]
        position = np.arange(n.max())
        valid = position < n[:, None]
        index = first[images, None] + np.where(valid, position, 0)
        mask = None if bool(valid.all()) else torch.from_numpy(valid).to(qkv.device)
        padded = take_rows(qkv, index.ravel()).view(*index.shape, -1)
        size = None if log_size is None else take_rows(log_size, index.ravel()).view(index.shape)
        out, score = _padded_attention(padded, mask, size, num_heads, with_scores, class_token)
        if mask is not None:
            real = np.flatnonzero(valid)
            out = take_rows(out, real)
            score = None if score is None else take_rows(score, real)
        outs.append(out)
        scores.append(score)
        rows.append(index[valid])
    back = np.argsort(np.concatenate(rows), kind="stable")
    score = take_rows(torch.cat([s for s in scores if s is not None]), back) if with_scores else None
    return take_rows(torch.cat(outs), back), score


def _padded_attention(
    qkv: Tensor, valid: Tensor | None, log_size: Tensor | None, num_heads: int, with_scores: bool, class_token: bool
) -> tuple[Tensor, Tensor | None]:
    """`attention` for (B, L, ...) with the keys where `valid` (B, L) is False left out."""
    batch, length, channels = qkv.shape
    q, k, v = qkv.view(batch, length, num_heads, 3, channels // (3 * num_heads)).permute(3, 0, 2, 1, 4)
    bias = log_size
    if valid is not None and bias is not None:
        bias = bias.masked_fill(~valid, float("-inf"))
    mask = valid if bias is None else bias.to(qkv.dtype)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=None if mask is None else mask[:, None, None, :])
    out = out.transpose(1, 2).reshape(batch * length, -1)
    if not with_scores:
        return out, None
    return out, class_scores(q, k, valid, bias, class_token).reshape(-1)


def class_scores(q: Tensor, k: Tensor, valid: Tensor | None, bias: Tensor | None, class_token: bool) -> Tensor:
    """What the class token (or, without one, the mean query) attends to: (B, L) float32, mean over heads.

    Args:
        q: (B, H, L, head_dim) queries.
        k: (B, H, L, head_dim) keys.
        valid: (B, L) bool, which keys are there; None: all.
        bias: (B, L) added to the logits; None adds nothing.
        class_token: Whether position 0 is a class token.
    """
    if class_token:
        query = q[:, :, :1]
    elif valid is None:
        query = q.mean(2, keepdim=True)
    else:
        weight = valid[:, None, :, None].to(q.dtype)
        query = (q * weight).sum(2, keepdim=True) / weight.sum(2, keepdim=True)
    logits = (query @ k.transpose(-2, -1)).float() * q.shape[-1] ** -0.5
    if valid is not None:
        logits = logits.masked_fill(~valid[:, None, None, :], float("-inf"))
    if bias is not None:
        logits = logits + bias[:, None, None, :]
    return logits.softmax(-1).mean(1)[:, 0]
