"""Semantic tokens: against loops over patches and centres, the token contract, and what a supernet makes of them.

Of the contract's invariants two do not apply: keeping all is no call of the mode (soft modes are not run then), and
permuting the patches permutes nothing, since centres begin in places.
"""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import random_net
from hypothesis import given
from hypothesis import strategies as st
from mode_nets import BATCH, assert_close, assert_exports_with_a_free_batch_size, images_for, make_config, subnets_for
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from supernet import Supernet, freeze, from_pretrained, load_static, save_pretrained, save_static
from supernet.bounded import Bounded
from supernet.tokens import semantic
from supernet.tokens.modes import combine, total_size
from supernet.tokens.semantic import (
    FEATURES,
    NEARNESS,
    SHARPNESS,
    Layout,
    SemanticTokens,
    distances,
    neighbours,
    semantic_frozen,
    windows,
)

LEARNED = {"semantic": "conv", "semantic_avg": "avg", "semantic_max": "max"}
MODES = [*LEARNED, "semantic_frozen"]
CONFIG = make_config("prune", "class-token", True)
PREFIX = 1


# ---- places -----------------------------------------------------------------------------------------------------


@given(st.integers(1, 60), st.data())
def test_every_patch_has_a_window_and_every_window_a_patch(num_tokens: int, data: st.DataObject) -> None:
    num_centres = data.draw(st.integers(1, num_tokens))
    inside = windows(num_tokens, num_centres)
    assert inside.shape == (num_centres, num_tokens)
    assert set(np.unique(inside)) <= {0, 1}
    assert inside.sum(0).min() >= 1
    assert inside.sum(1).min() >= 1
    # A patch is in the window of a centre that stands in the nearest row.
    rows = Layout(num_centres)
    down = np.abs((Layout(num_tokens).row + 0.5) / Layout(num_tokens).rows - ((rows.row + 0.5) / rows.rows)[:, None])
    nearest = down <= down.min(0) + 1e-9
    alone = inside * (inside.sum(0) == 1)
    assert (alone <= nearest).all()


@pytest.mark.parametrize(("side", "centres"), [(4, 2), (14, 7), (14, 2), (6, 3)])
def test_windows_of_grids_that_divide_are_those_of_adaptive_pooling(side: int, centres: int) -> None:
    x = torch.randn(1, 3, side, side, dtype=torch.float64)
    inside = torch.from_numpy(windows(side**2, centres**2))
    pooled = (inside / inside.sum(1, keepdim=True)) @ x[0].flatten(1).T
    torch.testing.assert_close(pooled.T, F.adaptive_avg_pool2d(x, centres)[0].flatten(1))


def test_distances_are_in_cells_of_the_centres() -> None:
    apart = distances(16, 4)
    assert apart[0, 0] == pytest.approx(2 * 0.25**2)
    assert apart[0, 15] == pytest.approx(2 * 1.25**2)
    assert (distances(9, 9).diagonal() == 0).all()
    assert distances(9, 9)[4].tolist() == [2, 1, 2, 1, 0, 1, 2, 1, 2]


def test_neighbours_of_a_grid_are_those_of_a_convolution() -> None:
    kernel, x = torch.randn(9, 3), torch.randn(1, 25, 3)
    beside = torch.from_numpy(neighbours(25)).long()
    padded = F.pad(x, (0, 0, 0, 1))
    gathered = sum(padded[:, beside[j]] * kernel[j] for j in range(9))
    expected = F.conv2d(x.mT.reshape(1, 3, 5, 5), kernel.T.reshape(3, 1, 3, 3), padding=1, groups=3)
    torch.testing.assert_close(gathered, expected.flatten(2).mT)


@pytest.mark.parametrize("most", [0, 40_000])
@torch.no_grad()
def test_tables_take_bounded_memory_and_are_the_same_when_made_again(
    most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = net_of("semantic", "class-token")
    images, subnet = images_for(net), subnets_for(net)
    expected, alone = net(images, subnet), net.extract(subnet[4])(images)
    for name in ("_HOST", "_ON_DEVICE"):
        monkeypatch.setattr(semantic, name, Bounded(most))
    for _ in range(2):
        assert torch.equal(net(images, subnet), expected)
        assert torch.equal(net.extract(subnet[4])(images), alone)
        for patches in range(16, 40):
            assert windows(patches, 10).shape == (10, patches)
    assert semantic._HOST.nbytes <= most
    assert (len(semantic._HOST) > 0) == (most > 0)


def test_what_was_asked_for_longest_ago_goes_first() -> None:
    kept: Bounded[np.ndarray] = Bounded(24)
    for key in (0, 1, 2, 0, 3):
        assert kept.get(key, lambda key=key: np.full(1, key)).item() == key
    made: list[int] = []
    for key in (0, 2, 3, 1):
        kept.get(key, lambda key=key: (made.append(key), np.full(1, key))[1])
    assert made == [1]
    assert (len(kept), kept.nbytes) == (3, 24)
    assert kept.get("large", lambda: np.zeros(4)).nbytes == 32
    assert len(kept) == 3


# ---- one image in loops -----------------------------------------------------------------------------------------


def pooled(values: np.ndarray, size: np.ndarray, inside: np.ndarray, init: str) -> np.ndarray:
    if init == "max":
        return np.array([values[row > 0].max(0) for row in inside])
    return np.array([(row * size) @ values / (row * size).sum() for row in inside])


def shared(centres: np.ndarray, keys: np.ndarray, far: np.ndarray, sharpness: float) -> np.ndarray:
    """(N, K) shares of every patch, by the formula."""
    out = np.zeros((len(keys), len(centres)))
    for n, key in enumerate(keys):
        logits = [
            sharpness * (c @ key) / (np.linalg.norm(c) * np.linalg.norm(key)) - far[k, n] for k, c in enumerate(centres)
        ]
        out[n] = np.exp(logits) / np.exp(logits).sum()
    return out


def slow(mode: str, module: Any, metric: Tensor, size: Tensor, kept: int) -> np.ndarray:
    """(N, K) shares of one image's patches (N, C), without its class token."""
    n, sizes = len(metric), size.double().numpy()
    far, inside = distances(n, kept), windows(n, kept)
    if module is None:
        keys = metric.double().numpy()
        keys = keys / np.linalg.norm(keys, axis=1, keepdims=True)
        first = shared(pooled(keys, sizes, inside, "avg"), keys, NEARNESS * far, SHARPNESS)
        moved = np.array([(column * sizes) @ keys / (column * sizes).sum() for column in first.T])
        return shared(moved, keys, NEARNESS * far, SHARPNESS)
    norm = F.layer_norm(metric, metric.shape[1:]).double()
    keys, values = ((norm @ w[: metric.shape[1]].double()).numpy() for w in (module.keys, module.queries))
    sharpness, far = module.log_sharpness.exp().item(), module.log_nearness.exp().item() * far
    at_first = values
    if module.init == "conv":
        padded = np.vstack([values, np.zeros(FEATURES)])
        around = sum(padded[place] * module.around[j].numpy() for j, place in enumerate(neighbours(n).astype(int)))
        around = F.gelu(F.layer_norm(torch.from_numpy(around), (FEATURES,)))
        at_first = values + (around @ module.mix.weight.double().T + module.mix.bias.double()).numpy()
    first = shared(pooled(at_first, sizes, inside, module.init), keys, far, sharpness)
    moved = np.array([(column * sizes) @ values / (column * sizes).sum() for column in first.T])
    cells = Layout(kept).cells(Layout(module.num_patches))
    return shared(moved + module.global_centres.numpy()[cells], keys, far, sharpness)


def made(mode: str, width: int = 7) -> Any:
    """The mode's module with parameters that all matter; None if it has none."""
    if mode == "semantic_frozen":
        return None
    torch.manual_seed(3)
    module = SemanticTokens(CONFIG, width, LEARNED[mode])
    with torch.no_grad():
        for p in module.parameters():
            p += 0.3 * torch.randn(p.shape)
    return module.requires_grad_(False)


def assigned(module: Any, metric: Tensor, size: Tensor, lengths: list[int], kept: list[int]) -> Tensor:
    where = semantic_frozen if module is None else module
    counts = np.array(kept)[:, None] + PREFIX
    shares, weight = where(None, metric, size, np.array(lengths), counts, PREFIX)
    assert weight is size
    out: Tensor = shares
    return out


LENGTHS, KEPT = [17, 12, 6, 17], [4, 5, 1, 15]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("garbage", [0.0, math.nan, 1e30])
def test_every_image_of_a_padded_batch_is_shared_out_as_in_loops_whatever_the_padding_holds(
    mode: str, garbage: float
) -> None:
    module, generator = made(mode), torch.Generator().manual_seed(1)
    metric = torch.randn(4, 17, 7, generator=generator)
    size = torch.rand(4, 17, generator=generator) + 0.5
    for i, n in enumerate(LENGTHS):
        metric[i, n:], size[i, n:] = garbage, garbage
    shares = assigned(module, metric, size, LENGTHS, KEPT)
    assert shares.shape == (4, 17, 16)
    for i, (n, kept) in enumerate(zip(LENGTHS, KEPT, strict=True)):
        expected = slow(mode, module, metric[i, 1:n], size[i, 1:n], kept)
        np.testing.assert_allclose(shares[i, 1:n, 1 : kept + 1].numpy(), expected, atol=2e-5)
        # The class token goes into itself alone, and nothing goes where an image has no centre.
        assert shares[i, 0].tolist() == [1] + [0] * 15
        assert (shares[i, 1:, 0] == 0).all()
        assert (shares[i, :, kept + 1 :] == 0).all()
        assert (shares[i, n:] == 0).all()


@pytest.mark.parametrize("mode", MODES)
def test_sizes_sum_to_the_patches_and_the_class_token_stays_bit_for_bit(mode: str) -> None:
    generator = torch.Generator().manual_seed(2)
    metric, size = torch.randn(4, 17, 7, generator=generator), torch.ones(4, 17)
    shares = assigned(made(mode), metric, size, LENGTHS, KEPT)
    sizes = total_size(size, shares, 16)
    torch.testing.assert_close(sizes.sum(1), torch.tensor(LENGTHS).float(), rtol=0, atol=1e-4)
    x = torch.randn(4, 17, 24, generator=generator)
    assert torch.equal(combine(x, shares, 16, size, prefix=PREFIX)[:, 0], x[:, 0])


@pytest.mark.parametrize("mode", MODES)
def test_patches_that_are_all_alike_are_shared_out_evenly_where_distance_does_not_count(
    mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("supernet.tokens.semantic.NEARNESS", 0.0)
    module = made(mode)
    if module is not None:
        module.log_nearness.fill_(-math.inf)
        module.global_centres.zero_()
        if module.init == "conv":  # which sees where the image ends
            module.around.zero_()
    metric = torch.randn(7).expand(1, 17, 7)
    shares = assigned(module, metric, torch.ones(1, 17), [17], [4])
    torch.testing.assert_close(shares[0, 1:, 1:5], torch.full((16, 4), 0.25))
    x = torch.randn(1, 17, 5)
    mixed = combine(x, shares, 5, torch.ones(1, 17), prefix=PREFIX)
    torch.testing.assert_close(mixed[0, 1:], x[0, 1:].mean(0).expand(4, -1))


def test_which_place_of_its_window_a_patch_takes_is_nothing_to_pooled_windows() -> None:
    module = made("semantic_avg")
    module.log_nearness.fill_(-math.inf)
    metric, x = torch.randn(1, 17, 7), torch.randn(1, 17, 5)
    order = torch.arange(17)
    order[[1, 2, 5, 6]] = torch.tensor([6, 5, 1, 2])  # the upper left window of 2 x 2
    ones = torch.ones(1, 17)
    before = combine(x, assigned(module, metric, ones, [17], [4]), 5, ones, prefix=1)
    after = combine(x[:, order], assigned(module, metric[:, order], ones, [17], [4]), 5, ones, prefix=1)
    torch.testing.assert_close(after, before)


def test_a_narrower_module_is_the_first_channels_of_a_wider_one() -> None:
    wide, narrow = made("semantic", 12), SemanticTokens(CONFIG, 7).requires_grad_(False)
    for name, p in narrow.state_dict().items():
        p.copy_(wide.state_dict()[name][tuple(slice(n) for n in p.shape)])
    metric, size = torch.randn(4, 17, 7), torch.ones(4, 17)
    assert torch.equal(assigned(wide, metric, size, LENGTHS, KEPT), assigned(narrow, metric, size, LENGTHS, KEPT))


def test_an_unknown_way_to_begin_is_refused() -> None:
    with pytest.raises(ValueError, match=r"init='sum' is unknown; choose one of 'avg', 'max', 'conv'"):
        SemanticTokens(CONFIG, 8, "sum")


# ---- in supernets -----------------------------------------------------------------------------------------------


def net_of(mode: str, architecture: str, first: bool = False) -> Supernet:
    return random_net(make_config(mode, architecture, first))


@pytest.mark.parametrize("architecture", ["class-token", "patches-only", "registers"])
@pytest.mark.parametrize("mode", MODES)
def test_a_mixed_batch_its_images_alone_and_static_networks_are_one_and_cost_what_pytorch_counts(
    mode: str, architecture: str
) -> None:
    net = net_of(mode, architecture, first=mode == "semantic")
    images, subnet = images_for(net), subnets_for(net)
    logits, state = net(images, subnet), net.forward_features(images, subnet)
    assert state.size is not None
    for size in state.size.split(state.num_tokens.tolist()):
        assert size.sum().item() == pytest.approx(net.config.num_tokens, abs=1e-4)
    for i in (0, 1, 2, 5):
        static = net.extract(subnet[i])
        assert_close(static(images[[i, 0]])[:1], logits[i : i + 1])
        assert_close(net(images[[i]], subnet[i]), logits[i : i + 1])
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            static(images[[i]])
        assert counter.get_total_flops() == 2 * net.macs(subnet[i]).item()
        assert sum(p.numel() for p in static.parameters()) == net.params(subnet[i]).item()
    assert (state.num_tokens < net.config.num_tokens).any()


@pytest.mark.parametrize("mode", LEARNED)
def test_all_that_is_learned_learns(mode: str) -> None:
    net = copy.deepcopy(net_of(mode, "class-token")).requires_grad_(True)
    (net(images_for(net), subnets_for(net)) ** 2).sum().backward()
    learned = {name: p for name, p in net.named_parameters() if ".reduce." in name}
    assert len(learned) == (8 if mode == "semantic" else 5) * 2
    for name, p in learned.items():
        assert p.grad is not None, name
        assert p.grad.isfinite().all(), name
    # `around` has no part in it until `mix` has moved away from zero.
    still = [name for name, p in learned.items() if p.grad is not None and p.grad.abs().max() == 0]
    assert still == []


@pytest.mark.parametrize("mode", LEARNED)
def test_a_static_network_learns_after_it_was_used(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(semantic, "_ON_DEVICE", Bounded(2**20))
    net = net_of(mode, "class-token")
    static, images = net.extract(subnets_for(net)[4]).requires_grad_(True), images_for(net)
    with torch.inference_mode():
        used = static(images)
    learning = static(images)
    learning.sum().backward()
    assert_close(learning.detach(), used.clone())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in static.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("mode", MODES)
@torch.no_grad()
def test_networks_of_any_precision_share_out_about_the_same(mode: str, dtype: torch.dtype) -> None:
    net = net_of(mode, "class-token")
    images, subnet = images_for(net), subnets_for(net)
    logits = net(images, subnet)
    other = copy.deepcopy(net).to(dtype)
    found, alone = other(images.to(dtype), subnet), other.extract(subnet[4])(images[[4]].to(dtype))
    assert (found.dtype, alone.dtype) == (dtype, dtype)
    tolerance = 1e-3 if dtype == torch.float64 else 0.1
    assert (found - logits).abs().max() < tolerance * logits.abs().max()
    assert (alone - logits[[4]]).abs().max() < tolerance * logits.abs().max()


@torch.no_grad()
def test_its_weights_are_saved_and_loaded(tmp_path: Path) -> None:
    net = freeze(net_of("semantic", "class-token"))
    images, subnet = images_for(net), subnets_for(net)
    save_pretrained(net, tmp_path / "net")
    assert torch.equal(freeze(from_pretrained(tmp_path / "net"))(images, subnet), net(images, subnet))
    static = net.extract(subnet[4])
    save_static(static, tmp_path / "static")
    assert torch.equal(load_static(tmp_path / "static")(images), static(images))


def test_weights_that_were_trained_without_run_by_the_frozen_one_only() -> None:
    net = copy.deepcopy(net_of("prune", "class-token"))
    with pytest.raises(ValueError, match=r"token_mode='semantic' has learned parameters, which blocks \[1, 3\]"):
        net.run_by(replace(net.config, space=replace(net.space, token_mode="semantic")))
    net.run_by(replace(net.config, space=replace(net.space, token_mode="semantic_frozen")))
    assert net(images_for(net), subnets_for(net)).shape == (BATCH, 5)


def test_an_environment_takes_the_frozen_one() -> None:
    env = gym.make("Prance-Digits-v0", token_mode="semantic_frozen")
    env.reset(seed=0)
    ended = False
    while not ended:
        _, reward, ended, _, info = env.step(np.full(env.action_space.shape, -1.0, dtype=np.float32))
        assert np.isfinite(reward)
    # What the narrowest subnet costs by `prune`, and the comparisons.
    assert 0.13 < info["macs_fraction"] < 0.15
    assert info["num_tokens"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["semantic", "semantic_max"])
def test_extracted_networks_export_with_a_free_batch_size(mode: str) -> None:
    net = net_of(mode, "class-token")
    assert_exports_with_a_free_batch_size(net, subnets_for(net)[4])
