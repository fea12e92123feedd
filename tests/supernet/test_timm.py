"""timm's plain ViTs as supernets: the same logits at full width, elastic below, and a clear no to everything else."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import nn

from supernet import SearchSpace, SubnetConfig, Supernet, from_timm
from supernet.convert.timm import timm_config
from supernet.convert.timm_kinds import default_space

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
    "DINOv2, registers": ("vit_small_patch14_reg4_dinov2", {"img_size": 56, "num_classes": 0}),
    "registers, no class token": ("vit_wee_patch16_reg1_gap_256", {"reg_tokens": 3}),
    "registers with positions": ("vit_tiny_patch16_224", {"reg_tokens": 2}),
    "DeiT, distilled": ("deit_tiny_distilled_patch16_224", {}),
    "DeiT, distilled, no classifier": ("deit_tiny_distilled_patch16_224", {"num_classes": 0}),
    "SigLIP, attention pooling": ("vit_base_patch16_siglip_224", {}),
    "SigLIP, mean of the patches": ("vit_so400m_patch14_siglip_gap_224", {"img_size": 56, "mlp_ratio": 3.75}),
    "query norms": ("vit_tiny_patch16_224", {"qk_norm": True}),
    "norms inside, BEiT-3": ("beit3_base_patch16_224", {}),
    "RMS norms, gated, patch norm, AIMv2": ("aimv2_large_patch14_224", {"img_size": 56, "mlp_ratio": 2.75}),
    "gated, packed, DINOv2 giant": (
        "vit_giant_patch14_reg4_dinov2",
        {"img_size": 56, "num_classes": 0, "mlp_ratio": 5.5, "init_values": 0.3},
    ),
    "no last norm, RADIO": ("vit_base_patch16_radio_v3", {"num_classes": 0, "init_values": 0.3}),
    "no last norm, InternViT": ("vit_intern300m_patch14_448", {"img_size": 56}),
    "hybrid, one convolution": ("vit_tiny_r_s16_p8_224", {}),
    "hybrid, ResNet": ("vit_small_r26_s32_224", {}),
    "convolutional stem, MobileCLIP": ("vit_base_mci_224", {"embed_dim": 768, "num_heads": 12, "mlp_ratio": 1.0}),
}


def small_vit(name: str, **changes: Any) -> nn.Module:
    """A randomly initialised model of timm in which every parameter matters."""
    if not timm.is_model(name):
        pytest.skip(f"timm {timm.__version__} does not have {name}")
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


def tiny(**changes: Any) -> nn.Module:
    return timm.create_model("vit_tiny_patch16_224", **(SMALL | changes))


def with_part(path: str, part: nn.Module) -> nn.Module:
    """A model in which one module is another."""
    model = tiny()
    owner, _, name = path.rpartition(".")
    setattr(model.get_submodule(owner), name, part)
    return model


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: timm.create_model("test_vit3"), "pooling that includes class token or registers"),
        (lambda: tiny(pos_embed="none"), "no position embedding"),
        (lambda: tiny(global_pool="max"), "global_pool='max'"),
        (lambda: tiny(class_token=False, global_pool="map", fc_norm=True), "a norm behind attention pooling"),
        (lambda: tiny(dynamic_img_size=True, dynamic_img_pad=True), r"pads \(dynamic_img_pad\)"),
        (lambda: tiny(scale_attn_norm=True), "in block 0 a norm inside attention or MLP alone"),
        (lambda: tiny(attn_layer="diff"), "in block 0 attention of type DiffAttention, which is"),
        (
            lambda: timm.create_model("vit_base_patch16_rpn_224", **SMALL),
            "in block 0 a block of type ResPostBlock, which norms",
        ),
        (lambda: timm.create_model("vit_srelpos_small_patch16_224"), "RelPos is not a plain ViT: its attention has a"),
        (lambda: timm.create_model("eva02_tiny_patch14_224"), "Eva is not a plain ViT: it turns queries and keys"),
        (lambda: timm.create_model("resnet18"), "ResNet is not a plain ViT. from_timm takes"),
        (lambda: nn.Linear(2, 2), "Linear is not a plain ViT"),
        (lambda: tiny(img_size=(64, 32)), "64x32.*square"),
        (lambda: tiny(img_size=70), r"6 pixels are left over.*img_size=64"),
        (lambda: tiny(act_layer=nn.ReLU), "activation ReLU is none of"),
        (lambda: with_part("blocks.1.mlp.act", nn.Tanh()), "activation Tanh is none of"),
        (lambda: with_part("blocks.1.attn", nn.Identity()), "in block 1 attention of type Identity; the"),
        (lambda: with_part("blocks.3.ls1", nn.Linear(64, 64)), "in block 3 ls1 of type Linear"),
        (lambda: with_part("blocks.3.attn.q_norm", nn.LayerNorm(16)), "in block 3 a norm of queries or of keys alone"),
        (lambda: with_part("blocks.0.attn.attn_drop", nn.ReLU()), "in block 0 attn_drop of type ReLU"),
        (lambda: with_part("head_drop", nn.ReLU()), "head_drop of type ReLU"),
        (lambda: with_part("head", nn.Sequential(nn.Linear(64, 9), nn.ReLU())), "head of type Sequential is no linear"),
        (lambda: with_part("blocks.2.mlp.fc1", nn.ReLU()), r"does not run on images of the shape \(2, 3, 64, 64\)"),
        (lambda: with_part("blocks.2.attn.proj", nn.ReLU()), r"blocks\.2\.attn\.proj of type ReLU is no linear layer"),
        (lambda: with_part("blocks.1.norm1", nn.LayerNorm(64, eps=1e-3)), r"norms of this model differ in eps"),
        (lambda: with_part("blocks.1.norm1", nn.RMSNorm(64, eps=1e-6)), r"kinds \['layer', 'rms'\]"),
        (lambda: with_part("norm", nn.BatchNorm1d(64)), r"kinds \['BatchNorm1d', 'layer'\]"),
        (
            lambda: with_part("blocks.4.mlp", tiny(mlp_ratio=2.0).blocks[0].mlp),
            "blocks of this model differ.*hidden=128",
        ),
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


class Doubled(nn.LayerNorm):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


def test_what_nobody_thought_of_is_noticed_by_comparing_outputs() -> None:
    with pytest.raises(ValueError, match="differs from the model's"):
        from_timm(with_part("blocks.2.norm2", Doubled(64, eps=1e-6)))


def test_arguments_for_names_are_refused_beside_modules() -> None:
    for argument in ({"num_classes": 3}, {"img_size": 32}, {"pretrained": True}, {"weights": "file.safetensors"}):
        with pytest.raises(ValueError, match="are for models that are given by name"):
            from_timm(tiny(), **argument)  # type: ignore[arg-type]


def test_the_configuration_is_known_without_weights() -> None:
    with torch.device("meta"):
        model = timm.create_model("vit_so400m_patch14_siglip_378")
    config = timm_config(model)
    assert (config.embed_dim, config.space.depth, config.global_pool, config.num_prefix_tokens) == (1152, 27, "map", 0)
    with pytest.raises(ValueError, match=r"The model has no weights: .* is on the device 'meta'"):
        from_timm(model)
    with pytest.raises(ValueError, match="on the device 'meta'"), torch.device("meta"):
        from_timm("vit_tiny_patch16_224")
    with pytest.raises(ValueError, match="384x384 in patches of 14: 6 pixels are left over"), torch.device("meta"):
        timm_config(timm.create_model("vit_so400m_patch14_siglip_384"))


@pytest.mark.parametrize("embed_dim", [2, 3, 8])
def test_the_narrowest_of_models_have_a_space_around_them(embed_dim: int) -> None:
    net = from_timm(timm.create_model("vit_tiny_patch16_224", **(SMALL | {"embed_dim": embed_dim, "num_heads": 1})))
    assert net.space.embed_dims[-1] == embed_dim
    assert net(torch.rand(3, 3, 64, 64), SubnetConfig.random(net.space, 3)).isfinite().all()


def test_how_images_are_prepared_is_taken_from_the_model() -> None:
    config = from_timm(timm.create_model("vit_small_patch14_reg4_dinov2", **(SMALL | {"img_size": 56}))).config
    assert (config.crop_pct, config.crop_mode, config.interpolation) == (1.0, "center", "bicubic")
    model = tiny()
    model.pretrained_cfg = {"mean": (0.1, 0.2, 0.3), "crop_mode": "squash", "interpolation": "bilinear"}  # type: ignore
    config = from_timm(model).config
    assert (config.mean, config.std) == ((0.1, 0.2, 0.3), (0.5, 0.5, 0.5))
    assert (config.crop_pct, config.crop_mode, config.interpolation) == (0.875, "squash", "bilinear")
