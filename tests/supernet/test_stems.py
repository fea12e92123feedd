"""Patch embeddings that run as they are: saved, counted, cut out and exported with the network."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import count_flops, random_net
from mode_nets import assert_exports_with_a_free_batch_size
from small_nets import SIZES, TWO_BLOCKS, WIDTHS, cut_subnet, normalised, pixels
from torch import Tensor, nn

from supernet import SearchSpace, Supernet, SupernetConfig, from_pretrained, register_stem, save_pretrained, stems
from train.networks.export import export_subnet


class Smooth(nn.Module):
    """Two convolutions, in whose middle channels are normed in groups."""

    def __init__(self, config: SupernetConfig) -> None:
        super().__init__()
        self.first = nn.Conv2d(config.in_chans, 16, 3, 2, 1)
        self.norm = nn.GroupNorm(4, 16)
        self.second = nn.Conv2d(16, config.embed_dim, config.patch_size // 2, config.patch_size // 2, groups=2)

    def forward(self, images: Tensor) -> Tensor:
        return self.second(self.norm(self.first(images)).relu()).flatten(2).transpose(1, 2)


@pytest.fixture(params=["timm/vit_tiny_r_s16_p8_224", "smooth"])
def net(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Supernet:
    """A random supernet with a stem of timm's, or of a user's."""
    monkeypatch.setattr(stems.STEMS, "_things", {"smooth": Smooth})
    sizes = {"img_size": 96, "patch_size": 32} if request.param.startswith("timm") else {}
    space = SearchSpace(TWO_BLOCKS, **WIDTHS)
    return random_net(SupernetConfig(space, stem=request.param, **{**SIZES, **sizes}))


@torch.no_grad()
def test_it_is_saved_cut_out_and_counted(net: Supernet, tmp_path: Path) -> None:
    subnet, images = cut_subnet(net), normalised(net, pixels(net, 3))
    static = net.extract(subnet)
    logits = net(images, subnet)
    assert logits.std() > 0.05
    assert torch.allclose(static(images), logits, atol=1e-5)
    assert 2 * net.macs(subnet).item() == count_flops(static, images[:1])[0]
    assert net.params(subnet).item() == static.params()
    save_pretrained(net, tmp_path)
    loaded = from_pretrained(tmp_path)
    assert torch.equal(loaded(images, subnet), logits)
    assert type(loaded.patch_embed) is type(net.patch_embed)


@pytest.mark.slow
@torch.no_grad()
def test_it_is_exported(net: Supernet, tmp_path: Path) -> None:
    subnet = cut_subnet(net)
    assert_exports_with_a_free_batch_size(net, subnet)
    (file,) = export_subnet(net, subnet, tmp_path, ("onnx",))
    assert file.difference is not None
    assert file.difference <= 1e-5


def test_a_stem_of_ones_own_is_registered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stems.STEMS, "_things", {})
    assert register_stem("mine")(Smooth) is Smooth
    assert register_stem("mine", Smooth) is Smooth
    assert isinstance(Supernet(SupernetConfig(stem="mine")).patch_embed, Smooth)
    with pytest.raises(ValueError, match="'mine' is taken"):
        register_stem("mine", lambda config: Smooth(config))
    for name in ("patch", "timm/vit_tiny_r_s16_p8_224"):
        with pytest.raises(ValueError, match=f"stem='{name}' is one of this package's"):
            register_stem(name, Smooth)
    with pytest.raises(ValueError, match=r"stem='other' is unknown.*'timm/NAME'.*register_stem \(\['mine'\]\)"):
        SupernetConfig(stem="other")


class Wider(Smooth):
    """One that has a layer more."""

    def __init__(self, config: SupernetConfig) -> None:
        super().__init__(config)
        self.second = nn.Sequential(self.second, nn.Conv2d(config.embed_dim, config.embed_dim, 1))


def test_a_name_that_stands_for_another_stem_is_counted_and_loaded_anew(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config, found = SupernetConfig(SearchSpace(TWO_BLOCKS, **WIDTHS), stem="patch", **SIZES), list[tuple[int, int]]()
    for number, make in enumerate((Smooth, Wider)):
        monkeypatch.setattr(stems.STEMS, "_things", {"mine": make})
        net = Supernet(replace(config, stem="mine"))
        found.append((net.macs().item(), net.params().item()))
        save_pretrained(net, tmp_path / str(number))
        assert type(from_pretrained(tmp_path / str(number)).patch_embed) is make
    layer = net.get_submodule("patch_embed.second.1")
    assert isinstance(layer, nn.Conv2d)
    assert layer.bias is not None
    assert found[1][0] - found[0][0] == layer.weight.numel() * config.num_patches
    assert found[1][1] - found[0][1] == layer.weight.numel() + layer.bias.numel()


def test_a_stem_that_timm_cannot_make_is_refused_with_what_is_needed() -> None:
    config = SupernetConfig(stem="timm/no_such_vit")
    with pytest.raises(ValueError, match=r"stem='timm/no_such_vit' with .* cannot be made by timm .* the version"):
        Supernet(config)
