"""Token reduction against slow oracles written from the papers' formulas, and how many tokens are to stay."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from token_cases import AUTHORS, MODES, OURS, SIZED, THRESHOLD, cases, groups_of, ints, make_case, oracle, reduce
from torch import Tensor

from supernet import list_token_modes, token_mode
from supernet.tokens import tome as matchings
from supernet.tokens.modes import kept_tokens


def test_every_registered_mode_is_tested_here() -> None:
    ours = [name for name in list_token_modes() if not token_mode(name).soft]
    assert ours == sorted(OURS + THRESHOLD)
    # See test_semantic.py.
    assert set(list_token_modes()) - set(ours) == {"semantic", "semantic_avg", "semantic_max", "semantic_frozen"}
    assert [f"authors_{name}" for name in list_token_modes(authors=True)] == sorted(AUTHORS)
    assert sorted(name for name, mode in MODES.items() if mode.sized) == sorted(SIZED)


@pytest.mark.parametrize("mode", OURS + THRESHOLD + AUTHORS)
@given(st.data())
def test_a_batch_equals_the_slow_oracle_of_its_images(mode: str, data: st.DataObject) -> None:
    case = data.draw(cases(mode))
    reduced = reduce(mode, case)
    for i, n in enumerate(case.lengths):
        tokens = oracle(mode, case, i)
        assert len(tokens) == reduced.kept[i]
        assert groups_of(reduced.into[i], n) == [set(token.members) for token in tokens]
        np.testing.assert_allclose(reduced.x[i, : len(tokens)], [token.x for token in tokens], rtol=0, atol=1e-12)
        if mode in SIZED:
            assert reduced.size[i, : len(tokens)].tolist() == pytest.approx([token.size for token in tokens])


@pytest.mark.parametrize("prefix", [0, 1])
@pytest.mark.parametrize(("patches", "kept", "rounds"), [(32, 16, 1), (32, 15, 2), (32, 3, 4), (33, 1, 6)])
def test_tome_matches_again_while_more_is_to_go_than_one_matching_removes(
    patches: int, kept: int, rounds: int, prefix: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, pairs = [], matchings._Groups.pairs

    def counted(groups: matchings._Groups) -> tuple[Tensor, Tensor]:
        calls.append(groups.now)
        return pairs(groups)

    monkeypatch.setattr(matchings._Groups, "pairs", counted)
    case = make_case("tome", prefix, [patches + prefix], [[kept + prefix]], seed=kept)
    reduced, tokens = reduce("tome", case), oracle("tome", case, 0)
    assert len(calls) == rounds
    assert groups_of(reduced.into[0], patches + prefix) == [set(token.members) for token in tokens]
    np.testing.assert_allclose(reduced.x[0], [token.x for token in tokens], rtol=0, atol=1e-12)
    assert reduced.size.sum() == case.size.sum()


def test_tome_orders_unmerged_even_positions_before_odd_ones() -> None:
    """Worked out by hand: positions 0 to 6, of which 4 resembles 1 most and 2 resembles 5 second most."""
    angles = torch.tensor([0.0, 10.0, 52.0, 90.0, 11.0, 50.0, 130.0], dtype=torch.float64).deg2rad()
    metric = torch.stack([angles.cos(), angles.sin()], dim=1)[None]
    case = replace(make_case("tome", 1, [7], [[5]], seed=0), metric=metric)
    # Even positions left, then odd ones: 0, 6, {1, 4}, 3, {2, 5}.
    assert reduce("tome", case).into.tolist() == [[0, 2, 4, 3, 2, 4, 1]]
    three = replace(case, asked=np.array([[6]]))
    assert reduce("tome", three).into.tolist() == [[0, 3, 1, 4, 3, 5, 2]]


@pytest.mark.parametrize("prefix", [0, 1])
def test_tome_sorts_unmerged_tokens_with_and_without_a_class_token(prefix: int) -> None:
    """In the even positions similarity falls from back to front, so order by similarity would turn them around."""
    angles = torch.tensor([0.0, 60, 90, 180, 190, 270, 275, 8], dtype=torch.float64).deg2rad()
    metric = torch.stack([angles.cos(), angles.sin()], dim=1)
    metric = torch.cat([metric.new_ones(prefix, 2), metric])[None]
    case = make_case("tome", prefix, [8 + prefix], [[7 + prefix]], seed=0)
    into = reduce("tome", replace(case, metric=metric)).into[0, prefix:].tolist()
    even = [place for i, place in enumerate(into) if (i + prefix) % 2 == 0]
    alone = [place for place in even if into.count(place) == 1]
    assert len(alone) == 3
    assert alone == sorted(alone)


@pytest.mark.parametrize("prefix", [0, 1])
def test_fusing_a_single_patch_would_save_nothing_so_everything_stays(prefix: int) -> None:
    """EViT's counts: of 10 patches 9 are kept and the tenth becomes the fused token, which makes 10."""
    counts = MODES["prune_fused"].counts(np.array([10 + prefix]), np.array([[0.85]]), prefix)
    assert counts.tolist() == [[10 + prefix]]
    case = make_case("prune_fused", prefix, [10 + prefix], counts.tolist(), seed=4)
    reduced = reduce("prune_fused", case)
    assert reduced.into[0].tolist() == list(range(10 + prefix))
    assert torch.equal(reduced.x, case.x)
    two = MODES["prune_fused"].counts(np.array([10 + prefix]), np.array([[0.8]]), prefix)
    assert two.tolist() == [[9 + prefix]]


def test_the_class_token_takes_no_part_in_merging_though_it_is_the_most_alike() -> None:
    for mode in ("merge", "prune_merge", "tome", "authors_merge", "authors_prune_merge"):
        counts = [9, 4] if MODES[mode].num_rates == 2 else [4]
        case = make_case(mode, 1, [11], [counts], seed=1)
        case.metric[:, 0] = case.metric[:, 1:].mean(1)
        case.metric[:, 2::2] = case.metric[:, :1]
        case.scores[:, 0] = 0
        assert (reduce(mode, case).into[0] == 0).tolist() == [True] + [False] * 10


@pytest.mark.parametrize(("mode", "into"), [("prune", -1), ("prune_fused", 2), ("merge", 2), ("tome", 2)])
def test_without_a_class_token_the_first_token_is_a_patch_like_any_other(mode: str, into: int) -> None:
    """It has the lowest score and is most like the patch at position 3, so it is dropped, fused or merged there."""
    case = make_case(mode, 0, [5], [[3]], seed=2)
    case.scores[0] = torch.tensor([0.1, 0.2, 0.25, 0.3, 0.15])
    case.metric[0, 0] = case.metric[0, 3]
    assert reduce(mode, case).into[0, 0] == into


@given(st.lists(st.integers(1, 40), min_size=1, max_size=12), st.data())
def test_prune_keeps_the_class_token_and_of_equal_scores_the_earlier(lengths: list[int], data: st.DataObject) -> None:
    kept = [data.draw(st.integers(1, n)) for n in lengths]
    case = make_case("prune", 1, lengths, [[count] for count in kept], seed=0)
    case.scores[:] = torch.from_numpy(np.random.default_rng(sum(lengths)).integers(0, 5, case.scores.shape))
    into = reduce("prune", case).into
    for i, (n, keep) in enumerate(zip(lengths, kept, strict=True)):
        score = case.scores[i].tolist()
        best = sorted(range(1, n), key=lambda patch: (-score[patch], patch))[: keep - 1]
        stay = [0, *sorted(best)]
        assert into[i].tolist() == [stay.index(j) if j in stay else -1 for j in range(max(lengths))]


def test_the_fused_token_carries_the_attention_that_was_dropped() -> None:
    case = make_case("prune_fused", 1, [12], [[6]], seed=3)
    case.x[:] = 1
    dropped = case.scores[0, 1:].sort().values[:7]
    assert reduce("prune_fused", case).x[0, :, 0].tolist() == pytest.approx([1.0] * 5 + [dropped.sum().item()])


# ---- counts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", [0, 1])
@pytest.mark.parametrize(
    ("patches", "keep_rate", "kept"),
    [
        (10, 1.0, 10),
        (10, 0.61, 7),
        (10, 0.6, 6),
        (100, 0.55, 55),
        (16, 1 / 16, 1),
        (16, 0.0626, 2),
        (9, 1e-9, 1),
        (1, 0.5, 1),
    ],
)
def test_kept_tokens_rounds_patches_up_and_keeps_one_at_least(
    patches: int, keep_rate: float, kept: int, prefix: int
) -> None:
    assert kept_tokens(ints(patches + prefix), np.array([keep_rate]), prefix).tolist() == [kept + prefix]


@given(st.integers(1, 300), st.integers(1, 300))
def test_a_rate_written_as_a_fraction_keeps_exactly_that_many_patches(a: int, b: int) -> None:
    kept, patches = min(a, b), max(a, b)
    assert kept_tokens(ints(patches + 1), np.array([kept / patches])).tolist() == [kept + 1]


def test_evit_goes_from_197_tokens_to_140_100_and_72() -> None:
    tokens, path = ints(197), []
    for _ in range(3):
        tokens = MODES["prune_fused"].counts(tokens, np.array([[0.7]]), 1)[:, -1]
        path.append(int(tokens[0]))
    assert path == [140, 100, 72]


@pytest.mark.parametrize("mode", OURS + AUTHORS)
@given(st.integers(1, 60), st.floats(1e-9, 1), st.floats(1e-9, 1))
@example(4, 0.75, 1.0)
@example(1, 1e-9, 1e-9)
def test_counts_leave_between_one_patch_and_all_and_rate_one_keeps_all(
    mode: str, patches: int, first: float, second: float
) -> None:
    operator = MODES[mode]
    for prefix in (1,) if mode in AUTHORS else (0, 1):
        n = ints(patches + prefix)
        rates = np.array([[first, second][: operator.num_rates]])
        counts = operator.counts(n, rates, prefix)
        assert counts.shape == (1, operator.num_rates)
        chain = [int(n[0]), *counts[0].tolist(), prefix + 1]
        assert chain == sorted(chain, reverse=True)
        assert operator.counts(n, np.ones_like(rates), prefix)[:, -1].tolist() == n.tolist()


def test_the_authors_count_the_class_token_and_round_down() -> None:
    counts = MODES["authors_prune_merge"].counts(ints(65, 65), np.array([[0.7, 0.9], [1.0, 0.01]]), 1)
    assert counts.tolist() == [[45, 40], [65, 2]]


def test_two_rates_compose_each_relative_to_what_the_stage_before_left() -> None:
    counts = MODES["prune_merge"].counts(ints(101, 11), np.array([[0.5, 0.5], [0.15, 0.1]]), 1)
    assert counts.tolist() == [[51, 26], [3, 2]]
