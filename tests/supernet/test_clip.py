"""CLIP's image towers as supernets: open_clip's own logits at full size, elastic below it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from clip_models import NAMES, images_of, small_clip
from image_files import picture
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from prance_env.images.transform import ImageTransform
from supernet import (
    SearchSpace,
    SubnetConfig,
    Supernet,
    TextEmbeddings,
    UnitScores,
    ZeroShotHead,
    fit_projections,
    from_clip,
    from_timm,
    reorder_by_importance,
)
from supernet.convert.clip import class_embeddings, image_tower, least_squares, load_clip, named_templates, with_texts
from supernet.convert.clip_tags import CLIP_TAGS
from supernet.zero_shot import classify, classify_rows

open_clip = pytest.importorskip("open_clip")
KNOWS_QK_NORM = "qk_norm" in open_clip.CLIPVisionCfg.__dataclass_fields__
SPACE = SearchSpace((1, 1, 1, 1), (16, 32, 48), (1.0, 2.0), (1, 2, 3))
TEMPLATES = ("a photo of a {}.", "art of the {}.")


@pytest.fixture(scope="module", params=[False, True], ids=["gelu", "quick_gelu"])
def clip(request: pytest.FixtureRequest) -> Any:
    """A small CLIP of either activation."""
    return small_clip(request.param)


@pytest.fixture(scope="module")
def texts(clip: Any) -> TextEmbeddings:
    """Five classes in two templates."""
    return class_embeddings(clip, "ViT-B-32", NAMES, TEMPLATES)


@torch.inference_mode()
def test_logits_are_open_clips_own(clip: Any, texts: TextEmbeddings) -> None:
    net, images = from_clip(clip, texts), images_of(clip)
    tokenizer = open_clip.get_tokenizer("ViT-B-32")
    weights = open_clip.build_zero_shot_classifier(clip, tokenizer, NAMES, TEMPLATES)
    torch.testing.assert_close(texts.vectors, weights.t(), rtol=0, atol=1e-6)
    expected = clip.logit_scale.exp() * clip.encode_image(images, normalize=True) @ weights
    assert expected.std() > 0.1
    torch.testing.assert_close(net(images), expected, rtol=0, atol=1e-4)
    other = from_clip(small_clip(net.config.act == "gelu"), texts)(images)
    assert (other - expected).abs().max() > 1e-2  # the other activation is another network


@torch.inference_mode()
def test_a_single_template_gives_clips_logits_of_a_text(clip: Any) -> None:
    images, sentences = images_of(clip), [f"a photo of a {name}." for name in NAMES]
    net = from_clip(clip, class_embeddings(clip, "ViT-B-32", NAMES))
    expected, _ = clip.get_logits(images, open_clip.get_tokenizer("ViT-B-32")(sentences))
    torch.testing.assert_close(net(images), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "vision",
    [{"ls_init_value": 0.3}, {"no_ln_pre": True}, {"norm_kwargs": {"eps": 1e-6}}, {"image_size": 40, "mlp_ratio": 3.0}],
    ids=["layer scale", "no norm before", "another epsilon", "other sizes"],
)
@torch.inference_mode()
def test_variants_of_image_towers_keep_their_logits(vision: dict[str, Any]) -> None:
    clip = small_clip(**vision)
    net, images = from_clip(clip, class_embeddings(clip, "ViT-B-32", NAMES)), images_of(clip)
    expected = clip.encode_image(images, normalize=True)
    torch.testing.assert_close(F.normalize(projected(net, images), dim=1), expected, rtol=0, atol=1e-4)


@torch.inference_mode()
def test_towers_that_are_timms_inside_open_clip_and_alone() -> None:
    clip = small_clip(dim=24, timm_model_name="vit_tiny_patch16_224", timm_pool="token", image_size=224)
    net = from_clip(clip, class_embeddings(clip, "ViT-B-32", NAMES))
    images = images_of(clip, 1)
    expected = clip.encode_image(images, normalize=True)
    torch.testing.assert_close(F.normalize(projected(net, images), dim=1), expected, rtol=0, atol=1e-4)
    sizes = {"img_size": 32, "embed_dim": 48, "depth": 4, "num_heads": 3, "num_classes": 24}
    alone, images = timm.create_model("vit_base_patch16_clip_224", **sizes).eval(), images_of(small_clip())
    again = from_clip(alone, TextEmbeddings(NAMES, F.normalize(torch.randn(5, 24), dim=1), 100.0))
    torch.testing.assert_close(projected(again, images), alone(images), rtol=0, atol=1e-4)


def projected(net: Supernet, images: Tensor) -> Tensor:
    """Images in the space of the texts, not normalised, by the head's own layers."""
    bare = Supernet(replace(net.config, num_classes=0, text_dim=None, text_fitted=False)).eval()
    bare.load_state_dict({k: v for k, v in net.state_dict().items() if not k.startswith("head.")})
    assert isinstance(net.head, ZeroShotHead)
    return net.head.project(bare(images))


def test_logits_do_not_change_when_the_class_token_is_rescaled_before_the_last_norm(clip: Any, texts: Any) -> None:
    net = from_clip(clip, texts)
    state = net.forward_features(images_of(clip))
    for factor in (0.2, 30.0):
        rescaled = replace(state, tokens=state.tokens * factor)
        torch.testing.assert_close(net.forward_head(rescaled), net.forward_head(state), rtol=0, atol=2e-3)


def test_images_are_normalised_with_clips_mean_and_std(clip: Any, texts: TextEmbeddings) -> None:
    assert from_clip(clip, texts).config.mean == pytest.approx((0.48145466, 0.4578275, 0.40821073))
    clip.visual.image_mean, clip.visual.image_std = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
    assert from_clip(clip.visual, texts).config.std == (0.25, 0.25, 0.25)
    del clip.visual.image_mean, clip.visual.image_std


@pytest.mark.parametrize("mode", ["shortest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "random"])
def test_images_are_cropped_as_open_clip_does(mode: str, interpolation: str) -> None:
    clip, image = small_clip(), picture(0, (80, 50))
    size = clip.visual.image_size
    clip.visual.preprocess_cfg = {"size": size, "resize_mode": mode, "interpolation": interpolation}
    cfg = open_clip.transform.PreprocessCfg(**clip.visual.preprocess_cfg)
    wanted = open_clip.transform.image_transform_v2(cfg, is_train=False)
    config = from_timm(image_tower(clip.visual)).config
    found = ImageTransform.of(config)(image)
    mean, std = (np.array(v)[:, None, None] for v in (config.mean, config.std))
    np.testing.assert_allclose((found / 255 - mean) / std, wanted(image).numpy(), atol=1e-5)


# ---- below full size -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fitted", [False, True])
def test_narrow_subnets_cost_what_pytorch_counts_on_extracted_networks_that_equal_them(
    clip: Any, texts: TextEmbeddings, fitted: bool
) -> None:
    net, images = from_clip(clip, texts, SPACE), images_of(clip, 8)
    if fitted:
        net = fit_projections(net, [images])
    subnet = SubnetConfig.random(net.space, 8, torch.Generator().manual_seed(3))
    assert len(set(subnet.embed_dim[:, -1].tolist())) == 3
    logits = net(images, subnet)
    for i in range(8):
        static = net.extract(subnet[i])
        torch.testing.assert_close(static(images)[i], logits[i], rtol=0, atol=1e-4)
        assert sum(p.numel() for p in static.parameters()) == net.params(subnet[i]).item()
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            static(images[:1])
        assert counter.get_total_flops() == 2 * net.macs(subnet[i]).item()


@torch.inference_mode()
def test_fitted_projections_bring_narrow_subnets_nearer_and_leave_the_full_one_alone(
    clip: Any, texts: TextEmbeddings
) -> None:
    net = from_clip(clip, texts, SPACE)
    seen = [torch.randn(64, 3, 32, 32, generator=torch.Generator().manual_seed(i)) for i in range(4)]
    fitted, fresh = fit_projections(net, seen), torch.randn(64, 3, 32, 32, generator=torch.Generator().manual_seed(9))
    assert (fitted.config.text_fitted, net.config.text_fitted) == (True, False)
    assert torch.equal(fitted(fresh), net(fresh))
    full = net(fresh).softmax(1)
    for width in (16, 32):
        subnet = SubnetConfig.full(net.space)
        subnet.embed_dim[:, 1:] = width
        before, after = ((one(fresh, subnet).softmax(1) - full).abs().mean() for one in (net, fitted))
        assert after < 0.7 * before, width


@torch.inference_mode()
def test_rows_of_any_width_are_classified_as_those_of_one(clip: Any, texts: TextEmbeddings) -> None:
    """What the tiled runtime does, whose widths stand on the device."""
    plain, width = from_clip(clip, texts, SPACE), torch.tensor([16, 48, 32, 16])
    for net in (plain, fit_projections(plain, [images_of(clip, 8)])):
        assert net.head is not None
        x = torch.randn(4, 48, generator=torch.Generator().manual_seed(2)) * (torch.arange(48) < width[:, None])
        expected = [classify(net.head, row[None, :w]) for row, w in zip(x, width.tolist(), strict=True)]
        torch.testing.assert_close(classify_rows(net.head, x, width), torch.cat(expected), rtol=0, atol=1e-4)


@torch.inference_mode()
def test_units_are_put_in_order_but_not_under_projections_that_were_fitted_to_the_old_one(
    clip: Any, texts: TextEmbeddings
) -> None:
    net, images = from_clip(clip, texts, SPACE), images_of(clip)
    scores = UnitScores(embed_dim=torch.randn(48), hidden=torch.randn(4, 96))
    moved = reorder_by_importance(net, scores)
    torch.testing.assert_close(moved(images), net(images), rtol=0, atol=1e-4)
    assert not torch.equal(moved.pos_embed, net.pos_embed)
    with pytest.raises(ValueError, match=r"head\.fitted\.\d+\.\w+ has channels that reorder does not know"):
        reorder_by_importance(fit_projections(net, [images]), scores)


def test_a_classifier_with_hooks_on_what_is_not_called_is_refused(clip: Any, texts: TextEmbeddings) -> None:
    net = from_clip(clip, texts, SPACE)
    assert isinstance(net.head, ZeroShotHead)
    net.head.proj.register_forward_hook(lambda *arguments: None)
    with pytest.raises(ValueError, match=r"The layer head\.proj has hooks"):
        net(images_of(clip))


def test_least_squares_finds_the_affine_map_that_made_the_data() -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(shape, generator=generator) for shape in ((50, 6), (3, 6), (3,)))
    found, offset = least_squares(x, x @ weight.t() + bias, ridge=1e-9)
    torch.testing.assert_close(found, weight, rtol=0, atol=1e-5)
    torch.testing.assert_close(offset, bias, rtol=0, atol=1e-5)
    y = torch.randn(50, 3, generator=generator)
    design = torch.cat([x, torch.ones(50, 1)], dim=1)
    expected = torch.linalg.lstsq(design, y).solution
    found, offset = least_squares(x, y, ridge=1e-9)
    torch.testing.assert_close(torch.cat([found, offset[:, None]], dim=1).t(), expected, rtol=0, atol=1e-5)
    same = least_squares(torch.ones(4, 3), torch.randn(4, 2))  # features that never change: the mean
    assert all(part.isfinite().all() for part in same)


def test_a_classifier_of_another_kind_than_the_configuration_says_is_refused(clip: Any, texts: TextEmbeddings) -> None:
    net, images = from_clip(clip, texts), images_of(clip)
    head, net.head = net.head, nn.Linear(48, 5)
    with pytest.raises(ValueError, match=r"says 5 classes as texts \(text_dim=24\).*with_texts.*reset_classifier"):
        net(images)
    net.head = head
    net.reset_classifier(3)
    assert (net.config.text_dim, net(images).shape) == (None, (3, 3))
    for wrong in ({"text_dim": 0}, {"text_dim": None, "text_fitted": True}, {"distilled": True, "reg_tokens": 1}):
        with pytest.raises(ValueError, match="text_"):
            replace(from_clip(clip, texts).config, **wrong)


def test_other_classes_take_the_place_of_the_old_ones(clip: Any, texts: TextEmbeddings) -> None:
    net, images = from_clip(clip, texts), images_of(clip)
    fewer = TextEmbeddings(texts.names[:2], texts.vectors[:2], texts.scale)
    torch.testing.assert_close(with_texts(net, fewer)(images), net(images)[:, :2], rtol=0, atol=1e-5)


# ---- what does not fit ------------------------------------------------------------------------------------------


def test_texts_of_another_model_are_refused(clip: Any, texts: TextEmbeddings) -> None:
    other = TextEmbeddings(NAMES, F.normalize(torch.randn(5, 32), dim=1), 100.0, source="ViT-Z")
    message = r"of ViT-Z have 32 dimensions, but the image tower projects to 24: they are another model's"
    for model in (clip, from_clip(clip, texts)):
        with pytest.raises(ValueError, match=message):
            with_texts(model, other) if isinstance(model, Supernet) else from_clip(model, other)
    bare = Supernet(replace(from_clip(clip, texts).config, num_classes=0, text_dim=None))
    with pytest.raises(ValueError, match="no classifier that could be the projection"):
        with_texts(bare, texts)
    with pytest.raises(ValueError, match="Only zero-shot classifiers"):
        fit_projections(bare, [images_of(clip)])
    with pytest.raises(ValueError, match="no images to fit"):
        fit_projections(from_clip(clip, texts), [])


def test_image_towers_that_supernets_are_not_are_refused_with_the_reason() -> None:
    for vision, message in (
        ({"attentional_pool": True}, "attentional pooling"),
        ({"pool_type": "avg"}, "pool_type='avg'"),
        *([({"qk_norm": True}, "blocks of type CustomResidualAttentionBlock")] if KNOWS_QK_NORM else []),
        ({"layers": (1, 1, 1, 1), "width": 16}, "ModifiedResNet is no image tower of CLIP that is a ViT"),
        ({"timm_model_name": "vit_tiny_patch16_224", "timm_proj": "mlp"}, r"projected by \['mlp'\]"),
    ):
        with pytest.raises(ValueError, match=message):
            image_tower(small_clip(**vision).visual)
    with pytest.raises(ValueError, match="Linear is no image tower"):
        image_tower(nn.Linear(2, 2))


def test_names_tags_and_templates_that_do_not_exist_are_refused_with_those_that_do() -> None:
    with pytest.raises(ValueError, match=r"no model 'ViT-B-17'; its names are such as .*'ViT-B-16'"):
        load_clip("ViT-B-17")
    with pytest.raises(ValueError, match=r"trained with QuickGELU.*Take ViT-B-32-quickgelu"):
        load_clip("ViT-B-32", "openai")
    with pytest.raises(ValueError, match=r"with the weights 'best'.*its tags are \['laion2b"):
        load_clip("ViT-H-14", "best")
    with pytest.raises(ValueError, match="templates='many' is unknown"):
        named_templates("many")
    assert [len(named_templates(name)) for name in ("plain", "simple", "openai")] == [1, 7, 80]


def test_every_tag_of_the_table_exists_goes_with_its_architecture_and_is_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "clip.md").read_text()
    for tag in CLIP_TAGS:
        weights, model = open_clip.get_pretrained_cfg(tag.model, tag.tag), open_clip.get_model_config(tag.model)
        assert bool(weights.get("quick_gelu")) == bool(model.get("quick_gelu")), tag
        assert weights["hf_hub"] or weights["url"]
        assert f"| {tag.model} | {tag.tag} | {tag.data} | {tag.top1:.2f} % |" in page
    assert len({(tag.model, tag.tag) for tag in CLIP_TAGS}) == len(CLIP_TAGS) == page.count(" % |")


def test_without_open_clip_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "open_clip", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install -e '\.\[clip\]'"):
        load_clip("ViT-B-32")
