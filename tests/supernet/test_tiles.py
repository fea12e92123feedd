"""The tiled runtime beside the one by segments: in Triton's interpreter, or on a GPU where there is one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from device_asks import nothing_asked_of_the_device
from helpers import random_net
from hypothesis import given, settings
from hypothesis import strategies as st
from mode_nets import CASES, assert_close, images_for, make_config, naive, subnets_for

from supernet import InferenceState, SubnetConfig, Supernet, TokenMode, register_token_mode, runtime, tiled_state
from supernet.arrays import constant
from supernet.config import with_space
from supernet.layers import patches_by_product
from supernet.runtime import kernels
from supernet.runtime.devices import current
from supernet.tiled_state import TiledState, macs_on_device, run_tiled_group
from train.timing.on_gpu import choices_on, forward_by_tiles, recorded

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
FOREIGN = {
    "distilled": r"no norms.*no two classifiers and no missing last norm",
    "map": r"act='silu'.*attention pooling",
}
TILED = [case for case, (_, architecture, _) in CASES.items() if architecture not in FOREIGN]
FAST = ["prune-class-token-later", "prune_merge-patches-only-first", "tome-avg-of-clip-later", "merge-authors-later"]


@pytest.fixture(autouse=True)
def _without_gradients() -> Iterator[None]:
    pytest.importorskip("triton")
    with torch.no_grad():
        yield


def both(net: Supernet, images: torch.Tensor, subnet: SubnetConfig) -> tuple[InferenceState, InferenceState]:
    """The inference by segments, and by tiles."""
    net, images = net.to(DEVICE), images.to(DEVICE)
    with runtime.use("segments"):
        segments = net.forward_features(images, subnet)
    with runtime.use("tiles"):
        return segments, net.forward_features(images, subnet)


def assert_same(net: Supernet, segments: InferenceState, tiles: InferenceState, tolerance: float = 1e-5) -> None:
    for name in ("num_tokens", "embed_dim", "token_dim", "macs"):
        np.testing.assert_array_equal(getattr(tiles, name), getattr(segments, name))
    assert torch.equal(tiles.patch_token, segments.patch_token)
    scale = 1 + float(segments.tokens.abs().max())
    assert_close(tiles.tokens[:, : segments.tokens.shape[1]], segments.tokens, tolerance * scale)
    assert (tiles.size is None) == (segments.size is None)
    if tiles.size is not None and segments.size is not None:
        assert torch.equal(tiles.size, segments.size)
    logits = net.forward_head(segments)
    assert_close(net.forward_head(tiles), logits, tolerance * (1 + float(logits.abs().max())))


def test_kernels_are_launched_on_the_gpu_of_the_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    class Launched(Exception):
        pass

    entered: list[torch.device] = []

    @contextmanager
    def made_current(device: torch.device) -> Iterator[None]:
        entered.append(device)
        yield

    def launch(*args: Any) -> Any:
        assert entered == [images.device]
        raise Launched

    net = random_net(make_config("prune", "class-token", True)).to(DEVICE)
    images, subnet = images_for(net, 2).to(DEVICE), subnets_for(net, 2)
    monkeypatch.setattr(tiled_state, "current", made_current)
    monkeypatch.setattr("supernet.runtime.tiles.run_tiles", launch)
    with runtime.use("tiles"), pytest.raises(Launched):
        net(images, subnet)


def test_a_gpu_is_made_the_current_one_and_a_cpu_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device", nullcontext)
    with current(torch.device("cuda", 1)) as made, current(torch.device("cpu")) as nothing:
        assert (made, nothing) == (torch.device("cuda", 1), None)


@pytest.mark.parametrize("case", [pytest.param(c, marks=() if c in FAST else pytest.mark.slow) for c in TILED])
def test_every_image_of_a_mixed_batch_is_as_by_segments_and_alone(case: str) -> None:
    mode, architecture, first = CASES[case]
    net = random_net(make_config(mode, architecture, first))
    images, subnet = images_for(net, 6), subnets_for(net, 6)
    segments, tiles = both(net, images, subnet)
    assert_same(net, segments, tiles)
    logits = net.forward_head(tiles).cpu()
    net.cpu()
    assert_close(logits, torch.stack([naive(net, images[i], subnet[i])[0] for i in range(6)]), 1e-4)


@settings(max_examples=6)
@given(
    widths=st.lists(st.integers(1, 70), min_size=2, max_size=3, unique=True).map(sorted),
    ratios=st.lists(st.sampled_from([1.0, 1.3, 1.7, 3.0]), min_size=1, max_size=2, unique=True).map(sorted),
    heads=st.integers(1, 3),
    head_dim=st.sampled_from([4, 8, 17, 32]),
    patches=st.integers(1, 6),
    batch=st.integers(1, 4),
    act=st.sampled_from(["gelu", "gelu_tanh", "quick_gelu"]),
    mode=st.sampled_from(["prune", "prune_fused", "merge", "prune_merge", "tome"]),
)
@pytest.mark.slow
def test_any_sizes(
    widths: list[int], ratios: list[float], heads: int, head_dim: int, patches: int, batch: int, act: str, mode: str
) -> None:
    config = make_config(mode, "class-token", False)
    space = replace(config.space, embed_dims=widths, mlp_ratios=ratios, num_heads=(heads,), groups=(1, 1, 1))
    net = random_net(replace(config, space=space, head_dim=head_dim, img_size=4 * patches, act=act))
    subnet = SubnetConfig.random(net.space, batch, torch.Generator().manual_seed(batch))
    assert_same(net, *both(net, images_for(net, batch), subnet))


# Triton's interpreter multiplies bfloat16 as if its bits were whole numbers (findings/triton_interpreter_bfloat16.sh).
@pytest.mark.parametrize("dtype", [torch.float16, pytest.param(torch.bfloat16, marks=pytest.mark.cuda)])
def test_half_precision_is_near_single(dtype: torch.dtype) -> None:
    net = random_net(with_space(make_config("prune", "class-token", False), min_keep_rate=1.0))
    images, subnet = images_for(net, 3).to(DEVICE), subnets_for(net, 3)
    with runtime.use("tiles"):
        exact = net.to(DEVICE)(images, subnet)
        half = net.to(dtype)(images, subnet)
    assert half.dtype == dtype
    bound = {torch.bfloat16: 0.1, torch.float16: 0.02}[dtype]
    assert float((half.float() - exact).norm() / exact.norm()) < bound


@pytest.mark.parametrize("mode", ["prune", "tome"])
def test_only_the_first_extent_of_a_launch_grows_with_the_images(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA's others end at 65,535."""

    class Noted:
        """A kernel that notes its grids."""

        def __init__(self, kernel: Any) -> None:
            self.kernel, self.grids = kernel, list[tuple[int, ...]]()

        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            self.grids.append(grid)
            return self.kernel[grid]

    names = [name for name in vars(kernels) if name.endswith("_kernel")]
    noted = {name: Noted(getattr(kernels, name)) for name in names}
    for name in names:
        monkeypatch.setattr(kernels, name, noted[name])
    net = random_net(make_config(mode, "class-token", True)).to(DEVICE)
    subnet, others = subnets_for(net, 4), {}
    with runtime.use("tiles"):
        for images in (2, 4):
            net(images_for(net, images).to(DEVICE), subnet[list(range(images))])
            net.finish(TiledState.of(net.begin(images_for(net, images).to(DEVICE)), net.config))
            others[images] = {name: [grid[1:] for grid in kernel.grids] for name, kernel in noted.items()}
            for kernel in noted.values():
                kernel.grids.clear()
    assert others[2] == others[4]
    never = "combine_kernel" if mode == "prune" else "move_kernel"
    assert [name for name in names if not others[2][name]] == [never]


def test_the_same_batch_gives_the_same_bits_and_a_permuted_one_the_permuted_result() -> None:
    net = random_net(make_config("merge", "class-token", False)).to(DEVICE)
    images, subnet = images_for(net, 5).to(DEVICE), subnets_for(net, 5)
    order = [3, 0, 4, 2, 1]
    with runtime.use("tiles"):
        once, again, moved = net(images, subnet), net(images, subnet), net(images[order], subnet[order])
    assert torch.equal(once, again)
    if CUDA:
        assert torch.equal(moved, once[order])
    # NumPy's products, by which the interpreter computes, round a row by where it stands.
    assert_close(moved, once[order], 1e-6)


def test_a_state_goes_on_either_way_and_is_indexed() -> None:
    net = random_net(make_config("prune_merge", "class-token", False)).to(DEVICE)
    images, subnet = images_for(net, 4).to(DEVICE), subnets_for(net, 4)
    with runtime.use("segments"):
        expected = net(images, subnet)
        begun = net.begin(images)
        segments = net.run_group(begun, 1, subnet.group(net.space, 1))
    with runtime.use("tiles"):
        tiles = net.run_group(begun, 1, subnet.group(net.space, 1))
        assert_close(net.finish(segments, subnet), expected)
        assert_close(net.finish(tiles[[2, 0]], subnet[[2, 0]]), expected[[2, 0]])
        full = net.finish(tiles)
    assert net.macs_to_go(tiles).tolist() == net.macs_to_go(segments).tolist()
    with runtime.use("segments"):
        assert_close(net.finish(tiles, subnet), expected)
        assert_close(net.finish(segments), full)


def test_the_observed_keys_are_reduced_with_the_tokens() -> None:
    net = random_net(make_config("merge", "class-token", False)).to(DEVICE)
    images, subnet = images_for(net, 4).to(DEVICE), subnets_for(net, 4)
    with runtime.use("segments"):
        begun = net.begin(images, key_mean=True)
        expected = net.run_group(begun, 1, subnet.group(net.space, 1)).padded_key_mean(net.config.num_tokens)
    with runtime.use("tiles"):
        found = net.run_group(begun, 1, subnet.group(net.space, 1)).padded_key_mean(net.config.num_tokens)
    assert_close(found, expected)


def test_the_observed_keys_are_single_precision_in_half_precision_too() -> None:
    net = random_net(make_config("prune", "class-token", False)).to(DEVICE).half()
    images, subnet = images_for(net, 2).to(DEVICE), subnets_for(net, 2)
    with runtime.use("tiles"):
        state = net.run_group(net.begin(images, key_mean=True), 1, subnet.group(net.space, 1))
    assert isinstance(state, TiledState)
    assert state.row_means is not None
    assert state.row_means.dtype == torch.float32


def test_weights_may_lie_in_any_order() -> None:
    net = random_net(make_config("prune", "class-token", False))
    images, subnet = images_for(net, 3), subnets_for(net, 3)
    expected = both(net, images, subnet)[0]
    for block in net.blocks:
        for layer in (block.qkv, block.fc1, block.norm1):
            for name, value in layer.named_parameters():
                spread = torch.stack([value.detach(), torch.zeros_like(value)], dim=-1)[..., 0]  # no stride is 1
                moved = spread if spread.ndim == 1 else value.detach().t().contiguous().t()
                assert not moved.is_contiguous()
                setattr(layer, name, torch.nn.Parameter(moved, requires_grad=False))
    assert_same(net, expected, both(net, images, subnet)[1])


def test_alike_images_take_the_dense_way_and_gradients_the_one_by_segments() -> None:
    net = random_net(make_config("prune", "class-token", False)).to(DEVICE)
    images = images_for(net, 3).to(DEVICE)
    with runtime.use("tiles"):
        assert type(net.forward_features(images)) is InferenceState
        assert type(net.forward_features(images, subnets_for(net, 3))) is not InferenceState
    with torch.enable_grad():
        logits = net.requires_grad_()(images.clone(), subnets_for(net, 3))
        logits.sum().backward()
    assert net.blocks[0].fc1.weight.grad is not None


def test_what_tiles_cannot_run_is_said(monkeypatch: pytest.MonkeyPatch, own_modes: Any) -> None:
    with pytest.raises(ValueError, match=r"runtime 'tile' is unknown; choose one of"), runtime.use("tile"):
        pass
    known = make_config("prune", "class-token", False)
    images = images_for(random_net(known), 2).to(DEVICE)
    register_token_mode("hosted", TokenMode(known.token_mode.assign))
    hosted = random_net(with_space(known, token_mode="hosted")).to(DEVICE)
    with runtime.use("tiles"), pytest.raises(RuntimeError, match=r"token_mode='hosted' plans on the host"):
        hosted(images, subnets_for(hosted, 2))
    double = random_net(known).to(DEVICE).double()
    with (
        runtime.use("tiles"),
        pytest.raises(RuntimeError, match=r"its kernels know no torch.float64, only torch.f"),
    ):
        double(images.double(), subnets_for(double, 2))
    if not CUDA:
        monkeypatch.delenv("TRITON_INTERPRET")
        runtime.choice.hindrance_of_device.cache_clear()
        net = random_net(known).float()
        with runtime.use("tiles"), pytest.raises(RuntimeError, match=r"Triton needs a GPU, or TRITON_INTERPRET=1"):
            net(images, subnets_for(net, 2))
        runtime.choice.hindrance_of_device.cache_clear()


def test_an_autocast_is_obeyed_by_segments_and_refused_by_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    net = random_net(make_config("prune", "class-token", True)).to(DEVICE)
    images, subnet = images_for(net, 2).to(DEVICE), subnets_for(net, 2)
    with (
        torch.autocast(DEVICE.type, torch.bfloat16),
        runtime.use("tiles"),
        pytest.raises(RuntimeError, match=r"use\('tiles'\): torch.autocast is on, and tiles"),
    ):
        net(images, subnet)
    monkeypatch.setattr(runtime.choice, "hindrance_of_device", lambda device: None)
    runtime.choice._warn_once.cache_clear()
    ways = {}
    for kind in ("cpu", "cuda"):
        monkeypatch.setattr(torch, "is_autocast_enabled", lambda asked, kind=kind: asked == kind)
        with nullcontext() if kind == "cpu" else pytest.warns(UserWarning, match="segments.*: torch.autocast is on"):
            ways[kind] = runtime.choice.runs_tiles(net.config, torch.device("cuda"), torch.float32)
    assert ways == {"cpu": True, "cuda": False}


@pytest.mark.parametrize("architecture", FOREIGN)
def test_kinds_of_networks_that_kernels_do_not_know_run_by_segments(architecture: str) -> None:
    net = random_net(make_config("prune", architecture, False)).to(DEVICE)
    images, subnet = images_for(net, 2).to(DEVICE), subnets_for(net, 2)
    with runtime.use("tiles"), pytest.raises(RuntimeError, match=FOREIGN[architecture]):
        net(images, subnet)


def test_patches_by_one_product_are_those_of_the_convolution() -> None:
    conv = torch.nn.Conv2d(3, 24, 4, 4).to(DEVICE)
    images = torch.randn(5, 3, 24, 24, device=DEVICE)
    with torch.backends.cudnn.flags(allow_tf32=False):
        expected = conv(images).flatten(2).transpose(1, 2)
    assert_close(patches_by_product(conv, images), expected)


@pytest.mark.parametrize("mode", ["prune", pytest.param("prune_merge", marks=pytest.mark.slow), "tome"])
@pytest.mark.skipif(CUDA, reason="tried there with CUDA's own check of synchronisations")
def test_an_inference_asks_nothing_of_the_device(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net = random_net(make_config(mode, "class-token", False))
    images, subnet = images_for(net, 3), subnets_for(net, 3)
    choices = [subnet.group(net.space, group) for group in (1, 2)]
    state: InferenceState = TiledState.of(net.begin(images), net.config)
    with runtime.use("tiles"):
        net.finish(state)  # what full size costs is derived on the host, once
    with runtime.use("tiles"), nothing_asked_of_the_device(monkeypatch):
        for choice in choices:
            state = run_tiled_group(net.config, net.blocks, TiledState.of(state, net.config), choice)
            logits = net.finish(state)
            to_go = macs_on_device(net.config, TiledState.of(state, net.config))
    assert_close(logits, net(images, subnet))
    assert to_go.tolist() == net.macs(subnet).tolist()


@pytest.mark.skipif(CUDA, reason="there CUDA's own check finds it")
def test_what_asks_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    net = random_net(make_config("prune", "class-token", False))
    state = TiledState.of(net.begin(images_for(net, 2)), net.config)
    with nothing_asked_of_the_device(monkeypatch), pytest.raises(AssertionError, match=r"Tensor.cpu waits"):
        _ = state.macs


def test_a_lone_patch_has_nothing_to_merge_with() -> None:
    net = random_net(replace(make_config("tome", "patches-only", False), img_size=4))
    segments, tiles = both(net, images_for(net, 2), subnets_for(net, 2))
    assert tiles.num_tokens.tolist() == [1, 1]
    assert_close(net.forward_head(tiles), net.forward_head(segments))


def test_constants_of_equal_value_keep_their_type() -> None:
    like = torch.zeros(1, device=DEVICE)
    assert [constant(values, like).dtype for values in ((8.0,), (8,), (8.0,))] == [
        torch.float64,
        torch.int64,
        torch.float64,
    ]


def test_the_network_that_is_timed_on_a_gpu_is_the_same() -> None:
    net = random_net(make_config("prune", "class-token", False)).to(DEVICE)
    images, subnet = images_for(net, 3).to(DEVICE), subnets_for(net, 3)
    choices = choices_on(net, subnet, DEVICE)
    with runtime.use("segments"):
        expected = net(images, subnet)
    assert_close(forward_by_tiles(net, images, choices), expected)


@pytest.mark.cuda
def test_what_is_recorded_gives_the_same() -> None:
    net = random_net(make_config("prune", "class-token", False)).to(DEVICE)
    images, subnet = images_for(net, 3).to(DEVICE), subnets_for(net, 3)
    choices = choices_on(net, subnet, DEVICE)
    graph = recorded(lambda: forward_by_tiles(net, images, choices))
    assert torch.equal(graph(), forward_by_tiles(net, images, choices))
    images.mul_(0.5)
    assert torch.equal(graph(), forward_by_tiles(net, images, choices))
