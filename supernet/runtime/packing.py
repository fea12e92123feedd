"""Computing images of different lengths and widths in one batch, without masks over what is not there.

Tokens of B images are packed into one (T, C) buffer, image after image. Linear layers run once per distinct width
over a contiguous slice of rows; attention runs over chunks of images of (nearly) equal length.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ..arrays import Bools, Ints
from .devices import device_costs


@dataclass(frozen=True, eq=False)
class AttentionCall:
    """Sequences of packed tokens that go into one call of attention.

    Attributes:
        rows: Which rows of the packed buffer it takes.
        shape: Number of sequences, tokens of the longest.
        index: (sequences * longest,) which of the rows stands where; None: as they lie.
        inside: (rows,) places of the rows; None: as they lie.
        bias: float32, -inf where a query must not see a key and 0 elsewhere, broadcastable to (sequences, heads,
            longest, longest); None: each sees all.
    """

    rows: slice
    shape: tuple[int, int]
    index: Ints | None = None
    inside: Ints | None = None
    bias: NDArray[np.float32] | None = None


@dataclass(frozen=True, eq=False)
class Packed:
    """Tokens of B images, image after image.

    Attributes:
        x: (T, C); channels beyond an image's own are zero.
        lengths: (B,) tokens per image.
        size: (T,) patches that a token stands for; None: one each.
        images: (B,) which image of the plan stands at each place.
    """

    x: Tensor
    lengths: Ints
    size: Tensor | None
    images: Ints

    def listed(self, order: Ints | None) -> tuple[Packed, Ints | None]:
        """The images in another order, None the same one, with their tokens as they lie; and at which rows these do."""
        if order is None:
            return self, None
        rows = rows_of(order, self.lengths)
        size = None if self.size is None else take_rows(self.size, rows)
        return Packed(self.x, self.lengths[order], size, self.images[order]), rows

    def holding(self, x: Tensor) -> Packed:
        """The same images with other tokens."""
        return Packed(x, self.lengths, self.size, self.images)

    def sorted_by(self, order: Ints | None) -> Packed:
        """The images in another order, None the same one."""
        listed, rows = self.listed(order)
        return self if rows is None else listed.holding(take_rows(self.x, rows))


def starts(lengths: Ints) -> Ints:
    """First row of every image in the packed buffer: (B,)."""
    out = np.zeros_like(lengths)
    np.cumsum(lengths[:-1], out=out[1:])
    return out


def places(begins: Ints, counts: Ints, longest: int) -> tuple[Bools, Ints]:
    """Which places of padded sequences hold a token, and the row that stands at each; padding repeats the last one.

    Args:
        begins: (S,) first row of each sequence.
        counts: (S,) rows of each.
        longest: Places of each.

    Returns:
        Two (S, longest) arrays.
    """
    position = np.arange(longest)
    return position < counts[:, None], begins[:, None] + np.minimum(position, counts[:, None] - 1)


class Padding:
    """Packed tokens as sequences of one length; where all have that length anyway, nothing is copied.

    Args:
        lengths: (B,) tokens per image.
        device: Of the tokens.

    Attributes:
        inside: (B, longest) bool, which places hold a token; None: all do.
    """

    def __init__(self, lengths: Ints, device: torch.device) -> None:
        self._shape = len(lengths), int(lengths.max())
        self.inside: Tensor | None = None
        if int(lengths.min()) < self._shape[1]:
            real, index = places(starts(lengths), lengths, self._shape[1])
            self.inside = torch.from_numpy(real).to(device)
            self._index = torch.from_numpy(index.ravel()).to(device)
            self._rows = torch.from_numpy(np.flatnonzero(real)).to(device)

    def padded(self, values: Tensor) -> Tensor:
        """(T, ...) of tokens as (B, longest, ...); padding repeats an image's last."""
        rows = values if self.inside is None else values.index_select(0, self._index)
        return rows.unflatten(0, self._shape)

    def packed(self, padded: Tensor) -> Tensor:
        """(B, longest, ...) as (T, ...): inverse of `padded`."""
        flat = padded.flatten(0, 1)
        return flat if self.inside is None else flat.index_select(0, self._rows)


def rows_of(images: Ints, lengths: Ints) -> Ints:
    """Packed rows of `images`, in that order, in a buffer of images of the given lengths."""
    n = lengths[images]
    return np.repeat(starts(lengths)[images] - starts(n), n) + np.arange(n.sum())


def row_images(lengths: Ints, device: torch.device) -> Tensor:
    """(T,) which image each packed row belongs to."""
    return torch.from_numpy(np.repeat(np.arange(len(lengths)), lengths)).to(device)


def take_rows(x: Tensor, rows: Ints) -> Tensor:
    """Rows of a packed (T, ...) buffer."""
    return x.index_select(0, torch.from_numpy(rows).to(x.device))


def runs(*keys: Ints) -> list[tuple[int, int]]:
    """Half-open ranges [i, j) over which all (B,) keys are constant."""
    if len(keys[0]) == 1:
        return [(0, 1)]
    changes = np.zeros(len(keys[0]), dtype=bool)
    changes[0] = True
    for key in keys:
        changes[1:] |= key[1:] != key[:-1]
    bounds = [*np.flatnonzero(changes).tolist(), len(changes)]
    return list(pairwise(bounds))


def first_rows(lengths: Ints, count: int) -> Ints:
    """(B * count,) rows of the first `count` tokens of every image in the packed buffer."""
    rows: Ints = (starts(lengths)[:, None] + np.arange(count)).ravel()
    return rows


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


def attention_calls(lengths: Ints, channels: int, device: str = "cpu") -> list[AttentionCall]:
    """How attention within images is computed.

    Args:
        lengths: (B,) tokens per image, ascending.
        channels: Of all heads together: the more there are, the less does a call matter.
        device: Type of the device.
    """
    return _attention_calls(lengths.tobytes(), channels, device)


# All blocks of a group that run at full size ask the same.
@lru_cache(maxsize=8)
def _attention_calls(lengths_bytes: bytes, channels: int, device: str) -> list[AttentionCall]:
    lengths = np.frombuffer(lengths_bytes, dtype=np.int64)
    if lengths[0] == lengths[-1]:
        return [AttentionCall(slice(0, int(lengths.sum())), (len(lengths), int(lengths[0])))]
    # A CPU kernel takes longer for 4 or 15 tokens than for 16, and a call for every length would cost more than the
    # arithmetic.
    longest = device_costs(device).shared_length
    short = int(np.searchsorted(lengths, longest, side="right"))
    calls, before = [], 0
    if short > 1:
        calls.append(_shared_call(lengths[:short], longest))
        before = calls[0].rows.stop
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
    return AttentionCall(slice(0, int(ends[-1])), index.shape, index.ravel(), np.flatnonzero(real), bias)


def _padded_call(before: int, lengths: Ints) -> AttentionCall:
    """Images after `before` rows, one in a sequence."""
    ends, longest = np.cumsum(lengths), int(lengths[-1])
    rows = slice(before, before + int(ends[-1]))
    if lengths[0] == longest:
        return AttentionCall(rows, (len(lengths), longest))
    real, index = places(ends - lengths, lengths, longest)
    bias = np.where(real, np.float32(0), np.float32("-inf"))[:, None, None]
    return AttentionCall(rows, index.shape, index.ravel(), np.flatnonzero(real), bias)


def attention(qkv: Tensor, lengths: Ints, num_heads: int, log_size: Tensor | None = None) -> Tensor:
    """Softmax attention within every image of a packed batch.

    Args:
        qkv: (T, num_heads * 3 * head_dim), ordered (head, q|k|v, channel).
        lengths: (B,) tokens per image; if they ascend, nothing has to be sorted.
        num_heads: Number of heads.
        log_size: (T,) added to the logits of every key (proportional attention); None adds nothing.

    Returns:
        (T, num_heads * head_dim).
    """
    channels = qkv.shape[1] // 3
    if len(lengths) == 1:
        return _attention(qkv, (1, len(qkv)), num_heads, log_size)
    if (lengths[1:] < lengths[:-1]).any():
        order = np.argsort(lengths, kind="stable")
        rows = rows_of(order, lengths)
        log_size = None if log_size is None else take_rows(log_size, rows)
        out = attention(take_rows(qkv, rows), lengths[order], num_heads, log_size)
        return take_rows(out, rows_of(np.argsort(order), lengths[order]))
    outs = []
    for call in attention_calls(lengths, channels, qkv.device.type):
        part = qkv[call.rows]
        bias = None if log_size is None else log_size[call.rows]
        if call.index is not None:
            part = take_rows(part, call.index)
            bias = None if bias is None else take_rows(bias, call.index)
        out = _attention(part, call.shape, num_heads, bias, call.bias)
        outs.append(out if call.inside is None else take_rows(out, call.inside))
    return outs[0] if len(outs) == 1 else torch.cat(outs)


def _attention(
    qkv: Tensor,
    shape: tuple[int, int],
    num_heads: int,
    log_size: Tensor | None,
    unseen: NDArray[np.float32] | None = None,
) -> Tensor:
    """Attention within sequences of one length.

    Args:
        qkv: (sequences * length, num_heads * 3 * head_dim).
        shape: (sequences, length).
        num_heads: Number of heads.
        log_size: (sequences * length,) added to the logits of every key; None adds nothing.
        unseen: Added to the logits, (sequences, 1, length or 1, length); None adds nothing.

    Returns:
        (sequences * length, num_heads * head_dim).
    """
    mask = None if unseen is None else torch.from_numpy(unseen).to(qkv.device, qkv.dtype)
    if log_size is not None:
        sizes = log_size.view(shape[0], 1, 1, shape[1]).to(qkv.dtype)
        mask = sizes if mask is None else mask + sizes
    q, k, v = qkv.view(*shape, num_heads, 3, -1).permute(3, 0, 2, 1, 4).unbind(0)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).reshape(len(qkv), -1)


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
