"""`prance bench` times what it says, on the same images, and tells MACs from time."""

from __future__ import annotations

import json
import re
import statistics
from pathlib import Path

import pytest
import torch

from supernet import extract, from_timm
from train.timing.networks import BenchSettings, contenders, run_bench, subnets_near
from train.timing.peak_memory import peak_memory

QUICK = BenchSettings(models=("test_vit",), batch_sizes=(3,), repeats=2, warmup=0, macs_fraction=0.6)


def test_a_row_for_every_contender_is_printed_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = run_bench(QUICK, tmp_path / "bench.json")
    written = json.loads((tmp_path / "bench.json").read_text())
    assert [r["contender"] for r in rows] == ["timm", "full", "static", "per image", "tome"]
    assert json.loads(json.dumps(rows)) == written["rows"]
    assert written["machine"]["threads"] == torch.get_num_threads()
    assert written["settings"]["models"] == ["test_vit"]
    for r in rows:
        assert len(r["seconds"]) == 2
        assert r["ms_per_image"] == pytest.approx(1e3 / r["images_per_second"])
        faster = statistics.median(a / b for a, b in zip(rows[1]["seconds"], r["seconds"], strict=True))
        assert r["kept_of_saved_macs"] == pytest.approx(faster * r["macs_per_image"] / rows[1]["macs_per_image"])
    out = capsys.readouterr().out
    assert "ms/image" in out
    assert not re.search("speed.?up", out, re.IGNORECASE)


def test_contenders_compute_what_their_names_say() -> None:
    timm_vit, full, static, per_image, tome = contenders(QUICK, "test_vit", 3)
    with torch.inference_mode():
        assert torch.allclose(timm_vit.forward(), full.forward(), atol=1e-5)
        assert static.forward().shape == per_image.forward().shape == tome.forward().shape
        assert not torch.allclose(per_image.forward(), full.forward(), atol=1e-3)
    for smaller in (static, per_image, tome):
        assert smaller.macs / full.macs == pytest.approx(0.6, abs=0.05)


def test_all_subnets_differ_and_are_near_the_wanted_macs() -> None:
    net = from_timm("test_vit")
    subnets = subnets_near(net, 0.6, 16, seed=1)
    assert ((net.macs(subnets) / net.macs() - 0.6).abs() < 0.1).all()
    assert len({s.to_json() for s in (subnets[i] for i in range(16))}) == 16
    with pytest.raises(ValueError, match=r"macs_fraction=0\.01 is out of reach"):
        subnets_near(net, 0.01, 16, seed=1)


def test_peak_memory_counts_what_is_alive_at_once() -> None:
    def call() -> None:
        a = torch.ones(1000)
        b = a + 1
        del a
        c = b + 1
        c.add_(1)
        c[:10].mul_(2)

    assert peak_memory(call, "cpu") == 8000


def test_subnets_at_half_the_macs_take_less_memory_than_the_full_network() -> None:
    _, full, _, per_image, _ = contenders(QUICK, "test_vit", 8)
    assert peak_memory(per_image.forward, "cpu") < peak_memory(full.forward, "cpu")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dtype": "int8"}, "dtype='int8' is unknown"),
        ({"macs_fraction": 0.0}, r"macs_fraction=0\.0"),
        ({"repeats": 0}, "repeats=0"),
        ({"batch_sizes": (0,)}, "batch_sizes"),
    ],
)
def test_impossible_settings_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BenchSettings(**changes)  # type: ignore[arg-type]


def test_the_extracted_contender_is_the_per_image_one_for_its_subnet() -> None:
    net = from_timm("test_vit")
    subnet = subnets_near(net, 0.6, 1, seed=0)
    images = torch.randn(2, 3, net.config.img_size, net.config.img_size)
    with torch.inference_mode():
        assert torch.allclose(extract(net, subnet)(images), net(images, subnet), atol=1e-5)
