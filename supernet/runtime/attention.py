"""Attention within the images of a packed batch: chunks of (nearly) equal length, short images share sequences."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ..arrays import Ints
from .devices import device_costs
from .packing import Padding, first_rows, places, row_images, rows_of, runs, starts, take_rows


@dataclass(frozen=True, eq=False)
class AttentionCall:
    """Sequences of packed tokens that go into one call of attention.

    Attributes:
        rows: Which rows of the packed buffer it takes, as they lie or, (sequences * longest,), one after another.
        shape: Number of sequences, tokens of the longest.
        inside: Places of its rows that are no padding; None: all.
        bias: float32, -inf where a query must not see a key and 0 elsewhere, broadcastable to (sequences, heads,
            longest, longest); None: each sees all.
    """

    rows: slice | Ints
    shape: tuple[int, int]
    inside: Ints | None = None
    bias: NDArray[np.float32] | None = None


def length_chunks(lengths: Ints, channels: int, device: str = "cpu") -> list[tuple[int, int]]:
    """Cuts ascending lengths into ranges that are padded to their longest, so that calls plus padding cost least.

    Dynamic programme over the distinct lengths: a chunk costs (images) * (longest)^2 + one call, and copies its tokens
    if it pads any.

    Args:
        lengths: (B,) tokens per image.
        channels: Of all heads together: the more there are, the less does a call matter.
        device: Type of the device.
    """
    costs = device_costs(device)
    call, copy = costs.call // channels, costs.copy
    distinct = runs(lengths)
    total = np.concatenate([[0], np.cumsum(lengths)])
    best = np.zeros(len(distinct) + 1, dtype=np.int64)
    cut = [0] * (len(distinct) + 1)
    begins = np.array([begin for begin, _ in distinct])
    for j, (_, end) in enumerate(distinct, start=1):
        prices = best[:j] + (end - begins[:j]) * (int(lengths[end - 1]) ** 2) + call
        prices[:-1] += copy * (total[end] - total[begins[: j - 1]])
        cut[j] = int(prices.argmin())
        best[j] = prices[cut[j]]
    chunks, j = [], len(distinct)
    while j:
        chunks.append((distinct[cut[j]][0], distinct[j - 1][1]))
        j = cut[j]
    return chunks[::-1]


def shared_sequences(lengths: Ints, longest: int) -> Ints:
    """How many images go into each sequence of at most `longest` tokens; no image is longer than that."""
    counts, used = [0], 0
    for n in lengths.tolist():
        if used + n > longest:
            counts.append(0)
            used = 0
        used += n
        counts[-1] += 1
    return np.array(counts, dtype=np.int64)


def attention_calls(lengths: Ints, channels: int, device: str = "cpu") -> tuple[list[AttentionCall], Ints | None]:
    """How attention within images is computed.

    Args:
        lengths: (B,) tokens per image; if they do not ascend, the calls take the images in an order in which they do.
        channels: Of all heads together: the more there are, the less does a call matter.
        device: Type of the device.

    Returns:
        The calls; and (T,) where each row's answer is among those of all calls, None: in the order of the rows.
    """
    return _attention_calls(lengths.tobytes(), channels, device)


# All blocks of a group that run at full size ask the same.
@lru_cache(maxsize=8)
def _attention_calls(lengths_bytes: bytes, channels: int, device: str) -> tuple[list[AttentionCall], Ints | None]:
    lengths = np.frombuffer(lengths_bytes, dtype=np.int64)
    if (lengths[1:] >= lengths[:-1]).all():
        return _ascending_calls(lengths, channels, device), None
    order = np.argsort(lengths, kind="stable")
    rows, calls, answers, before = rows_of(order, lengths), [], [], 0
    for call in _ascending_calls(lengths[order], channels, device):
        taken = rows[call.rows]
        answers.append(before + (np.arange(len(taken)) if call.inside is None else call.inside))
        before += len(taken)
        calls.append(AttentionCall(taken, call.shape, None, call.bias))
    back = np.empty_like(rows)
    back[rows] = np.concatenate(answers)
    return calls, back


def _ascending_calls(lengths: Ints, channels: int, device: str) -> list[AttentionCall]:
    if lengths[0] == lengths[-1]:
        return [AttentionCall(slice(0, int(lengths.sum())), (len(lengths), int(lengths[0])))]
    # A CPU kernel takes longer for 4 or 15 tokens than for 16, and a call for every length would cost more than the
    # arithmetic.
    longest = device_costs(device).shared_length
    short = int(np.searchsorted(lengths, longest, side="right"))
    calls, before = [], 0
    if short > 1:
        calls.append(_shared_call(lengths[:short], longest))
        before = int(lengths[:short].sum())
        lengths = lengths[short:]
    for begin, end in length_chunks(lengths, channels, device) if len(lengths) else []:
        n = lengths[begin:end]
        calls.append(_padded_call(before, n))
        before += int(n.sum())
    return calls


def _shared_call(lengths: Ints, longest: int) -> AttentionCall:
    """The first images, several in a sequence."""
    ends = np.cumsum(lengths)
    last = np.cumsum(shared_sequences(lengths, longest)) - 1
    begins = np.concatenate([[0], ends[last[:-1]]])
    real, index = places(begins, ends[last] - begins, longest)
    # Padding takes after the last image, so that no query is without a key: NaN would spoil the gradients.
    image = np.repeat(np.arange(len(lengths)), lengths)[index]
    keys = np.where(real, image, -1)
    bias = np.where(image[:, :, None] == keys[:, None, :], np.float32(0), np.float32("-inf"))[:, None]
    return AttentionCall(index.ravel(), index.shape, np.flatnonzero(real), bias)


def _padded_call(before: int, lengths: Ints) -> AttentionCall:
    """Images after `before` rows, one in a sequence."""
    ends, longest = before + np.cumsum(lengths), int(lengths[-1])
    if lengths[0] == longest:
        return AttentionCall(slice(before, int(ends[-1])), (len(lengths), longest))
    real, index = places(ends - lengths, lengths, longest)
    bias = np.where(real, np.float32(0), np.float32("-inf"))[:, None, None]
    return AttentionCall(index.ravel(), index.shape, np.flatnonzero(real), bias)


def attention(qkv: Tensor, lengths: Ints, num_heads: int, log_size: Tensor | None = None) -> Tensor:
    """Softmax attention within every image of a packed batch.

    Args:
        qkv: (T, num_heads * 3 * head_dim), ordered (head, q|k|v, channel).
        lengths: (B,) tokens per image; if they ascend, less is gathered.
        num_heads: Number of heads.
        log_size: (T,) added to the logits of every key (proportional attention); None adds nothing.

    Returns:
        (T, num_heads * head_dim).
    """
    if len(lengths) == 1:
        return _attention(qkv, (1, len(qkv)), num_heads, log_size)
    calls, back = attention_calls(lengths, qkv.shape[1] // 3, qkv.device.type)
    outs = []
    for call in calls:
        part, bias = _taken(qkv, call.rows), None if log_size is None else _taken(log_size, call.rows)
        out = _attention(part, call.shape, num_heads, bias, call.bias)
        outs.append(out if call.inside is None else take_rows(out, call.inside))
    out = outs[0] if len(outs) == 1 else torch.cat(outs)
    return out if back is None else take_rows(out, back)


def attention_of_first(qkv: Tensor, batch: int, num_heads: int, log_size: Tensor | None) -> Tensor:
    """`attention` of the first token of every image, where they all have as many: (batch, num_heads * head_dim)."""
    return _attention(qkv, (batch, len(qkv) // batch), num_heads, log_size, first=True)


def _taken(x: Tensor, rows: slice | Ints) -> Tensor:
    return x[rows] if isinstance(rows, slice) else take_rows(x, rows)


def _attention(
    qkv: Tensor,
    shape: tuple[int, int],
    num_heads: int,
    log_size: Tensor | None,
    unseen: NDArray[np.float32] | None = None,
    first: bool = False,
) -> Tensor:
    """Attention within sequences of one length.

    Args:
        qkv: (sequences * length, num_heads * 3 * head_dim).
        shape: (sequences, length).
        num_heads: Number of heads.
        log_size: (sequences * length,) added to the logits of every key; None adds nothing.
        unseen: Added to the logits, (sequences, 1, length or 1, length); None adds nothing.
        first: Whether the first query of each sequence is the only one.

    Returns:
        (sequences * length, num_heads * head_dim), or (sequences, num_heads * head_dim).
    """
    mask = None if unseen is None else torch.from_numpy(unseen).to(qkv.device, qkv.dtype)
    if log_size is not None:
        sizes = log_size.view(shape[0], 1, 1, shape[1]).to(qkv.dtype)
        mask = sizes if mask is None else mask + sizes
    q, k, v = qkv.view(*shape, num_heads, 3, -1).permute(3, 0, 2, 1, 4).unbind(0)
    rows, q = (shape[0], q[:, :, :1]) if first else (len(qkv), q)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).reshape(rows, -1)


def packed_class_scores(
    qkv: Tensor,
    lengths: Ints,
    num_heads: int,
    log_size: Tensor | None,
    class_token: bool,
    reg_tokens: int = 0,
    share: Tensor | None = None,
) -> Tensor:
    """What the class tokens of a packed batch attend to: one query row an image, no attention matrix is built.

    Args:
        qkv: (T, num_heads * 3 * head_dim), ordered (head, q|k|v, channel).
        lengths: (B,) tokens per image.
        num_heads: Number of heads.
        log_size: (T,) added to the logits of every key (proportional attention); None adds nothing.
        class_token: Whether there is one; otherwise the mean of the patches' queries takes its place.
        reg_tokens: Register tokens before the patches.
        share: (T, num_heads) what each head counts in the mean; None: all the same.

    Returns:
        (T,) float32, attention of the class token to every token of its image, mean over heads.
    """
    device = qkv.device
    q, k, _ = qkv.view(len(qkv), num_heads, 3, -1).unbind(2)
    if class_token:
        query = q[:1] if len(lengths) == 1 else take_rows(q, starts(lengths))
    else:
        if reg_tokens:
            q = q.index_fill(0, torch.from_numpy(first_rows(lengths, reg_tokens)).to(device), 0)
        total = q.new_zeros(len(lengths), *q.shape[1:]).index_add(0, row_images(lengths, device), q)
        query = total / torch.from_numpy(lengths - reg_tokens).to(device, q.dtype)[:, None, None]
    attended = attention_shares(query, k, lengths, log_size)
    return attended.mean(-1) if share is None else (attended * share).sum(-1)


def attention_shares(query: Tensor, k: Tensor, lengths: Ints, log_size: Tensor | None) -> Tensor:
    """(T, H) float32 softmax, within every image, of queries with keys.

    Args:
        query: (B, H, head_dim) one of every image, or (1, H, head_dim) the same for all.
        k: (T, H, head_dim).
        lengths: (B,) tokens per image.
        log_size: (T,) added to the logits of every key; None adds nothing.
    """
    if len(lengths) == 1:
        logits = (k * query).sum(-1).float() * k.shape[-1] ** -0.5
        return (logits if log_size is None else logits + log_size[:, None]).softmax(0)
    padding = Padding(lengths, k.device)
    if padding.inside is None:
        logits = (padding.padded(k) * query[:, None]).sum(-1)
    else:
        # Numbers are padded, not keys.
        each = query if len(query) == 1 else query.index_select(0, row_images(lengths, k.device))
        logits = padding.padded((k * each).sum(-1))
    logits = logits.float() * k.shape[-1] ** -0.5
    if log_size is not None:
        logits = logits + padding.padded(log_size)[..., None]
    if padding.inside is not None:
        logits = logits.masked_fill(~padding.inside[..., None], float("-inf"))
    return padding.packed(logits.softmax(1))


def class_scores(q: Tensor, k: Tensor, bias: Tensor | None, class_token: bool, reg_tokens: int = 0) -> Tensor:
    """What the class token (or, without one, the patches' mean query) attends to: (B, L) float32, mean over heads.

    Args:
        q: (B, H, L, head_dim) queries.
        k: (B, H, L, head_dim) keys.
        bias: (B, L) added to the logits; None adds nothing.
        class_token: Whether position 0 is a class token.
        reg_tokens: Register tokens before the patches.
    """
    query = q[:, :, :1] if class_token else q[:, :, reg_tokens:].mean(2, keepdim=True)
    logits = (query @ k.transpose(-2, -1)).float() * q.shape[-1] ** -0.5
    if bias is not None:
        logits = logits + bias[:, None, None, :]
    return logits.softmax(-1).mean(1)[:, 0]
