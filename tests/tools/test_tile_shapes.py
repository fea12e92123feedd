"""Tiles are compared on what they compute, and all of them compute the same."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer

import tests.cpu_triton  # noqa: F401

pytest.importorskip("triton")

from supernet import freeze, from_timm
from supernet.runtime import devices
from tools import tile_shapes
from train.timing.networks import subnets_near
from train.timing.on_gpu import choices_on

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FEW = tile_shapes.Shapes(batch_size=2, device=DEVICE, dtype="float32", warmup=0, repeats=1)


@pytest.fixture
def small_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def create_model(name: str) -> VisionTransformer:
        torch.manual_seed(1)
        return VisionTransformer(img_size=32, patch_size=8, embed_dim=64, depth=4, num_heads=2, num_classes=5)

    monkeypatch.setattr(timm, "create_model", create_model)


def test_candidates_differ_from_the_standard_and_from_each_other() -> None:
    for device, dtype in (("cuda", torch.bfloat16), ("cuda", torch.float32), ("cpu", torch.float32)):
        standard = devices.tile_sizes(device, dtype)
        tiles = [*tile_shapes.candidates(standard).values()]
        assert tiles[0] == standard
        assert len({*map(str, tiles)}) == len(tiles) > 10
        assert all(
            value > 0 and value & (value - 1) == 0 for t in tiles for k, value in vars(t).items() if k != "stages"
        )


@pytest.mark.usefixtures("small_model")
def test_other_tiles_give_the_same_numbers_and_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    net = freeze(from_timm(timm.create_model("any"))).to(DEVICE)
    choices = choices_on(net, subnets_near(net, 0.5, 2, 0), torch.device(DEVICE))
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    standard = devices.tile_sizes(DEVICE, torch.float32)
    with torch.inference_mode():
        wanted = {k: call().cpu() for k, call in tile_shapes.calls_of(standard, "", net, images, choices).items()}
        assert [*wanted] == [tile_shapes.MIXED, tile_shapes.FULL]
        for sizes in (replace(standard, rows=32, depth=64), replace(standard, queries=32, keys=16, normed=16)):
            for batch, call in tile_shapes.calls_of(sizes, "", net, images, choices).items():
                torch.testing.assert_close(call().cpu(), wanted[batch], rtol=1e-4, atol=1e-4)
    with tile_shapes.cut_by(replace(standard, rows=3)):
        assert devices.tile_sizes("any", torch.float16).rows == 3
    assert devices.tile_sizes(DEVICE, torch.float32) == standard


@pytest.mark.usefixtures("small_model")
def test_what_does_not_run_is_left_out_and_the_rest_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    standard = devices.tile_sizes(DEVICE, torch.float32)
    tiles = {"as they are": standard, "impossible": replace(standard, columns=63), "other": replace(standard, group=1)}
    monkeypatch.setattr(tile_shapes, "candidates", lambda sizes: tiles)
    tile_shapes.main(replace(FEW, out=tmp_path / "tiles.json"))
    said = capsys.readouterr().out
    assert "impossible, per image is left out: " in said
    found = json.loads((tmp_path / "tiles.json").read_text())["times_faster"]
    assert found["as they are"] == {tile_shapes.MIXED: 1.0, tile_shapes.FULL: 1.0}
    assert found["impossible"] == {}
    assert [*found["other"]] == [tile_shapes.MIXED, tile_shapes.FULL]
    assert all(ratio > 0 for ratio in found["other"].values())


def test_a_device_that_is_not_there_is_said() -> None:
    with pytest.raises(ValueError, match=r"cuda:99"):
        tile_shapes.measured(replace(FEW, device="cuda:99"))
