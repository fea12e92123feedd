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

# What cutting a batch for attention costs, in query-key pairs per head: one more call, and a token that is copied into
# a padded chunk. Measured on CPUs; on a GPU padding is nearly free and calls are not.
CALL_COST = {"cpu": 4096, "cuda": 1_000_000}
COPY_COST = {"cpu": 64, "cuda": 0}


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


def length_chunks(lengths: Ints, device: str = "cpu") -> list[tuple[int, int]]:
    """Cuts ascending lengths into ranges that are padded to their longest, so that calls plus padding cost least.

    Dynamic programme over the distinct lengths: a chunk costs (images) * (longest)^2 + one call, and copies its tokens
    if it pads any.
    """
    call, copy = (cost.get(device, cost["cuda"]) for cost in (CALL_COST, COPY_COST))
    distinct = runs(lengths)
    total = np.concatenate([[0], np.cumsum(lengths)])
    best = [0] + [0] * len(distinct)
    cut = [0] * (len(distinct) + 1)
    begins = np.array([begin for begin, _ in distinct])
    for j, (_, end) in enumerate(distinct, start=1):
        images = end - begins[:j]
        costs = np.array(best[:j]) + images * int(lengths[end - 1]) ** 2 + call
        costs[:-1] += copy * (total[end] - total[begins[: j - 1]])
        cut[j] = int(costs.argmin())
        best[j] = int(costs[cut[j]])
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
        lengths: (B,) tokens per image, ascending; the class token is first.
        num_heads: Number of heads.
        log_size: (T,) added to the logits of every key (proportional attention); None adds nothing.
        with_scores: Whether to compute what the class token attends to.
        class_token: Whether there is one; otherwise the mean of all queries takes its place in the scores.

    Returns:
        Output (T, num_heads * head_dim), and the attention of the class token to every token of its image, averaged
        over heads, (T,) float32 or None. One extra query row; the full attention matrix is never built.

    Raises:
        ValueError: If the lengths do not ascend.
    """
    if (lengths[1:] < lengths[:-1]).any():
        raise ValueError(f"lengths={lengths} must ascend, so that images of one length lie together.")
    ends = np.cumsum(lengths)
    outs, scores = [], []
    for begin, end in length_chunks(lengths, qkv.device.type):
        n = lengths[begin:end]
        rows = slice(int(ends[begin] - n[0]), int(ends[end - 1]))
        part, bias = qkv[rows], None if log_size is None else log_size[rows]
        if n[0] == n[-1]:
            shape = (len(n), int(n[0]))
            bias = None if bias is None else bias.view(shape)
            out, score = _padded_attention(part.view(*shape, -1), None, bias, num_heads, with_scores, class_token)
        else:
            position = np.arange(n[-1])
            inside = position < n[:, None]
            index = (ends[begin:end] - n - rows.start)[:, None] + np.where(inside, position, 0)
            valid = torch.from_numpy(inside).to(qkv.device)
            padded = take_rows(part, index.ravel()).view(*index.shape, -1)
            bias = None if bias is None else take_rows(bias, index.ravel()).view(index.shape)
            out, score = _padded_attention(padded, valid, bias, num_heads, with_scores, class_token)
            real = np.flatnonzero(inside)
            out, score = take_rows(out, real), None if score is None else take_rows(score, real)
        outs.append(out)
        if score is not None:
            scores.append(score)
    if len(outs) == 1:
        return outs[0], scores[0] if with_scores else None
    return torch.cat(outs), torch.cat(scores) if with_scores else None


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
