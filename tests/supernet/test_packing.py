"""Packed execution against loops over images."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from supernet.arrays import Ints
from supernet.runtime.attention import (
    attention,
    attention_calls,
    length_chunks,
    packed_class_scores,
    shared_sequences,
)
from supernet.runtime.devices import DEVICES
from supernet.runtime.packing import rows_of, runs, starts

lengths_lists = st.lists(st.integers(1, 40), min_size=1, max_size=12)


def ints(values: list[int]) -> Ints:
    return np.array(values, dtype=np.int64)


@pytest.mark.parametrize("with_scores", [False, True])
@pytest.mark.parametrize("class_token", [True, False])
@pytest.mark.parametrize("sized", [False, True])
@pytest.mark.parametrize(
    ("lengths", "least_calls"),
    [
        ([7], 1),
        ([5, 5, 5], 1),
        ([2, 2, 3, 9, 17, 17], 1),
        ([17, 2, 9, 3, 17, 2], 1),
        ([2, 3, 3, 4, 90, 91, 900, 900, 901], 3),
        ([900, 3, 90, 2, 3, 901, 4, 900, 91], 3),
    ],
)
def test_attention_equals_a_loop_over_images(
    lengths: list[int], least_calls: int, sized: bool, class_token: bool, with_scores: bool
) -> None:
    heads, head_dim = 3, 8
    assert len(attention_calls(ints(lengths), heads * head_dim)[0]) >= least_calls
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(sum(lengths), heads * 3 * head_dim, generator=generator, requires_grad=True)
    log_size = torch.randint(1, 9, (sum(lengths),), generator=generator).float().log()
    outs, rows = [], []
    for image, bias in zip(qkv.split(lengths), log_size.split(lengths), strict=True):
        q, k, v = image.view(len(image), heads, 3, head_dim).unbind(2)
        bias = bias if sized else torch.zeros_like(bias)
        weights = (torch.einsum("qhc,khc->hqk", q, k) / math.sqrt(head_dim) + bias).softmax(-1)
        outs.append(torch.einsum("hqk,khc->qhc", weights, v).flatten(1))
        query = q[0] if class_token else q.mean(0)
        rows.append((torch.einsum("hc,khc->hk", query, k) / math.sqrt(head_dim) + bias).softmax(-1).mean(0))
    expected, expected_row = torch.cat(outs), torch.cat(rows)

    size = log_size if sized else None
    out, row = attention(qkv, ints(lengths), heads, size), None
    if with_scores:
        row = packed_class_scores(qkv, ints(lengths), heads, size, class_token)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-5)
    upstream, upstream_row = (torch.randn(t.shape, generator=generator) for t in (out, expected_row))
    pairs = [(out, expected, upstream)]
    if with_scores:
        assert row is not None
        assert row.dtype == torch.float32
        torch.testing.assert_close(row, expected_row, rtol=0, atol=1e-6)
        pairs.append((row, expected_row, upstream_row))
    for actual, wanted, direction in pairs:
        gradients = [torch.autograd.grad((o * direction).sum(), qkv, retain_graph=True)[0] for o in (actual, wanted)]
        torch.testing.assert_close(*gradients, rtol=0, atol=1e-5)


@given(lengths_lists.filter(lambda lengths: lengths != sorted(lengths)), st.booleans(), st.data())
def test_attention_takes_images_in_any_order(lengths: list[int], sized: bool, data: st.DataObject) -> None:
    generator = torch.Generator().manual_seed(len(lengths))
    qkv = torch.randn(sum(lengths), 2 * 3 * 4, generator=generator)
    log_size = torch.rand(sum(lengths), generator=generator) if sized else None
    out = attention(qkv, ints(lengths), 2, log_size)
    for i in range(len(lengths)):
        rows = slice(int(starts(ints(lengths))[i]), int(starts(ints(lengths))[i]) + lengths[i])
        alone = attention(qkv[rows], ints([lengths[i]]), 2, None if log_size is None else log_size[rows])
        torch.testing.assert_close(out[rows], alone, rtol=0, atol=1e-5)


@given(lengths_lists.map(sorted), st.integers(0, 24))
def test_sequences_shared_by_short_images_are_full_but_for_the_next_image(lengths: list[int], more: int) -> None:
    longest = lengths[-1] + more
    counts = shared_sequences(ints(lengths), longest)
    assert counts.sum() == len(lengths)
    ends = np.cumsum(counts)
    tokens = [sum(lengths[end - count : end]) for end, count in zip(ends, counts, strict=True)]
    assert max(tokens) <= longest
    following = [lengths[end] for end in ends[:-1]]
    assert all(n + m > longest for n, m in zip(tokens[:-1], following, strict=True))


@given(st.lists(st.integers(2, 200), min_size=1, max_size=6, unique=True), st.sampled_from(["cpu", "cuda"]), st.data())
def test_length_chunks_is_the_cheapest_cut_between_distinct_lengths(
    distinct: list[int], device: str, data: st.DataObject
) -> None:
    values = sorted(distinct)
    lengths = ints([n for n in values for _ in range(data.draw(st.integers(1, 30)))])
    ends = [end for _, end in runs(lengths)]

    channels = data.draw(st.sampled_from([16, 192, 768]))

    def cost(chunks: list[tuple[int, int]]) -> int:
        total = 0
        for begin, end in chunks:
            total += (end - begin) * int(lengths[end - 1]) ** 2 + DEVICES[device].call // channels
            if lengths[begin] < lengths[end - 1]:
                total += DEVICES[device].copy * int(lengths[begin:end].sum())
        return total

    chunks = length_chunks(lengths, channels, device)
    assert [begin for begin, _ in chunks] == [0, *(end for _, end in chunks[:-1])]
    assert chunks[-1][1] == len(lengths)
    candidates = [
        list(itertools.pairwise([0, *inner, len(lengths)]))
        for count in range(len(ends))
        for inner in itertools.combinations(ends[:-1], count)
    ]
    assert cost(chunks) == min(cost(candidate) for candidate in candidates)


@given(lengths_lists, st.data())
def test_rows_of_lists_the_rows_of_the_chosen_images(lengths: list[int], data: st.DataObject) -> None:
    images = data.draw(st.lists(st.integers(0, len(lengths) - 1), max_size=15))
    packed = np.split(np.arange(sum(lengths)), np.cumsum(lengths)[:-1])
    assert rows_of(ints(images), ints(lengths)).tolist() == [int(row) for i in images for row in packed[i]]
    assert starts(ints(lengths)).tolist() == [int(rows[0]) for rows in packed]
