"""timm's plain ViTs as supernets: the same logits at full width, elastic below, and a clear no to everything else."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import nn

from supernet import SearchSpace, SubnetConfig, Supernet, from_timm
from supernet.convert.timm import default_space

SMALL = {"img_size": 64, "embed_dim": 64, "depth": 5, "num_heads": 4, "num_classes": 11}
# What sets the architectures apart, at a size that tests in a moment.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "ViT, AugReg": ("vit_tiny_patch16_224", {}),
    "DeiT": ("deit_tiny_patch16_224", {}),
    "DeiT-3, layer scale, class token without position": ("deit3_small_patch16_224", {"init_values": 0.3}),
    "DINO, no classifier": ("vit_small_patch8_224", {"num_classes": 0}),
    "DINOv2, layer scale": ("vit_small_patch14_dinov2", {"img_size": 56, "num_classes": 0}),
    "CLIP": ("vit_base_patch16_clip_224", {}),
    "CLIP, QuickGELU": ("vit_base_patch16_clip_quickgelu_224", {}),
    "no class token": ("vit_medium_patch16_gap_240", {"num_classes": 11}),
    "class token, mean of the patches": ("vit_tiny_patch16_224", {"global_pool": "avg"}),
    "norm before the mean": ("vit_tiny_patch16_224", {"global_pool": "avg", "fc_norm": False}),
    "norm after the class token": ("vit_tiny_patch16_224", {"fc_norm": True}),
    "no bias in qkv, grey images": ("vit_tiny_patch16_224", {"qkv_bias": False, "in_chans": 1}),
    "MLP of an odd ratio": ("vit_tiny_patch16_224", {"mlp_ratio": 48 / 11}),
    "any image size": ("vit_tiny_patch16_224", {"dynamic_img_size": True}),
}


def small_vit(name: str, **changes: Any) -> nn.Module:
    """A randomly initialised model of timm in which every parameter matters."""
    torch.manual_seed(0)
    model = timm.create_model(name, **(SMALL | changes)).eval()
    for parameter in model.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    return model


def normalised_images(net: Supernet, batch_size: int) -> torch.Tensor:
    c = net.config
    return torch.randn(batch_size, c.in_chans, c.img_size, c.img_size, generator=torch.Generator().manual_seed(5))


@torch.inference_mode()
@pytest.mark.parametrize("kind", MODELS)
def test_the_full_network_is_timms(kind: str) -> None:
    name, changes = MODELS[kind]
    model = small_vit(name, **changes)
    net = from_timm(model)
    images = normalised_images(net, 3)
    expected = model(images)
    assert expected.std() > 0.05
    assert torch.allclose(net(images), expected, atol=1e-5)


@torch.inference_mode()
@pytest.mark.parametrize("kind", MODELS)
def test_subnets_of_it_are_elastic(kind: str) -> None:
    name, changes = MODELS[kind]
    net = from_timm(small_vit(name, **changes))
    images = normalised_images(net, 4)
    subnets = SubnetConfig.random(net.space, 4, torch.Generator().manual_seed(2))
    logits = net(images, subnets)
    assert (net.macs(subnets) < net.macs()).all()
    for i in range(4):
        alone = net.extract(subnets[i])(images[i : i + 1])[0]
        # Without a classifier there are as many features as the subnet is wide, and zeros to the full width.
        assert torch.allclose(alone, logits[i, : len(alone)], atol=1e-5)
        assert not logits[i, len(alone) :].any()


@torch.inference_mode()
@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "deit_small_patch16_224",
        "vit_small_patch16_224",
        "vit_small_patch16_224.dino",
        "deit3_small_patch16_224",
        "vit_base_patch32_clip_quickgelu_224",
        "vit_medium_patch16_gap_240",
        "vit_base_patch16_224",
    ],
)
def test_models_at_their_real_size_but_for_the_number_of_blocks(name: str) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name, depth=4).eval()
    net = from_timm(model)
    images = normalised_images(net, 2)
    assert torch.allclose(net(images), model(images), atol=1e-4)
    assert int(net.params()[0]) == sum(p.numel() for p in net.parameters())


def test_a_name_makes_the_model() -> None:
    net = from_timm("test_vit")
    assert isinstance(net, Supernet)
    assert not net.training
    assert net.config.img_size == 160


def test_bytes_are_normalised_with_the_models_statistics() -> None:
    model = small_vit("vit_base_patch16_clip_224")
    net = from_timm(model)
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
    pictures = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.allclose(net(pictures), model((pictures / 255 - mean) / std), atol=1e-5)


def test_maps_over_boundaries_can_be_added_and_change_nothing() -> None:
    model = small_vit("vit_tiny_patch16_224")
    net = from_timm(model, lln=True)
    assert sum(block.lln is not None for block in net.blocks) == len(net.space.groups) - 1
    images = normalised_images(net, 2)
    with torch.inference_mode():
        assert torch.allclose(net(images), model(images), atol=1e-5)


def test_the_model_is_left_alone() -> None:
    model = small_vit("deit3_small_patch16_224", init_values=0.3).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    net = from_timm(model)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
    assert model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_a_space_of_ones_own_with_elastic_heads() -> None:
    space = SearchSpace((2, 1, 1, 1), (16, 32, 64), (1, 4), (1, 2, 4), 0.2, "tome")
    model = small_vit("vit_tiny_patch16_224")
    net = from_timm(model, space)
    assert net.space == space
    images = normalised_images(net, 2)
    with torch.inference_mode():
        assert torch.allclose(net(images), model(images), atol=1e-5)
    narrow = net.extract(SubnetConfig.min(space))
    assert [b.qkv.out_features for b in narrow.blocks] == [192, 192, 48, 48, 48]


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ((192, 4.0, 3, 12), SearchSpace((3, 3, 3, 3), (128, 160, 192), (2, 3, 4), (2, 3, 3))),
        ((384, 4.0, 6, 12), SearchSpace((3, 3, 3, 3), (256, 288, 352, 384), (2, 3, 4), (4, 5, 6, 6))),
        ((64, 2.0, 4, 5), SearchSpace((2, 1, 1, 1), (48, 64), (1, 1.5, 2), (3, 4))),
        ((10, 4.0, 1, 2), SearchSpace((1, 1), (7, 8, 9, 10), (2, 3, 4), (1, 1, 1, 1))),
    ],
)
def test_the_default_space(sizes: tuple[int, float, int, int], expected: SearchSpace) -> None:
    assert default_space(*sizes) == expected


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: timm.create_model("deit_tiny_distilled_patch16_224"), "has a distillation token"),
        (lambda: timm.create_model("vit_small_patch14_reg4_dinov2"), "register tokens"),
        (lambda: timm.create_model("vit_base_patch16_siglip_224", **SMALL), "global_pool='map'"),
        (lambda: timm.create_model("vit_tiny_patch16_224", qk_norm=True, **SMALL), "attention with q_norm in block 0"),
        (lambda: timm.create_model("vit_tiny_patch16_224", pos_embed="none", **SMALL), "no position embedding"),
        (lambda: timm.create_model("vit_tiny_patch16_224", final_norm=False, **SMALL), "no final norm"),
        (lambda: timm.create_model("vit_srelpos_small_patch16_224"), "VisionTransformerRelPos is not a plain ViT"),
        (lambda: timm.create_model("resnet18"), "ResNet is not a plain ViT"),
        (lambda: timm.create_model("vit_small_resnet26d_224"), "a patch embedding that is not one convolution"),
        (lambda: timm.create_model("vit_tiny_patch16_224", **(SMALL | {"img_size": (64, 32)})), "64x32.*square"),
        (lambda: timm.create_model("vit_tiny_patch16_224", act_layer=nn.ReLU, **SMALL), "activation ReLU is none of"),
        (lambda: nn.Linear(2, 2), "Linear is not a plain ViT"),
    ],
)
def test_other_models_are_refused_with_the_reason(model: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_timm(model())


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (SearchSpace((2, 1, 1, 1), (32, 128), (2, 4), (4,)), "embed_dims end to 128, but the model has 64"),
        (SearchSpace((2, 1, 1, 1), (32, 64), (2, 3), (4,)), r"mlp_ratios end to 3\.0, but the model has 4\.0"),
        (SearchSpace((2, 1, 1, 1), (32, 64), (2, 4), (2,)), "num_heads end to 2, but the model has 4"),
        (SearchSpace((3, 3), (32, 64), (2, 4), (4,)), "groups add up to 6, but the model has 5"),
    ],
)
def test_a_space_whose_full_size_is_not_the_models_is_refused(space: SearchSpace, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_timm(small_vit("vit_tiny_patch16_224"), space)


def test_what_nobody_thought_of_is_noticed_by_comparing_outputs() -> None:
    model = small_vit("vit_tiny_patch16_224")
    model.blocks[2].register_forward_hook(lambda module, inputs, output: output * 1.1)
    with pytest.raises(ValueError, match="differs from the model's"):
        from_timm(model)
