"""Models as people have them: wrapped, compiled, in half precision, with adapters and hooks."""

from __future__ import annotations

import copy
import types
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.nn.utils import weight_norm as old_weight_norm
from torch.optim.swa_utils import AveragedModel

from supernet import Supernet, from_timm

SIZES: dict[str, Any] = {"img_size": 64, "embed_dim": 64, "depth": 4, "num_heads": 4, "num_classes": 11}


def small_vit() -> Any:
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", **SIZES).eval()
    for parameter in model.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    return model


@torch.no_grad()
def assert_same(net: Supernet, model: nn.Module, tolerance: float = 1e-4) -> None:
    images = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(5))
    expected = model(images)
    assert (net(images) - expected).abs().max() <= tolerance * expected.abs().max().clamp_min(1)


class LoRA(nn.Module):
    """A linear layer with an adapter of low rank beside it, as peft wraps it."""

    def __init__(self, base: nn.Linear, rank: int = 2) -> None:
        super().__init__()
        self.base_layer, self.dropout = base, nn.Dropout(0.5)
        self.lora_A = nn.Linear(base.in_features, rank, bias=False)
        self.lora_B = nn.Linear(rank, base.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + 3 * self.lora_B(self.lora_A(self.dropout(x)))

    @property
    def weight(self) -> Tensor:
        return self.base_layer.weight


class LoRALinear(nn.Linear):
    """A linear layer with an adapter inside, as loralib's before it is merged."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__(base.in_features, base.out_features)
        self.load_state_dict(base.state_dict())
        self.low = nn.Parameter(0.1 * torch.randn(base.out_features, 1) @ torch.randn(1, base.in_features))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x @ self.low.T


WRAPPERS: dict[str, Callable[[Any], Any]] = {
    "compiled": torch.compile,
    "DataParallel": nn.DataParallel,
    "averaged": AveragedModel,
    "compiled and averaged": lambda model: AveragedModel(torch.compile(model)),
    "moving average of timm": timm.utils.ModelEmaV2,
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrapped_models_are_unwrapped(wrapper: str) -> None:
    model = small_vit()
    assert_same(from_timm(WRAPPERS[wrapper](model)), model)


def test_blocks_that_are_compiled_one_by_one_are_unwrapped() -> None:
    model = small_vit()
    compiled = copy.deepcopy(model)
    for i in range(4):
        compiled.blocks[i] = torch.compile(compiled.blocks[i])
    compiled.head = torch.compile(compiled.head)
    assert_same(from_timm(compiled), model)


REPLACED: dict[str, Callable[[Any], object]] = {
    "head behind dropout": lambda m: setattr(m, "head", nn.Sequential(nn.Dropout(0.3), nn.Linear(64, 5))),
    "head in a sequence": lambda m: setattr(m, "head", nn.Sequential(nn.Identity(), nn.Sequential(nn.Linear(64, 5)))),
    "no head": lambda m: setattr(m, "head", nn.Sequential(nn.Dropout(0.1))),
    "LoRA as peft has it": lambda m: [setattr(b.attn, "qkv", LoRA(b.attn.qkv)) for b in m.blocks],
    "LoRA as loralib has it": lambda m: [setattr(b.mlp, "fc2", LoRALinear(b.mlp.fc2)) for b in m.blocks],
    "LoRA in the head": lambda m: setattr(m, "head", LoRA(m.head)),
    "weight norm": lambda m: parametrizations.weight_norm(m.blocks[1].mlp.fc1),
    "dropout instead of identity": lambda m: setattr(m.blocks[0], "drop_path1", nn.Dropout(0.5)),
}


@pytest.mark.parametrize("what", REPLACED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_linear_in_evaluation_becomes_linear_in_any_precision(what: str, dtype: torch.dtype) -> None:
    model = small_vit()
    REPLACED[what](model)
    model = model.to(dtype).train()
    before = copy.deepcopy(model.state_dict())
    net = from_timm(model)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert net.pos_embed.dtype == torch.float32
    assert_same(net, copy.deepcopy(model).float().eval())
    assert net.config.num_classes == {"head": 5, "no head": 0}.get(what.split(" behind")[0].split(" in a")[0], 11)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_models_of_other_precisions_are_compared_in_single(dtype: torch.dtype) -> None:
    model = small_vit().to(dtype)
    assert_same(from_timm(model), model.float())


def counted(module: nn.Module, inputs: Any, output: Tensor) -> None:
    """A hook that changes nothing."""


def pruned(model: Any) -> None:
    prune.l1_unstructured(model.blocks[1].mlp.fc1, "weight", 0.3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.blocks[2].register_forward_hook(counted), r"blocks\.2 has hooks.*handle\.remove"),
        (lambda m: m.register_forward_pre_hook(lambda *x: None), r"The model has hooks"),
        (lambda m: m.head.register_forward_hook(lambda m, x, y: 2 * y), r"head has hooks"),
        (lambda m: m.blocks[0].attn.register_forward_hook(counted), r"blocks\.0\.attn has hooks"),
        (pruned, r"blocks\.1\.mlp\.fc1 has hooks.*prune\.remove"),
        (lambda m: old_weight_norm(m.blocks[3].mlp.fc2), r"blocks\.3\.mlp\.fc2 has hooks.*remove_weight_norm"),
        (
            lambda m: setattr(m, "forward", types.MethodType(lambda self, x: x, m)),
            r"The method forward of the model was replaced.*unwrap_model",
        ),
        (lambda m: setattr(m, "head", nn.Sequential(nn.Linear(64, 9), nn.GELU(), nn.Linear(9, 5))), "head of type Seq"),
        (lambda m: setattr(m, "head", nn.Bilinear(64, 64, 2)), "does not run on images of"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_what_a_supernet_would_not_call_is_refused_by_name(
    change: Callable[[Any], object], message: str, dtype: torch.dtype
) -> None:
    model = small_vit().to(dtype)
    change(model)
    with pytest.raises(ValueError, match=message):
        from_timm(model)


def test_wrappers_whose_weights_are_not_inside_are_refused_with_the_remedy() -> None:
    class PeftModel(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.module = model

    with pytest.raises(ValueError, match=r"PeftModel is not a plain ViT: .*merge_and_unload\(\) gives"):
        from_timm(PeftModel(small_vit()))
