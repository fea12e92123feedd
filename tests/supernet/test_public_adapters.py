"""What others hang on layers: hooks, pruning, parametrisations, LoRA. Extracted networks heed it, supernets refuse it.

What a layer computes after it was adapted is known: it is the same network with other weights.
"""

from __future__ import annotations

import copy
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import make_engine
from small_nets import CASES, cut_subnet, normalised, pixels, small_net
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

from agents import AdaptiveViT, FullAgent
from supernet import GroupChoice, StaticViT, SubnetConfig, Supernet, extract, load_static, save_pretrained, save_static

Weights = dict[str, Tensor]
Adapt = Callable[[nn.Module, str], Callable[[Tensor], Tensor]]
"""Adapts one linear layer, a child of a module; gives what its weight is then."""


def pruned(parent: nn.Module, name: str) -> Callable[[Tensor], Tensor]:
    layer = getattr(parent, name)
    prune.l1_unstructured(layer, "weight", amount=0.6)
    mask = layer.weight_mask.clone()
    return lambda weight: weight * mask


def pruned_and_trained_on(parent: nn.Module, name: str) -> Callable[[Tensor], Tensor]:
    weight = pruned(parent, name)
    with torch.no_grad():
        getattr(parent, name).weight_orig.mul_(3)  # `weight` follows when the layer is called
    return lambda w: 3 * weight(w)


def channels_pruned(parent: nn.Module, name: str) -> Callable[[Tensor], Tensor]:
    layer = prune.ln_structured(getattr(parent, name), "weight", amount=0.5, n=2, dim=1)
    mask = layer.weight_mask.clone()
    return lambda weight: weight * mask


def weight_normed(parent: nn.Module, name: str) -> Callable[[Tensor], Tensor]:
    layer = parametrizations.weight_norm(getattr(parent, name))
    with torch.no_grad():
        layer.parametrizations.weight.original0.mul_(2)
    return lambda weight: 2 * weight


def weight_normed_the_older_way(parent: nn.Module, name: str) -> Callable[[Tensor], Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        layer = nn.utils.weight_norm(getattr(parent, name))
    with torch.no_grad():
        layer.weight_g.mul_(2)
    return lambda weight: 2 * weight


def spectrally_normed(parent: nn.Module, name: str) -> Callable[[Tensor], Tensor]:
    normed = parametrizations.spectral_norm(getattr(parent, name)).eval().weight.detach().clone()
    return lambda weight: normed


class Clipped(nn.Module):
    """A parametrisation of one's own."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight.clamp(-0.1, 0.1)


def parametrised(parent: nn.Module, name: str) -> Callable[[Tensor], Tensor]:
    parametrize.register_parametrization(getattr(parent, name), "weight", Clipped())
    return lambda weight: weight.clamp(-0.1, 0.1)


def with_loralib(parent: nn.Module, name: str) -> Callable[[Tensor], Tensor]:
    loralib = pytest.importorskip("loralib")
    old = getattr(parent, name)
    new = loralib.Linear(old.in_features, old.out_features, r=2, lora_alpha=4, merge_weights=False)
    new.load_state_dict(old.state_dict(), strict=False)
    new.lora_B.data.normal_(generator=torch.Generator().manual_seed(0))
    new.eval()  # which returns nothing
    setattr(parent, name, new)
    return lambda weight: weight + 2 * (new.lora_B @ new.lora_A).detach()


def with_a_forward_of_its_own(parent: nn.Module, name: str) -> Callable[[Tensor], Tensor]:
    layer = getattr(parent, name)

    def forward(self: nn.Linear, x: Tensor) -> Tensor:  # as accelerate's hooks do
        return nn.functional.linear(x, 2 * self.weight, self.bias)

    layer.forward = types.MethodType(forward, layer)
    return lambda weight: 2 * weight


def with_hooks(parent: nn.Module, name: str) -> Callable[[Tensor], Tensor]:
    layer = getattr(parent, name)
    layer.register_forward_pre_hook(lambda module, inputs: (2 * inputs[0],))
    layer.register_forward_hook(lambda module, inputs, output: output + 0.5 * (output - module.bias))
    return lambda weight: 3 * weight


class Wrapper(nn.Module):
    """Another class around the layer, with the attributes that users copy."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer, self.weight, self.bias = layer, layer.weight, layer.bias

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(2 * x)
        return out


def wrapped(parent: nn.Module, name: str) -> Callable[[Tensor], Tensor]:
    setattr(parent, name, Wrapper(getattr(parent, name)))
    return lambda weight: 2 * weight


ADAPTERS: list[Adapt] = [
    pruned,
    pruned_and_trained_on,
    channels_pruned,
    weight_normed,
    weight_normed_the_older_way,
    spectrally_normed,
    parametrised,
    with_loralib,
    with_a_forward_of_its_own,
    with_hooks,
    wrapped,
]
LAYERS = ["blocks.0.qkv", "blocks.1.proj", "blocks.2.fc1", "blocks.1.fc2", "blocks.0.lln", "head"]


def static_of(case: str = "prune") -> StaticViT:
    net = CASES[case]()
    return extract(net, cut_subnet(net))


@pytest.mark.parametrize("adapt", ADAPTERS, ids=lambda a: a.__name__)
@pytest.mark.parametrize("layer", LAYERS)
def test_an_adapted_layer_of_an_extracted_network_counts(adapt: Adapt, layer: str) -> None:
    static, images = static_of(), normalised(small_net(), pixels(small_net(), 3))
    plain, expected = static(images).detach(), copy.deepcopy(static)
    parent, _, name = layer.rpartition(".")
    weight = adapt(static.get_submodule(parent), name)
    with torch.no_grad():
        changed = expected.get_submodule(layer).weight
        assert isinstance(changed, nn.Parameter)
        changed.copy_(weight(changed))
    for context in (torch.no_grad(), torch.enable_grad(), torch.inference_mode()):
        with context:
            torch.testing.assert_close(static(images), expected(images), rtol=0, atol=2e-4)
    assert (static(images) - plain).abs().max() > 1e-2


@pytest.mark.parametrize("case", CASES)
def test_every_layer_of_an_extracted_network_is_called(case: str) -> None:
    static, called, went_back = static_of(case), set(), set()
    leaves = {name: m for name, m in static.named_modules() if name and not list(m.children())}
    for name, module in leaves.items():
        module.register_forward_hook(lambda module, inputs, output, name=name: called.add(name))
        module.register_full_backward_hook(lambda module, before, after, name=name: went_back.add(name))
    images = normalised(CASES[case](), pixels(CASES[case](), 2)).requires_grad_()
    static(images).sum().backward()
    assert called == set(leaves)
    assert went_back == set(leaves)


def test_hooks_for_all_modules_of_a_process_see_every_layer() -> None:
    static, seen = static_of(), []
    handle = nn.modules.module.register_module_forward_hook(lambda module, inputs, output: seen.append(module))
    with torch.inference_mode():
        static(pixels(small_net(), 2))
    handle.remove()
    assert {m for m in static.modules() if isinstance(m, nn.Linear)} <= set(seen)


def test_a_dynamically_quantised_network_and_one_without_biases_run() -> None:
    static, images = static_of(), normalised(small_net(), pixels(small_net(), 3))
    expected = copy.deepcopy(static)
    for module, other in zip(static.blocks, expected.blocks, strict=True):
        module.fc2.bias = None
        nn.init.zeros_(other.fc2.bias)
    with torch.no_grad():
        torch.testing.assert_close(static(images), expected(images), rtol=0, atol=1e-5)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            quantised = torch.ao.quantization.quantize_dynamic(expected, {nn.Linear}, torch.qint8)
        difference = (quantised(images) - expected(images)).abs().max()
    assert 0 < difference < 0.3


@pytest.mark.slow
def test_lora_of_peft_is_heeded_trained_and_merged(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    static, images = static_of(), normalised(small_net(), pixels(small_net(), 3))
    plain = static(images).detach()
    config = peft.LoraConfig(r=2, target_modules=["qkv", "proj", "fc1", "fc2"], init_lora_weights=False)
    model = peft.get_peft_model(copy.deepcopy(static), config).eval()
    adapted = model(images)
    assert (adapted - plain).abs().max() > 1e-2
    adapted.sum().backward()
    grads = [p.grad for name, p in model.named_parameters() if "lora_" in name]
    assert len(grads) == 2 * 4 * len(static.blocks)
    assert all(g is not None and bool(g.any()) for g in grads)
    with pytest.raises(ValueError, match=r"lacks the weights.*fc1.*lora_A.*merge_and_unload"):
        save_static(model.base_model.model, tmp_path)
    assert not list(tmp_path.iterdir())
    merged = model.merge_and_unload()
    torch.testing.assert_close(merged(images), adapted, rtol=0, atol=1e-4)
    save_static(merged, tmp_path)
    torch.testing.assert_close(load_static(tmp_path)(images), merged(images), rtol=0, atol=0)


def test_a_pruned_network_is_saved_once_its_masks_are_permanent(tmp_path: Path) -> None:
    static, images = static_of(), pixels(small_net(), 2)
    layers = [(b, name) for b in static.blocks for name in ("qkv", "proj", "fc1", "fc2")]
    prune.global_unstructured(
        [(getattr(b, n), "weight") for b, n in layers], pruning_method=prune.L1Unstructured, amount=0.5
    )
    expected = static(images).detach()
    with pytest.raises(ValueError, match=r"has \['blocks.0.fc1.weight_mask'.*prune.remove"):
        save_static(static, tmp_path)
    for block, name in layers:
        prune.remove(getattr(block, name), "weight")
    save_static(static, tmp_path)
    torch.testing.assert_close(load_static(tmp_path)(images), expected, rtol=0, atol=1e-5)


def test_a_traced_network_gives_the_same() -> None:
    static, images = static_of(), normalised(small_net(), pixels(small_net(), 3))
    handles = [m.register_forward_hook(lambda *_: None) for m in static.modules()]
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(2):  # with hooks, which counters that trace have, and without
            traced: Any = torch.jit.trace(static, images)
            torch.testing.assert_close(traced(images), static(images), rtol=0, atol=1e-5)
            for handle in handles:
                handle.remove()


# ---- supernets ------------------------------------------------------------------------------------------------------

Door = Callable[[Supernet], object]
DOORS: dict[str, Door] = {
    "forward": lambda net: net(pixels(net, 2)),
    "subnets": lambda net: net(pixels(net, 2), SubnetConfig.min(net.space)),
    "steps": lambda net: net.finish(net.run_group(net.begin(pixels(net, 2)), 1, GroupChoice.full(net.space, 1, 2))),
    "training": lambda net: net.train()(normalised(net, pixels(net, 2))).sum().backward(),
    "extract": lambda net: net.extract(SubnetConfig.min(net.space)),
    "engine": lambda net: make_engine(net, 4),
    "adaptive": lambda net: AdaptiveViT(net, FullAgent(net.config))(pixels(net, 2)),
}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("adapt", ADAPTERS, ids=lambda a: a.__name__)
def test_an_adapted_layer_of_a_supernet_is_refused_by_name(adapt: Adapt, door: str) -> None:
    for layer in LAYERS:
        net = copy.deepcopy(small_net()).requires_grad_(True)
        parent, _, name = layer.rpartition(".")
        adapt(net.get_submodule(parent), name)
        with pytest.raises(ValueError, match=rf"The layer {layer} (has hooks|is a .*)\. A supernet cuts.*net\.extract"):
            DOORS[door](net)


@pytest.mark.parametrize("door", DOORS)
def test_hooks_on_norms_and_blocks_of_a_supernet_are_refused_by_name(door: str) -> None:
    for name in ("blocks.0.norm1", "blocks.2.norm2", "norm", "blocks.1"):
        net = copy.deepcopy(small_net()).requires_grad_(True)
        handle = net.get_submodule(name).register_forward_hook(lambda *_: None)
        with pytest.raises(ValueError, match=rf"{name} has hooks\. .*handle\.remove"):
            DOORS[door](net)
        handle.remove()
        DOORS[door](net)


def test_what_a_supernet_calls_may_have_hooks() -> None:
    net, seen = copy.deepcopy(small_net()), []
    for module in (net, net.patch_embed, *net.patch_embed):
        module.register_forward_hook(lambda module, inputs, output: seen.append(module))
    net(pixels(net, 2))
    assert len(seen) == 2 + len(net.patch_embed)


@pytest.mark.parametrize("adapt", [pruned, weight_normed, with_loralib, wrapped], ids=lambda a: a.__name__)
def test_an_adapted_supernet_is_not_saved_as_what_nobody_can_load(adapt: Adapt, tmp_path: Path) -> None:
    for layer in ("blocks.1.fc2", "patch_embed.0"):
        if layer == "patch_embed.0" and adapt in (with_loralib, wrapped):
            continue
        net = copy.deepcopy(small_net())
        parent, _, name = layer.rpartition(".")
        adapt(net.get_submodule(parent), name)
        with pytest.raises(ValueError, match=rf"\['{layer}\.[\w.]+'.*permanent"):
            save_pretrained(net, tmp_path)
        assert not list(tmp_path.iterdir())
        with pytest.raises(ValueError, match=r"layer blocks.1.fc2|lacks the weights \['patch_embed.0.weight'"):
            net.extract(SubnetConfig.min(net.space))


@pytest.mark.slow
def test_a_supernet_under_peft_is_refused_by_name() -> None:
    peft = pytest.importorskip("peft")
    net = copy.deepcopy(small_net())
    model = peft.get_peft_model(net, peft.LoraConfig(r=2, target_modules=["fc1"]))
    with pytest.raises(ValueError, match=r"The layer blocks\.0\.fc1 is a peft\.[\w.]*Linear\. .*merge_and_unload"):
        model(pixels(net, 2))
    model.merge_and_unload()(pixels(net, 2))
