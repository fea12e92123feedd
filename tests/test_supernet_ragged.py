"""Packed execution against loops over images."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from supernet.ragged import CALL_COST_PAIRS, Ints, attention, length_chunks, rows_of, runs, starts
from supernet.reduction import kept_tokens, prune

lengths_lists = st.lists(st.integers(1, 40), min_size=1, max_size=12)


def ints(values: list[int]) -> Ints:
    return np.array(values, dtype=np.int64)


@pytest.mark.parametrize("with_class_row", [False, True])
@pytest.mark.parametrize(
    ("lengths", "least_chunks"),
    [([7], 1), ([5, 5, 5], 1), ([9, 2, 17, 3, 17, 2], 1), ([150, 3, 90, 200, 4, 91, 3, 150, 2], 3)],
)
def test_attention_equals_a_loop_over_images(lengths: list[int], least_chunks: int, with_class_row: bool) -> None:
    heads, head_dim = 3, 8
    assert len(length_chunks(np.sort(ints(lengths)))) >= least_chunks
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(sum(lengths), heads * 3 * head_dim, generator=generator, requires_grad=True)
    outs, rows = [], []
    for image in qkv.split(lengths):
        q, k, v = image.view(len(image), heads, 3, head_dim).unbind(2)
        weights = (torch.einsum("qhc,khc->hqk", q, k) / math.sqrt(head_dim)).softmax(-1)
        outs.append(torch.einsum("hqk,khc->qhc", weights, v).flatten(1))
        rows.append(weights[:, 0].mean(0))
    expected, expected_row = torch.cat(outs), torch.cat(rows)

    out, row = attention(qkv, ints(lengths), heads, with_class_row)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-5)
    upstream = torch.randn(out.shape, generator=generator)
    gradients = [torch.autograd.grad((o * upstream).sum(), qkv, retain_graph=True)[0] for o in (out, expected)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-5)
    if with_class_row:
        assert row is not None
        torch.testing.assert_close(row, expected_row, rtol=0, atol=1e-6)
    else:
        assert row is None


@given(st.lists(st.integers(2, 200), min_size=1, max_size=6, unique=True), st.data())
def test_length_chunks_is_the_cheapest_cut_between_distinct_lengths(distinct: list[int], data: st.DataObject) -> None:
    values = sorted(distinct)
    lengths = ints([n for n in values for _ in range(data.draw(st.integers(1, 30)))])
    ends = [end for _, end in runs(lengths)]

    def cost(chunks: list[tuple[int, int]]) -> int:
        return sum((end - begin) * int(lengths[end - 1]) ** 2 + CALL_COST_PAIRS for begin, end in chunks)

    chunks = length_chunks(lengths)
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


@given(lengths_lists, st.data())
def test_prune_keeps_the_class_token_and_the_best_patches_in_place(lengths: list[int], data: st.DataObject) -> None:
    kept = [data.draw(st.integers(1, n)) for n in lengths]
    scores = [data.draw(st.lists(st.integers(0, 4), min_size=n, max_size=n)) for n in lengths]
    expected, first = [], 0
    for n, keep, score in zip(lengths, kept, scores, strict=True):
        best = sorted(range(1, n), key=lambda patch: (-score[patch], patch))[: keep - 1]
        expected += [first, *(first + patch for patch in sorted(best))]
        first += n
    packed = torch.tensor([float(s) for score in scores for s in score], requires_grad=True)
    before = packed.detach().clone()
    assert prune(packed, ints(lengths), ints(kept)).tolist() == expected
    assert torch.equal(packed, before)


@pytest.mark.parametrize(
    ("patches", "keep_rate", "kept"),
    [(10, 1.0, 10), (10, 0.61, 7), (10, 0.6, 6), (100, 0.55, 55), (16, 1 / 16, 1), (16, 0.0626, 2), (9, 1e-9, 1)],
)
def test_kept_tokens_rounds_patches_up_and_keeps_one_at_least(patches: int, keep_rate: float, kept: int) -> None:
    assert kept_tokens(ints([patches + 1]), np.array([keep_rate])).tolist() == [kept + 1]
