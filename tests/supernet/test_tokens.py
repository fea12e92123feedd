"""Token reduction: the invariants that every mode keeps, and slow oracles written from the papers' formulas.

The authors' modes ("prance_*") sort their tokens by score even if all stay, so for them "keeping all is the identity"
does not hold and "permuting patches permutes the result" becomes "changes nothing"; both are tested as such.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from oracles import Token, evit, evit_fused, prune_then_merge, tome
from torch import Tensor

import supernet.convert.authors  # noqa: F401  registers the authors' modes
from supernet.arrays import Ints
from supernet.runtime.packing import attention, packed_class_scores
from supernet.tokens.modes import TOKEN_MODES, combine, kept_tokens, token_mode, total_size

OURS = ["prune", "prune_fused", "merge", "prune_merge", "tome"]
AUTHORS = ["prance_prune", "prance_merge", "prance_prune_merge"]
SIZED = ["merge", "prune_merge", "tome", "prance_merge", "prance_prune_merge"]
CHANNELS, FEATURES = 5, 4


def ints(*values: int) -> Ints:
    return np.array(values, dtype=np.int64)


@dataclass(frozen=True)
class Case:
    """Arguments of a reduction: a padded batch of B images of up to N tokens.

    Attributes:
        x: (B, N, C).
        scores: (B, N).
        metric: (B, N, M).
        size: (B, N).
        lengths: (B,).
        counts: (B, stages).
        prefix: Class tokens.
    """

    x: Tensor
    scores: Tensor
    metric: Tensor
    size: Tensor
    lengths: Ints
    counts: Ints
    prefix: int

    def alone(self, i: int) -> Case:
        """Image i without padding."""
        n = int(self.lengths[i])
        cut = {name: getattr(self, name)[i : i + 1, :n] for name in ("x", "scores", "metric", "size")}
        return replace(self, **cut, lengths=self.lengths[i : i + 1], counts=self.counts[i : i + 1])

    def permuted(self, order: Tensor) -> Case:
        """The same tokens in another order, `order[j]` at place j."""
        cut = {name: getattr(self, name)[:, order] for name in ("x", "scores", "metric", "size")}
        return replace(self, **cut)


@dataclass(frozen=True)
class Reduced:
    """A reduced batch: `into` (B, N), `x` (B, K, C) and `size` (B, K); beyond an image's count is padding."""

    into: Tensor
    x: Tensor
    size: Tensor


def reduce(mode: str, case: Case) -> Reduced:
    """What the network does with a batch."""
    operator = token_mode(mode)
    num_out = int(case.counts[:, -1].max())
    into, weight = operator.assign(
        case.scores if operator.uses_scores else None,
        None if operator.metric is None else case.metric,
        case.size,
        case.lengths,
        case.counts,
        case.prefix,
    )
    x = combine(case.x, into, num_out, weight, operator.normalise)
    return Reduced(into, x, total_size(case.size, into, num_out))


def make_case(mode: str, prefix: int, lengths: list[int], counts: list[list[int]], seed: int) -> Case:
    """Random tokens; class tokens have size 1, as they always do."""
    generator = torch.Generator().manual_seed(seed)
    shape = (len(lengths), max(lengths))
    scores = torch.rand(shape, generator=generator, dtype=torch.float64)
    size = torch.randint(1, 6, shape, generator=generator).double()
    size[:, :prefix] = 1
    return Case(
        torch.randn(*shape, CHANNELS, generator=generator, dtype=torch.float64),
        scores / scores.sum(1, keepdim=True),
        torch.randn(*shape, FEATURES, generator=generator, dtype=torch.float64),
        size if mode in SIZED else torch.ones_like(size),
        ints(*lengths),
        np.array(counts, dtype=np.int64),
        prefix,
    )


@st.composite
def cases(draw: st.DrawFn, mode: str) -> Case:
    """Batches in which every image has its own length and counts; some keep all, some as little as possible."""
    prefix = 1 if mode in AUTHORS else draw(st.integers(0, 1))
    lengths = draw(st.lists(st.integers(prefix + 1, 14), min_size=1, max_size=4))
    counts = []
    for n in lengths:
        least = min(n, prefix + 1 + (mode == "prune_fused"))
        last = draw(st.sampled_from([least, n]) | st.integers(least, n))
        first = [draw(st.sampled_from([last, n]) | st.integers(last, n))] if token_mode(mode).num_rates == 2 else []
        counts.append([*first, last])
    return make_case(mode, prefix, lengths, counts, draw(st.integers(0, 2**31)))


def groups_of(into: Tensor, length: int) -> list[set[int]]:
    """For every token of the shorter sequence of one image, which tokens went into it."""
    places = into[:length].tolist()
    return [{i for i, place in enumerate(places) if place == new} for new in range(max(places) + 1)]


def oracle(mode: str, case: Case, i: int) -> list[Token]:
    """One image by the formulas."""
    n, prefix = int(case.lengths[i]), case.prefix
    x, scores, metric, size = (getattr(case, name)[i, :n].numpy() for name in ("x", "scores", "metric", "size"))
    patches = [int(count) - prefix for count in case.counts[i]]
    survive = patches[0] if len(patches) == 2 else n - prefix
    if mode == "prune":
        return evit(x, scores, size, patches[-1], prefix)
    if mode == "prune_fused":
        whole = patches[-1] == n - prefix
        return (evit if whole else evit_fused)(x, scores, size, patches[-1] - (not whole), prefix)
    if mode == "tome":
        return tome(x, metric, size, patches[-1] + prefix, prefix)
    survive = patches[-1] if mode == "prance_prune" else survive
    ours = mode in OURS
    return prune_then_merge(x, scores, metric, size, survive, patches[-1], prefix, weighted=ours, ranked=not ours)


def test_every_registered_mode_is_tested_here() -> None:
    assert sorted(TOKEN_MODES) == sorted(OURS + AUTHORS)
    assert sorted(name for name, mode in TOKEN_MODES.items() if mode.sized) == sorted(SIZED)


# ---- against the formulas ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", OURS + AUTHORS)
@given(st.data())
def test_a_batch_equals_the_slow_oracle_of_its_images(mode: str, data: st.DataObject) -> None:
    case = data.draw(cases(mode))
    reduced = reduce(mode, case)
    for i, n in enumerate(case.lengths):
        tokens = oracle(mode, case, i)
        assert len(tokens) == case.counts[i, -1]
        assert groups_of(reduced.into[i], n) == [set(token.members) for token in tokens]
        np.testing.assert_allclose(reduced.x[i, : len(tokens)], [token.x for token in tokens], rtol=0, atol=1e-12)
        if mode in SIZED:
            assert reduced.size[i, : len(tokens)].tolist() == pytest.approx([token.size for token in tokens])


@pytest.mark.parametrize("prefix", [0, 1])
@pytest.mark.parametrize(("patches", "kept", "rounds"), [(32, 16, 1), (32, 15, 2), (32, 3, 4), (33, 1, 6)])
def test_tome_matches_again_while_more_is_to_go_than_one_matching_removes(
    patches: int, kept: int, rounds: int, prefix: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from supernet.tokens import modes

    calls, match = [], modes._match

    def counted(*arguments: object) -> Tensor:
        calls.append(arguments)
        return match(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(modes, "_match", counted)
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
    three = replace(case, counts=np.array([[6]]))
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
    counts = token_mode("prune_fused").counts(np.array([10 + prefix]), np.array([[0.85]]), prefix)
    assert counts.tolist() == [[10 + prefix]]
    case = make_case("prune_fused", prefix, [10 + prefix], counts.tolist(), seed=4)
    reduced = reduce("prune_fused", case)
    assert reduced.into[0].tolist() == list(range(10 + prefix))
    assert torch.equal(reduced.x, case.x)
    two = token_mode("prune_fused").counts(np.array([10 + prefix]), np.array([[0.8]]), prefix)
    assert two.tolist() == [[9 + prefix]]


def test_the_class_token_takes_no_part_in_merging_though_it_is_the_most_alike() -> None:
    for mode in ("merge", "prune_merge", "tome", "prance_merge", "prance_prune_merge"):
        counts = [9, 4] if token_mode(mode).num_rates == 2 else [4]
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
        tokens = token_mode("prune_fused").counts(tokens, np.array([[0.7]]), 1)[:, -1]
        path.append(int(tokens[0]))
    assert path == [140, 100, 72]


@pytest.mark.parametrize("mode", OURS + AUTHORS)
@given(st.integers(1, 60), st.floats(1e-9, 1), st.floats(1e-9, 1))
@example(4, 0.75, 1.0)
@example(1, 1e-9, 1e-9)
def test_counts_leave_between_one_patch_and_all_and_rate_one_keeps_all(
    mode: str, patches: int, first: float, second: float
) -> None:
    operator = token_mode(mode)
    for prefix in (1,) if mode in AUTHORS else (0, 1):
        n = ints(patches + prefix)
        rates = np.array([[first, second][: operator.num_rates]])
        counts = operator.counts(n, rates, prefix)
        assert counts.shape == (1, operator.num_rates)
        chain = [int(n[0]), *counts[0].tolist(), prefix + 1]
        assert chain == sorted(chain, reverse=True)
        assert operator.counts(n, np.ones_like(rates), prefix)[:, -1].tolist() == n.tolist()


def test_the_authors_count_the_class_token_and_round_down() -> None:
    counts = token_mode("prance_prune_merge").counts(ints(65, 65), np.array([[0.7, 0.9], [1.0, 0.01]]), 1)
    assert counts.tolist() == [[45, 40], [65, 2]]


def test_two_rates_compose_each_relative_to_what_the_stage_before_left() -> None:
    counts = token_mode("prune_merge").counts(ints(101, 11), np.array([[0.5, 0.5], [0.15, 0.1]]), 1)
    assert counts.tolist() == [[51, 26], [3, 2]]


# ---- the contract --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", OURS + AUTHORS)
@given(st.data())
def test_the_class_token_stays_first_and_bit_for_bit_the_same(mode: str, data: st.DataObject) -> None:
    case = data.draw(cases(mode).filter(lambda c: c.prefix == 1))
    reduced = reduce(mode, case)
    assert torch.equal(reduced.x[:, 0], case.x[:, 0])
    assert torch.equal(reduced.size[:, 0], torch.ones(len(case.x), dtype=torch.float64))
    assert (reduced.into[:, 0] == 0).all()
    assert (reduced.into[:, 1:] != 0).all()


@pytest.mark.parametrize("mode", OURS + AUTHORS)
@given(st.data())
def test_exactly_as_many_tokens_remain_as_asked_for(mode: str, data: st.DataObject) -> None:
    case = data.draw(cases(mode))
    into = reduce(mode, case).into
    for i, n in enumerate(case.lengths):
        assert set(into[i, :n].tolist()) - {-1} == set(range(case.counts[i, -1]))
        assert (into[i, n:] == -1).all()


def test_exactly_as_many_patches_are_dropped_as_the_mode_prunes() -> None:
    dropped = {"prune": 9, "prance_prune": 9, "prune_merge": 4, "prance_prune_merge": 4}
    for mode in OURS + AUTHORS:
        counts = [9, 4] if token_mode(mode).num_rates == 2 else [4]
        case = make_case(mode, 1, [13], [counts], seed=4)
        lost = (reduce(mode, case).into[0] < 0).nonzero().flatten().tolist()
        worst = case.scores[0, 1:].argsort()[: dropped.get(mode, 0)] + 1
        assert sorted(lost) == sorted(worst.tolist()), mode


@pytest.mark.parametrize("mode", OURS)
@given(st.data())
def test_keeping_all_is_the_identity_and_not_a_reordering(mode: str, data: st.DataObject) -> None:
    case = data.draw(cases(mode))
    whole = data.draw(st.integers(0, len(case.lengths) - 1))
    case.counts[whole] = case.lengths[whole]
    n, reduced = int(case.lengths[whole]), reduce(mode, case)
    assert reduced.into[whole, :n].tolist() == list(range(n))
    assert torch.equal(reduced.x[whole, :n], case.x[whole, :n])
    assert torch.equal(reduced.size[whole, :n], case.size[whole, :n])


@pytest.mark.parametrize("mode", AUTHORS)
@given(st.data())
def test_keeping_all_sorts_by_score_with_the_authors_rules(mode: str, data: st.DataObject) -> None:
    case = data.draw(cases(mode))
    case.counts[:] = case.lengths[:, None]
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
        pruned = n - int(case.counts[i, 0]) if token_mode(mode).num_rates == 2 else 0
        assert int((~stays).sum()) == pruned
        assert reduced.size[i, : case.counts[i, -1]].sum() == case.size[i, :n][stays].sum()


@pytest.mark.parametrize("mode", ["merge", "prune_merge", "tome"])
@given(st.data())
def test_the_weighted_mean_conserves_the_sum_of_size_times_token(mode: str, data: st.DataObject) -> None:
    case = data.draw(cases(mode))
    reduced = reduce(mode, case)
    for i, n in enumerate(case.lengths):
        kept = int(case.counts[i, -1])
        stays = reduced.into[i, :n] >= 0
        before = (case.size[i, :n, None] * case.x[i, :n])[stays].sum(0)
        after = (reduced.size[i, :kept, None] * reduced.x[i, :kept]).sum(0)
        torch.testing.assert_close(after, before, rtol=0, atol=1e-10)


@pytest.mark.parametrize("mode", ["prance_merge", "prance_prune_merge"])
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


@pytest.mark.parametrize("mode", ["prune", "prune_fused", "merge", "prune_merge"])
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


@pytest.mark.parametrize("mode", OURS + AUTHORS)
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


@pytest.mark.parametrize("mode", OURS + AUTHORS)
@given(st.data())
def test_a_padded_batch_equals_its_images_one_by_one_whatever_the_padding_holds(mode: str, data: st.DataObject) -> None:
    case = data.draw(cases(mode).filter(lambda c: c.lengths.min() < c.lengths.max()))
    for name in ("x", "scores", "metric", "size"):
        garbage = data.draw(st.sampled_from(GARBAGE))
        for i, n in enumerate(case.lengths):
            getattr(case, name)[i, n:] = garbage
    together = reduce(mode, case)
    for i, (n, kept) in enumerate(zip(case.lengths, case.counts[:, -1], strict=True)):
        alone = reduce(mode, case.alone(i))
        assert torch.equal(together.into[i, :n], alone.into[0])
        torch.testing.assert_close(together.x[i, :kept], alone.x[0], rtol=0, atol=1e-12)
        assert torch.equal(together.size[i, :kept], alone.size[0])


@pytest.mark.parametrize("mode", OURS + AUTHORS)
def test_one_length_and_one_count_serve_every_image(mode: str) -> None:
    counts = [[9, 4] if token_mode(mode).num_rates == 2 else [4]]
    case = make_case(mode, 1, [11] * 3, counts * 3, seed=6)
    single = replace(case, lengths=case.lengths[:1], counts=case.counts[:1])
    assert torch.equal(reduce(mode, single).into, reduce(mode, case).into)
    assert torch.equal(reduce(mode, single).x, reduce(mode, case).x)


@pytest.mark.parametrize("mode", OURS + AUTHORS)
def test_gradients_flow_to_the_tokens_by_the_weights_of_the_formula(mode: str) -> None:
    counts = [9, 4] if token_mode(mode).num_rates == 2 else [4]
    case = make_case(mode, 1, [11], [counts], seed=7)
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
    counts = np.array([[11, 6] if token_mode(mode).num_rates == 2 else [6]])
    case = Case(x, scores, x, torch.ones(1, 11), ints(11), counts, 1)
    reduced = reduce(mode, case)
    assert sorted(reduced.size[0].tolist()) == [1, 2, 2, 2, 2, 2]
    qkv = torch.randn(width, heads * 3 * 8, generator=generator)
    expected = attention(x[0] @ qkv, ints(11), heads)
    actual = attention(reduced.x[0] @ qkv, ints(6), heads, reduced.size[0].log())
    first = [min(members) for members in groups_of(reduced.into[0], 11)]
    torch.testing.assert_close(actual, expected[first], rtol=0, atol=1e-5)


@pytest.mark.parametrize("mode", OURS + AUTHORS)
def test_what_a_mode_says_it_does_not_read_makes_no_difference(mode: str) -> None:
    operator = token_mode(mode)
    case = make_case(mode, 1, [11], [[9, 4] if operator.num_rates == 2 else [4]], seed=10)
    if mode in OURS:  # the authors' modes prune if they are given no features
        into, _ = operator.assign(case.scores, case.metric, case.size, case.lengths, case.counts, 1)
        assert torch.equal(reduce(mode, case).into, into)
    if not operator.sized:
        other = replace(case, size=case.size * 7)
        assert torch.equal(reduce(mode, other).x, reduce(mode, case).x)


def test_an_unknown_mode_is_refused_with_those_that_exist() -> None:
    with pytest.raises(ValueError, match=r"token_mode='melt'.*'merge'.*'prune'.*'prune_fused'.*'prune_merge'.*'tome'"):
        token_mode("melt")
