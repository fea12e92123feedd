"""Checkpoints of timm's models in files: their classes and image size are their own, what does not fit is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

from supernet import from_timm
from supernet.convert.timm_models import create_model

State = dict[str, Tensor]


def weights_of(name: str, **changes: Any) -> State:
    torch.manual_seed(1)
    return dict(timm.create_model(name, **changes).state_dict())


def saved(content: Any, folder: Path) -> Path:
    torch.save(content, folder / "weights.pth")
    return folder / "weights.pth"


@pytest.mark.parametrize(
    "name",
    [
        "test_vit",
        "test_vit2",
        "deit3_small_patch16_224",
        "vit_small_patch14_reg4_dinov2",
        "deit_tiny_distilled_patch16_224",
    ],
)
def test_image_size_and_classes_are_those_of_the_file(name: str, tmp_path: Path) -> None:
    size = 7 * timm.create_model(name, depth=1).patch_embed.patch_size[0]
    state = weights_of(name, img_size=size, num_classes=5, depth=1)
    timm_create, calls = timm.create_model, []

    def shallow(model: str, **settings: Any) -> Any:
        calls.append(settings)
        return timm_create(model, depth=1, **settings)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timm, "create_model", shallow)
        model = create_model(name, weights=saved(state, tmp_path))
    assert model.patch_embed.img_size == (size, size)
    assert calls[-1] == {"num_classes": 5, "img_size": size, "in_chans": 3}
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_channels_are_those_of_the_file_or_as_many_as_are_asked_for(tmp_path: Path) -> None:
    model = timm.create_model("test_vit", in_chans=1, num_classes=7, img_size=64).eval()
    net, images = from_timm("test_vit", weights=saved(model.state_dict(), tmp_path)), torch.randn(2, 1, 64, 64)
    assert (net.config.in_chans, len(net.config.mean)) == (1, 1)
    torch.testing.assert_close(net(images), model(images), rtol=0, atol=1e-5)
    assert from_timm("test_vit", in_chans=2).config.in_chans == 2
    with pytest.raises(ValueError, match=r"patch_embed\.proj\.weight has the shape"):
        from_timm("test_vit", weights=tmp_path / "weights.pth", in_chans=3)
    with pytest.raises(ValueError, match="in_chans=0"):
        from_timm("test_vit", in_chans=0)


def test_positions_are_interpolated_for_another_size_as_timm_does(tmp_path: Path) -> None:
    model = timm.create_model("test_vit", img_size=96)
    net = from_timm("test_vit", weights=saved(model.state_dict(), tmp_path), img_size=64)
    model.set_input_size((64, 64))
    torch.testing.assert_close(net.pos_embed.detach(), model.pos_embed.detach(), rtol=0, atol=1e-6)


def test_the_moving_average_goes_before_the_weights_it_is_of(tmp_path: Path) -> None:
    state = weights_of("test_vit")
    zeros = {k: torch.zeros_like(v) for k, v in state.items()}
    model = create_model("test_vit", weights=saved({"state_dict": zeros, "state_dict_ema": state}, tmp_path))
    assert torch.equal(model.cls_token, state["cls_token"])


def test_a_file_without_a_classifier_gives_a_network_without_one(tmp_path: Path) -> None:
    state = {k: v for k, v in weights_of("test_vit").items() if not k.startswith("head.")}
    net = from_timm("test_vit", weights=saved(state, tmp_path))
    assert net.head is None
    with pytest.raises(ValueError, match=r"num_classes=9, but .* has a classifier of 0 classes.*reset_classifier"):
        from_timm("test_vit", weights=tmp_path / "weights.pth", num_classes=9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: {k: v for k, v in s.items() if k != "blocks.1.norm1.bias"}, r"missing blocks\.1\.norm1\.bias"),
        (lambda s: {**s, "blocks.1.more": torch.zeros(2)}, r"unexpected blocks\.1\.more"),
        (lambda s: {**s, "norm.weight": s["norm.weight"][:5]}, r"norm\.weight has the shape \(5,\) instead"),
        (lambda s: {**s, "norm.weight": s["norm.weight"] * torch.nan}, r"norm\.weight holds NaN or inf"),
        (lambda s: weights_of("test_vit2"), r"does not fit this test_vit: missing cls_token; .*unexpected reg_token"),
        (lambda s: {"net": s}, r"Expected weights by name, but 'net' is a dict"),
        (lambda s: {"model": {}}, r"Expected weights by name"),
        (lambda s: [1, 2], r"Expected weights by name, got list"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(change: Callable[[State], Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        from_timm("test_vit", weights=saved(change(weights_of("test_vit")), tmp_path))


def test_files_that_could_run_anything_or_are_not_there_are_refused(tmp_path: Path) -> None:
    torch.save(timm.create_model("test_vit"), tmp_path / "whole.pth")
    with pytest.raises(ValueError, match="holds more than tensors, which could run anything"):
        from_timm("test_vit", weights=tmp_path / "whole.pth")
    with pytest.raises(FileNotFoundError, match="No weights at"):
        from_timm("test_vit", weights=tmp_path / "nowhere.safetensors")
