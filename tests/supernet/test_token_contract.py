"""The invariants that every token mode keeps."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from token_cases import (
    AUTHORS,
    MODES,
    OURS,
    SIZED,
    THRESHOLD,
    Case,
    asked_for,
    cases,
    groups_of,
    ints,
    make_case,
    reduce,
)
from torch import Tensor

from supernet.runtime.attention import attention, packed_class_scores
from supernet.tokens.modes import token_mode


@pytest.mark.parametrize("mode", OURS + THRESHOLD + AUTHORS)
@given(st.data())
def test_class_token_and_registers_stay_first_and_bit_for_bit_the_same(mode: str, data: st.DataObject) -> None:
    case = data.draw(cases(mode).filter(lambda c: c.prefix >= 1))
    reduced, first = reduce(mode, case), case.prefix
    assert torch.equal(reduced.x[:, :first], case.x[:, :first])
    assert torch.equal(reduced.size[:, :first], torch.ones(len(case.x), first, dtype=torch.float64))
    assert (reduced.into[:, :first] == torch.arange(first)).all()
    others = reduced.into[:, first:]
    assert ((others < 0) | (others >= first)).all()


@pytest.mark.parametrize("mode", OURS + THRESHOLD + AUTHORS)
@given(st.data())
def test_exactly_as_many_tokens_remain_as_asked_for_or_as_the_mode_says(mode: str, data: st.DataObject) -> None:
    case = data.draw(cases(mode))
    reduced = reduce(mode, case)
    for i, n in enumerate(case.lengths):
        assert set(reduced.into[i, :n].tolist()) - {-1} == set(range(reduced.kept[i]))
        assert (reduced.into[i, n:] == -1).all()
        assert mode in THRESHOLD or reduced.kept[i] == case.asked[i, -1]


def test_exactly_as_many_patches_are_dropped_as_the_mode_prunes() -> None:
    dropped = {"prune": 9, "authors_prune": 9, "prune_merge": 4, "authors_prune_merge": 4}
    for mode in OURS + AUTHORS:
        counts = [9, 4] if MODES[mode].num_rates == 2 else [4]
        case = make_case(mode, 1, [13], [counts], seed=4)
        lost = (reduce(mode, case).into[0] < 0).nonzero().flatten().tolist()
        worst = case.scores[0, 1:].argsort()[: dropped.get(mode, 0)] + 1
        assert sorted(lost) == sorted(worst.tolist()), mode


@pytest.mark.parametrize("mode", OURS + THRESHOLD)
@given(st.data())
def test_keeping_all_is_the_identity_and_not_a_reordering(mode: str, data: st.DataObject) -> None:
    case = data.draw(cases(mode))
    whole = data.draw(st.integers(0, len(case.lengths) - 1))
    case.asked[whole] = 1 if mode in THRESHOLD else case.lengths[whole]
    n, reduced = int(case.lengths[whole]), reduce(mode, case)
    assert reduced.into[whole, :n].tolist() == list(range(n))
    assert torch.equal(reduced.x[whole, :n], case.x[whole, :n])
    assert torch.equal(reduced.size[whole, :n], case.size[whole, :n])


@pytest.mark.parametrize("mode", AUTHORS)
@given(st.data())
def test_keeping_all_sorts_by_score_with_the_authors_rules(mode: str, data: st.DataObject) -> None:
    case = data.draw(cases(mode))
    case.asked[:] = case.lengths[:, None]
    reduced = reduce(mode, case)
    for i, n in enumerate(case.lengths):
        order = [0, *(1 + case.scores[i, 1:n].argsort(descending=True)).tolist()]
        assert torch.equal(reduced.x[i, :n], case.x[i, order])
        assert torch.equal(reduced.size[i, :n], case.size[i, order])


@pytest.mark.parametrize("mode", SIZED)
@given(st.data())
def test_merging_conserves_the_sizes_of_what_was_not_pruned(mode: str, data: st.DataObject) -> None:
    case = data.draw(cases(mode))
    reduced = reduce(mode, case)
    for i, n in enumerate(case.lengths):
        stays = reduced.into[i, :n] >= 0
        pruned = n - int(case.asked[i, 0]) if MODES[mode].num_rates == 2 else 0
        assert int((~stays).sum()) == pruned
        assert reduced.size[i, : reduced.kept[i]].sum() == case.size[i, :n][stays].sum()


@pytest.mark.parametrize("mode", ["merge", "prune_merge", "tome", "merge_above"])
@given(st.data())
def test_the_weighted_mean_conserves_the_sum_of_size_times_token(mode: str, data: st.DataObject) -> None:
    case = data.draw(cases(mode))
    reduced = reduce(mode, case)
    for i, n in enumerate(case.lengths):
        kept = int(reduced.kept[i])
        stays = reduced.into[i, :n] >= 0
        before = (case.size[i, :n, None] * case.x[i, :n])[stays].sum(0)
        after = (reduced.size[i, :kept, None] * reduced.x[i, :kept]).sum(0)
        torch.testing.assert_close(after, before, rtol=0, atol=1e-10)


@pytest.mark.parametrize("mode", ["authors_merge", "authors_prune_merge"])
@given(st.data())
def test_the_authors_take_the_plain_mean(mode: str, data: st.DataObject) -> None:
    case = data.draw(cases(mode))
    reduced = reduce(mode, case)
    for i, n in enumerate(case.lengths):
        for new, members in enumerate(groups_of(reduced.into[i], n)):
            torch.testing.assert_close(reduced.x[i, new], case.x[i, sorted(members)].mean(0), rtol=0, atol=1e-12)


@st.composite
def one_image_and_an_order(draw: st.DrawFn, mode: str) -> tuple[Case, Tensor]:
    case = draw(cases(mode)).alone(0)
    patches = draw(st.permutations(range(case.prefix, int(case.lengths[0]))))
    return case, torch.tensor([*range(case.prefix), *patches])


@pytest.mark.parametrize("mode", ["prune", "prune_fused", "prune_mass", "merge", "prune_merge"])
@given(st.data())
def test_permuting_the_patches_permutes_the_result(mode: str, data: st.DataObject) -> None:
    case, order = data.draw(one_image_and_an_order(mode))
    before, after = reduce(mode, case), reduce(mode, case.permuted(order))
    n, scores = int(case.lengths[0]), case.scores[0]
    # Tokens are told by what went into them; each stands where the best-ranked of those stands, the fused one last.
    old = {frozenset(members): new for new, members in enumerate(groups_of(before.into[0], n))}
    new = [frozenset(int(order[j]) for j in members) for members in groups_of(after.into[0], n)]
    assert set(new) == set(old)
    places = [old[members] for members in new]
    torch.testing.assert_close(after.x[0], before.x[0, places], rtol=0, atol=1e-12)
    torch.testing.assert_close(after.size[0], before.size[0, places], rtol=0, atol=0)
    fused = mode == "prune_fused" and len(new) < n
    place_of = {int(token): place for place, token in enumerate(order)}
    owners = [place_of[max(members, key=lambda i: scores[i])] for members in new[case.prefix : len(new) - fused]]
    assert owners == sorted(owners)


@pytest.mark.parametrize("mode", AUTHORS)
@given(st.data())
def test_permuting_the_patches_changes_nothing_with_the_authors_rules(mode: str, data: st.DataObject) -> None:
    case, order = data.draw(one_image_and_an_order(mode))
    before, after = reduce(mode, case), reduce(mode, case.permuted(order))
    torch.testing.assert_close(after.x, before.x, rtol=0, atol=1e-12)
    assert torch.equal(after.size, before.size)


def test_tome_depends_on_whether_positions_are_even_or_odd() -> None:
    """Two equal patches merge if one stands at an even and one at an odd position, and never otherwise."""
    case = make_case("tome", 1, [6], [[5]], seed=5)
    case.metric[0, 3] = case.metric[0, 1]
    neighbours = torch.tensor([0, 1, 3, 2, 4, 5])
    apart, beside = reduce("tome", case), reduce("tome", case.permuted(neighbours))
    assert apart.into[0, 1] != apart.into[0, 3]
    assert beside.into[0, 1] == beside.into[0, 2]
    old = {frozenset(members) for members in groups_of(apart.into[0], 6)}
    new = {frozenset(int(neighbours[j]) for j in members) for members in groups_of(beside.into[0], 6)}
    assert old != new


@pytest.mark.parametrize("mode", OURS + THRESHOLD + AUTHORS)
@given(st.data())
def test_no_input_is_changed_in_place(mode: str, data: st.DataObject) -> None:
    case = data.draw(cases(mode))
    case.x.requires_grad_(True)
    before = {name: (value.clone(), value._version) for name, value in vars(case).items() if isinstance(value, Tensor)}
    arrays = {name: value.copy() for name, value in vars(case).items() if isinstance(value, np.ndarray)}
    reduced = reduce(mode, case)
    reduced.x.sum().backward()
    for name, (tensor, version) in before.items():
        assert torch.equal(getattr(case, name), tensor), name
        assert getattr(case, name)._version == version, name
    for name, array in arrays.items():
        np.testing.assert_array_equal(getattr(case, name), array, err_msg=name)


GARBAGE: list[float] = [math.nan, math.inf, -math.inf, 1e30, -1e30]


@pytest.mark.slow
@pytest.mark.parametrize("mode", OURS + THRESHOLD + AUTHORS)
@given(st.data())
def test_a_padded_batch_equals_its_images_one_by_one_whatever_the_padding_holds(mode: str, data: st.DataObject) -> None:
    case = data.draw(cases(mode).filter(lambda c: c.lengths.min() < c.lengths.max()))
    for name in ("x", "scores", "metric", "size"):
        garbage = data.draw(st.sampled_from(GARBAGE))
        for i, n in enumerate(case.lengths):
            getattr(case, name)[i, n:] = garbage
    together = reduce(mode, case)
    for i, (n, kept) in enumerate(zip(case.lengths, together.kept, strict=True)):
        alone = reduce(mode, case.alone(i))
        assert torch.equal(together.into[i, :n], alone.into[0])
        torch.testing.assert_close(together.x[i, :kept], alone.x[0], rtol=0, atol=1e-12)
        assert torch.equal(together.size[i, :kept], alone.size[0])


@pytest.mark.parametrize("mode", OURS + THRESHOLD + AUTHORS)
def test_one_length_and_one_count_serve_every_image(mode: str) -> None:
    lengths = [11] * 3
    case = make_case(mode, 1, lengths, asked_for(mode, lengths, 4), seed=6)
    single = replace(case, lengths=case.lengths[:1], asked=case.asked[:1])
    assert torch.equal(reduce(mode, single).into, reduce(mode, case).into)
    assert torch.equal(reduce(mode, single).x, reduce(mode, case).x)


@pytest.mark.parametrize("mode", OURS + THRESHOLD + AUTHORS)
def test_gradients_flow_to_the_tokens_by_the_weights_of_the_formula(mode: str) -> None:
    case = make_case(mode, 1, [11], asked_for(mode, [11], 4), seed=7)
    for name in ("x", "scores", "metric"):
        getattr(case, name).requires_grad_(True)
    reduced = reduce(mode, case)
    direction = torch.randn(reduced.x.shape, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    (reduced.x * direction).sum().backward()
    expected, to_scores = torch.zeros_like(case.x), torch.zeros_like(case.scores)
    with torch.no_grad():
        for i, new in enumerate(reduced.into[0].tolist()):
            if new < 0:
                continue
            together = [j for j, other in enumerate(reduced.into[0].tolist()) if other == new]
            if mode == "prune_fused" and len(together) > 1:
                share = case.scores[0, i]
                to_scores[0, i] = (direction[0, new] * case.x[0, i]).sum()
            elif mode in AUTHORS:
                share = torch.tensor(1 / len(together), dtype=torch.float64)
            else:
                share = case.size[0, i] / case.size[0, together].sum()
            expected[0, i] = share * direction[0, new]
    assert case.x.grad is not None
    torch.testing.assert_close(case.x.grad, expected, rtol=0, atol=1e-12)
    scores_grad = torch.zeros_like(to_scores) if case.scores.grad is None else case.scores.grad
    torch.testing.assert_close(scores_grad, to_scores, rtol=0, atol=1e-12)
    assert case.metric.grad is None


# ---- proportional attention -------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 5), min_size=1, max_size=8), st.integers(0, 1000))
def test_attention_to_a_merged_token_weighs_as_much_as_to_its_equal_duplicates(copies: list[int], seed: int) -> None:
    heads, head_dim = 2, 8
    generator = torch.Generator().manual_seed(seed)
    distinct = torch.randn(1 + len(copies), heads * 3 * head_dim, generator=generator)
    repeats = torch.tensor([1, *copies])
    long = distinct.repeat_interleave(repeats, dim=0)
    sizes = repeats.float()
    expected = attention(long, ints(len(long)), heads)
    expected_scores = packed_class_scores(long, ints(len(long)), heads, None, True)
    actual = attention(distinct, ints(len(distinct)), heads, sizes.log())
    scores = packed_class_scores(distinct, ints(len(distinct)), heads, sizes.log(), True)
    assert scores is not None
    assert expected_scores is not None
    first = torch.cumsum(repeats, 0) - repeats
    torch.testing.assert_close(actual, expected[first], rtol=0, atol=1e-5)
    torch.testing.assert_close(scores, expected_scores[first] * sizes, rtol=0, atol=1e-5)
    if max(copies) > 1 and len(copies) > 1:
        unsized = attention(distinct, ints(len(distinct)), heads)
        assert (unsized - expected[first]).abs().max() > 1e-3


@pytest.mark.parametrize("mode", ["merge", "prune_merge", "tome"])
def test_merging_equal_duplicates_changes_no_attention(mode: str) -> None:
    """Every second patch is the one before it again; merging them leaves distinct tokens of size two."""
    heads, width, generator = 2, 16, torch.Generator().manual_seed(9)
    x = torch.randn(1, 11, width, generator=generator)
    x[:, 2::2] = x[:, 1::2]
    scores = torch.rand(1, 11, generator=generator)
    scores[:, 2::2] = scores[:, 1::2] / 100
    counts = np.array([[11, 6] if MODES[mode].num_rates == 2 else [6]])
    case = Case(x, scores, x, torch.ones(1, 11), ints(11), counts, 1)
    reduced = reduce(mode, case)
    assert sorted(reduced.size[0].tolist()) == [1, 2, 2, 2, 2, 2]
    qkv = torch.randn(width, heads * 3 * 8, generator=generator)
    expected = attention(x[0] @ qkv, ints(11), heads)
    actual = attention(reduced.x[0] @ qkv, ints(6), heads, reduced.size[0].log())
    first = [min(members) for members in groups_of(reduced.into[0], 11)]
    torch.testing.assert_close(actual, expected[first], rtol=0, atol=1e-5)


@pytest.mark.parametrize("mode", OURS + THRESHOLD + AUTHORS)
def test_what_a_mode_says_it_does_not_read_makes_no_difference(mode: str) -> None:
    operator = MODES[mode]
    case = make_case(mode, 1, [11], asked_for(mode, [11], 4), seed=10)
    if mode not in AUTHORS:  # theirs prune if they are given no features
        into, *_ = operator.assignment(None, case.scores, case.metric, case.size, case.lengths, case.asked, 1)
        assert torch.equal(reduce(mode, case).into, into)
    if not operator.sized:
        other = replace(case, size=case.size * 7)
        assert torch.equal(reduce(mode, other).x, reduce(mode, case).x)


def test_an_unknown_mode_is_refused_with_those_that_exist() -> None:
    with pytest.raises(ValueError, match=r"token_mode='melt'.*'merge'.*'prune'.*'prune_fused'.*'prune_merge'.*'tome'"):
        token_mode("melt")
