"""Counters of MACs that others wrote, on extracted networks: right, or as wrong as on timm's own ViT."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from supernet import SearchSpace, StaticViT, SubnetConfig, Supernet, from_timm

IMAGES = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
SIZE = (3, 32, 32)
Count = Callable[[nn.Module], float]


@pytest.fixture(scope="module")
def model() -> VisionTransformer:
    """A small ViT of timm."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sizes: dict[str, Any] = {"embed_dim": 64, "depth": 3, "num_heads": 2, "num_classes": 10}
        return VisionTransformer(img_size=32, patch_size=8, **sizes).eval()


@pytest.fixture(scope="module")
def net(model: VisionTransformer) -> Supernet:
    """The same, elastic."""
    return from_timm(model, SearchSpace((1, 1, 1), (32, 64), (2.0, 4.0), (1, 2)))


@pytest.fixture(scope="module")
def full(net: Supernet) -> StaticViT:
    """What timm's model computes."""
    return net.extract(SubnetConfig.full(net.space))


@pytest.fixture(scope="module")
def cut(net: Supernet) -> StaticViT:
    """Narrow, and with half of the patches left out at every decision."""
    subnet = SubnetConfig.min(net.space)
    subnet.keep_rate[:] = 0.5
    return net.extract(subnet)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Some of these packages are old."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        yield


def parts(static: StaticViT) -> tuple[int, int]:
    """MACs inside fused attention, and of the class tokens' attention that chooses patches; the rest is layers."""
    head_dim = static.config.head_dim
    sizes: list[Any] = [block.sizes for block in static.blocks]
    attention = sum(2 * s.tokens**2 * s.num_heads * head_dim for s in sizes)
    return attention, sum(s.tokens * s.num_heads * head_dim for s in sizes if s.counts is not None)


def with_hooks(model: nn.Module) -> float:
    """The idiom of most home-made counters."""
    counts: list[float] = []

    def count(layer: Any, inputs: Any, output: torch.Tensor) -> None:
        per_output = layer.weight[0].numel()
        counts.append(output.numel() * per_output)

    for layer in model.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            layer.register_forward_hook(count)
    model(IMAGES)
    return sum(counts)


def with_thop(model: nn.Module) -> float:
    thop = pytest.importorskip("thop")
    # It counts divisions of norms, too; but not of timm's, which are of a class of their own.
    nothing = dict.fromkeys((nn.LayerNorm, nn.BatchNorm2d), lambda module, inputs, output: None)
    return float(thop.profile(model, (IMAGES,), verbose=False, custom_ops=nothing)[0])


def with_fvcore(model: nn.Module) -> float:
    fvcore = pytest.importorskip("fvcore.nn")
    found = fvcore.FlopCountAnalysis(model, IMAGES).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    return float(found.by_operator()["linear"] + found.by_operator()["conv"])


def with_calflops(model: nn.Module) -> float:
    calflops = pytest.importorskip("calflops")
    return float(
        calflops.calculate_flops(model, input_shape=(1, *SIZE), print_results=False, output_as_string=False)[1]
    )


@pytest.mark.parametrize(
    "count", [with_hooks, with_thop, with_fvcore, pytest.param(with_calflops, marks=pytest.mark.slow)]
)
def test_counters_of_layers_find_all_of_them(
    count: Count, model: VisionTransformer, full: StaticViT, cut: StaticViT
) -> None:
    for static in (full, cut):
        assert count(copy.deepcopy(static)) == static.macs() - sum(parts(static))
    assert count(copy.deepcopy(model)) == full.macs() - parts(full)[0]


def with_pytorch(model: nn.Module) -> float:
    with FlopCounterMode(display=False) as counter:
        model(IMAGES)
    return counter.get_total_flops() / 2


def with_profiler(model: nn.Module) -> float:
    with torch.profiler.profile(with_flops=True) as found:
        model(IMAGES)
    products = ("aten::conv2d", "aten::addmm", "aten::mm", "aten::bmm")
    return sum(event.flops for event in found.key_averages() if event.key in products) / 2


@pytest.mark.parametrize("count", [with_pytorch, with_profiler])
def test_pytorchs_counters_say_the_same_if_attention_is_not_one_operation(
    count: Count, full: StaticViT, cut: StaticViT
) -> None:
    for static in (full, cut):
        assert count(static) == static.macs() - parts(static)[0]  # on a CPU they do not see inside
        with sdpa_kernel(SDPBackend.MATH):
            assert count(static) == static.macs()


def with_ptflops(model: nn.Module) -> float:
    ptflops = pytest.importorskip("ptflops")
    options: dict[str, Any] = {"as_strings": False, "print_per_layer_stat": False, "verbose": False}
    return float(ptflops.get_model_complexity_info(model, SIZE, backend="aten", **options)[0])


def with_ptflops_by_modules(model: nn.Module) -> float:
    ptflops = pytest.importorskip("ptflops")
    options: dict[str, Any] = {"as_strings": False, "print_per_layer_stat": False, "verbose": False}
    return float(ptflops.get_model_complexity_info(model, SIZE, backend="pytorch", **options)[0])


def with_torch_pruning(model: nn.Module) -> float:
    return float(pytest.importorskip("torch_pruning").utils.count_ops_and_params(model, IMAGES)[0])


@pytest.mark.parametrize("count", [with_ptflops, with_ptflops_by_modules, with_torch_pruning])
def test_counters_that_add_biases_and_norms_are_a_little_above(count: Count, full: StaticViT, cut: StaticViT) -> None:
    for static in (full, cut):
        layers = static.macs() - sum(parts(static))
        assert layers < count(copy.deepcopy(static)) <= 1.02 * layers


def test_torchprofile_counts_attention_and_norms(cut: StaticViT, full: StaticViT) -> None:
    torchprofile = pytest.importorskip("torchprofile")
    for static in (full, cut):
        assert static.macs() < torchprofile.profile_macs(copy.deepcopy(static), IMAGES) <= 1.005 * static.macs()


def test_torchinfo_counts_a_linear_layer_once_for_all_tokens_here_and_in_timm(
    model: VisionTransformer, full: StaticViT, cut: StaticViT
) -> None:
    torchinfo = pytest.importorskip("torchinfo")
    found = [torchinfo.summary(copy.deepcopy(m), input_data=IMAGES, verbose=0) for m in (model, full, cut)]
    assert found[0].total_mult_adds == found[1].total_mult_adds < full.macs() / 5
    assert found[0].total_params == found[1].total_params == full.params()
    assert found[2].total_params == cut.params()


@pytest.mark.parametrize("count", [with_thop, with_hooks])
def test_on_a_supernet_counters_with_hooks_are_refused(count: Count, net: Supernet) -> None:
    with pytest.raises(ValueError, match=r"layer blocks\.0\.\w+ has hooks\. .*net\.extract"):
        count(copy.deepcopy(net))


def test_on_a_supernet_pytorchs_counter_is_right(net: Supernet) -> None:
    with sdpa_kernel(SDPBackend.MATH):
        assert with_pytorch(net) == int(net.macs())
