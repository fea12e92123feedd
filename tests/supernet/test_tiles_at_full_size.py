"""What the tiled runtime leaves out: plans and sorting at full size, and tokens that no logits depend on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import random_net
from mode_nets import CASES, assert_close, images_for, make_config, subnets_for
from torch import Tensor

from supernet import Supernet, TokenMode, register_token_mode, runtime, token_mode
from supernet.arrays import namespace
from supernet.full_size import costs_are_known, full_macs_of, full_plan
from supernet.macs import group_macs, remaining_macs
from supernet.plan import plan_group
from supernet.runtime import tiles
from supernet.runtime.blocks import run_blocks
from supernet.runtime.choice import hindrance_of_network
from supernet.runtime.packing import Packed
from supernet.runtime.tile_head import normed
from supernet.runtime.tile_reduction import moved
from supernet.runtime.tiled import TileBatch, images_of_rows, offsets
from supernet.subnet import GroupChoice
from supernet.tiled_state import TiledState, macs_on_device
from supernet.tokens import modes
from supernet.tokens.modes import Assignment, column, kept_tokens

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
FAST = ["prune-class-token-later", "prune_merge-authors-later", "tome-registers-later"]
TILED = [case for case, parts in CASES.items() if hindrance_of_network(make_config(*parts), torch.float32) is None]


@pytest.fixture(autouse=True)
def _without_gradients() -> Iterator[None]:
    pytest.importorskip("triton")
    with torch.no_grad():
        yield


def decided_once(net: Supernet, count: int) -> TiledState:
    """Images after their first decision, each its own."""
    with runtime.use("segments"):
        state = net.begin(images_for(net, count).to(DEVICE))
        choice = subnets_for(net, count).group(net.space, state.group)
        return TiledState.of(net.run_group(state, state.group, choice), net.config)


def assert_rest_is_that_of_segments(net: Supernet, state: TiledState) -> None:
    """Logits, tokens and costs of the rest at full size."""
    with runtime.use("tiles"):
        found, end = net.finish(state), net.run_to_end(state)
    assert isinstance(end, TiledState)
    with runtime.use("segments"):
        expected = net.run_to_end(state.host)
        assert_close(found, net.finish(state.host), 1e-5)
    np.testing.assert_array_equal(end.macs, expected.macs)
    np.testing.assert_array_equal(end.num_tokens, expected.num_tokens)
    assert torch.equal(end.patch_token, expected.patch_token)
    assert macs_on_device(net.config, state).tolist() == net.macs_to_go(state.host).tolist()


@pytest.mark.parametrize("case", [pytest.param(c, marks=() if c in FAST else pytest.mark.slow) for c in TILED])
def test_the_rest_at_full_size_is_that_of_segments(case: str) -> None:
    net = random_net(make_config(*CASES[case])).to(DEVICE)
    assert_rest_is_that_of_segments(net, decided_once(net, 5))


def test_a_mode_that_never_keeps_all_reduces_at_full_size(own_modes: None) -> None:
    def counts(num_tokens: Any, keep_rates: Any, prefix: int) -> Any:
        """Six patches at most."""
        kept = kept_tokens(num_tokens, keep_rates[:, 0], prefix)
        return namespace(num_tokens).minimum(kept, num_tokens * 0 + prefix + 6)[:, None]

    register_token_mode("capped", TokenMode(token_mode("prune").assign, counts=counts, on_device=True))
    net = random_net(make_config("capped", "class-token", False)).to(DEVICE)
    with runtime.use("segments"):
        state = TiledState.of(net.begin(images_for(net, 3).to(DEVICE)), net.config)
    assert_rest_is_that_of_segments(net, state)


def test_at_full_size_nothing_is_reduced_or_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    net = random_net(make_config("merge", "class-token", False)).to(DEVICE)
    state = decided_once(net, 3)

    def never(*args: Any) -> Any:
        raise AssertionError("not at full size")

    with monkeypatch.context() as patch, runtime.use("tiles"):
        patch.setattr(tiles, "reduce_tiles", never)
        patch.setattr(tiles, "permutations", never)
        found = net.finish(state)
    with runtime.use("segments"):
        assert_close(found, net.finish(state.host), 1e-5)


def test_a_mode_that_always_runs_does_so_at_full_size() -> None:
    def turning(scores: Any, metric: Any, size: Tensor, lengths: Any, counts: Any, prefix: int) -> Assignment:
        """The first two patches change places, and the last ones leave."""
        places = torch.arange(size.shape[1], device=size.device).repeat(len(size), 1)
        places[:, prefix : prefix + 2] = places[:, prefix : prefix + 2].flip(1)
        return torch.where(places < column(counts[:, -1], size.device), places, -1), None

    register_token_mode("turning", TokenMode(turning, uses_scores=False, always=True, on_device=True))
    try:
        net = random_net(make_config("turning", "class-token", False)).to(DEVICE)
        state = decided_once(net, 3)
        with runtime.use("tiles"):
            found = net.run_to_end(state)
        with runtime.use("segments"):
            assert torch.equal(found.patch_token, net.run_to_end(state.host).patch_token)
        assert not torch.equal(found.patch_token, state.patch_token)
    finally:
        modes._OURS.remove("turning")


@pytest.mark.parametrize("case", CASES)
def test_costs_at_full_size_are_a_polynomial_of_the_tokens(case: str) -> None:
    config = make_config(*CASES[case])
    tokens = np.arange(config.num_prefix_tokens + 1, config.num_tokens + 1)
    lengths = torch.from_numpy(tokens)
    for group in range(len(config.space.groups)):
        if config.prance_embed_dim is not None:
            assert not costs_are_known(config)
            continue
        found = full_macs_of(config, group, lengths), full_macs_of(config, group, lengths, to_the_end=True)
        plan = plan_group(config, group, GroupChoice.full(config.space, group, len(tokens)), tokens)
        expected = group_macs(config, plan), remaining_macs(config, group, tokens)
        assert [numbers.tolist() for numbers in found] == [n.tolist() for n in expected]


@pytest.mark.parametrize("case", ["prune-class-token-later", "merge-authors-first", "tome-registers-later"])
def test_logits_take_no_more_than_the_class_tokens_of_the_last_block(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = random_net(make_config(*CASES[case])).to(DEVICE)
    images, subnet = images_for(net, 4).to(DEVICE), subnets_for(net, 4)
    rows, product = [], tiles.product
    monkeypatch.setattr(
        tiles, "product", lambda batch, a, *args, **more: (rows.append(len(a)), product(batch, a, *args, **more))[1]
    )
    with runtime.use("tiles"):
        logits = net(images, subnet)
        expected, alone = (4, 3) if net.config.global_pool == "token" else (rows[0], 0)
        assert [count == 4 for count in rows[-3:]] == [alone == 3] * 3
        assert rows[-4] > expected or alone == 0
        whole = net.forward_features(images, subnet)
    assert len(whole.tokens) == whole.num_tokens.sum()
    assert_close(logits, net.forward_head(whole), 1e-5)


@pytest.mark.parametrize("case", ["prune-class-token-later", "prune-authors-later"])
def test_so_do_dense_batches_that_are_not_on_a_cpu(case: str) -> None:
    config = make_config(*CASES[case])
    net = random_net(config).to(DEVICE)
    with runtime.use("segments"):
        state = net.run_to_end(net.begin(images_for(net, 3).to(DEVICE)))  # its tokens: any others would do
    group = len(config.space.groups) - 1
    plan, _ = full_plan(config, group, np.full(3, config.num_tokens), np.full(3, config.embed_dim))
    packed = Packed(state.tokens, state.num_tokens, None, np.arange(3))
    whole, alone = (
        run_blocks(config, net.blocks, plan, packed, state.patch_token, head_only=only)[0] for only in (False, True)
    )
    assert (len(whole.x), len(alone.x), alone.lengths.tolist()) == (3 * config.num_tokens, 3, [1] * 3)
    assert_close(alone.x, whole.x[:: config.num_tokens], 1e-5)


def batch_of(x: Tensor, lengths: Tensor, have: Tensor, most: int) -> TileBatch:
    """Images of these lengths, whose tokens are the first rows of `x`."""
    cu = offsets(lengths)
    batch = TileBatch(x, cu, images_of_rows(cu, len(x)), have, lengths, None, most)
    return TileBatch(*(v.to(DEVICE) if isinstance(v, Tensor) else v for v in vars(batch).values()))


@pytest.mark.parametrize("images", [1, 5, 300])
def test_rows_are_listed_by_size_and_equal_ones_as_they_come(images: int) -> None:
    drawn = np.random.default_rng(images)
    lengths = torch.from_numpy(drawn.integers(1, 6, images))
    first, second = (drawn.integers(1, 4, (2, images)).astype(np.int32) for _ in range(2))
    batch = batch_of(torch.zeros(int(lengths.sum()) + 3, 1), lengths, torch.ones(images, dtype=torch.int32), 5)
    found = tiles.permutations(batch, *(torch.from_numpy(size).to(DEVICE) for size in (first, second)))
    starts = batch.cu.cpu().numpy()
    for h, (rows, of) in enumerate(found):
        order = np.lexsort((np.arange(images), second[h], first[h]))
        used = int(lengths.sum())
        assert rows[:used].tolist() == [r for i in order for r in range(starts[i], starts[i + 1])]
        assert of[:used].tolist() == [i for i in order for _ in range(starts[i], starts[i + 1])]


@pytest.mark.parametrize("gain", [True, False])
@pytest.mark.parametrize("longest", [1, 4])
def test_a_norm_of_first_tokens_is_zero_beyond_their_width(longest: int, gain: bool) -> None:
    widths, drawn = torch.tensor([1, 7, 16, 24, 30], dtype=torch.int32), torch.Generator().manual_seed(longest)
    lengths = torch.randint(1, longest + 1, (5,), generator=drawn)
    x = torch.randn(int(lengths.sum()) + 2, 40, generator=drawn)
    layer = torch.nn.LayerNorm(40, eps=1e-3)
    torch.nn.init.normal_(layer.weight)
    torch.nn.init.normal_(layer.bias)
    batch = batch_of(x, lengths, widths, longest)
    found = normed(batch, layer.to(DEVICE) if gain else None).cpu()
    assert found.shape == (5, 40)
    layer.cpu()
    for image, (row, w) in enumerate(zip(batch.cu.tolist(), widths.tolist(), strict=False)):
        parts = (layer.weight[:w], layer.bias[:w], layer.eps) if gain else ()
        assert_close(found[image, :w], F.layer_norm(x[row, :w], (w,), *parts), 1e-5)
        assert not found[image, w:].any()


@pytest.mark.parametrize("images", [1, 7])
def test_rows_that_stay_are_moved_and_no_others(images: int) -> None:
    drawn = torch.Generator().manual_seed(images)
    lengths = torch.randint(1, 9, (images,), generator=drawn)
    x = torch.randn(int(lengths.sum()) + 3, 5, generator=drawn)
    batch = batch_of(x, lengths, torch.full((images,), 5, dtype=torch.int32), 8)
    stays = (torch.rand(images, 8, generator=drawn) < 0.6) & (torch.arange(8) < lengths[:, None])
    stays[:, 0] = True
    into = torch.where(stays, stays.cumsum(1) - 1, -1).to(DEVICE)
    after = offsets(stays.sum(1)).to(DEVICE)
    places = torch.cat([stays[image, :n] for image, n in enumerate(lengths.tolist())])
    assert torch.equal(moved(batch, into, after)[: int(stays.sum())].cpu(), x[: len(places)][places])
