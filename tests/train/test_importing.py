"""`prance import`: weights from elsewhere end up in a folder that everything else takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import prance, refusal
from small_nets import small_net

from supernet import from_pretrained
from train.networks import importing


def test_a_model_of_timm_becomes_a_supernets_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prance(monkeypatch, "import", "timm", "vit_tiny_patch16_224", "--out", str(tmp_path / "tiny"))
    net = from_pretrained(tmp_path / "tiny")
    assert (net.space.depth, net.config.embed_dim, net.config.num_classes) == (12, 192, 1000)
    text = capsys.readouterr().out
    assert f"timm's vit_tiny_patch16_224 is now a supernet in {tmp_path / 'tiny'}: 12 blocks" in text
    assert "images 3x224x224, 1000 classes" in text
    assert f"{net.params().item() / 1e6:,.1f} M parameters" in text


@pytest.mark.parametrize("flags", [(), ("--pretrained",)])
def test_the_weights_of_timm_are_asked_for_only_if_wanted(
    flags: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[Any, ...]] = []

    def from_timm(name: str, pretrained: bool) -> Any:
        calls.append((name, pretrained))
        return small_net("tome")

    monkeypatch.setattr(importing, "from_timm", from_timm)
    prance(monkeypatch, "import", "timm", "some_vit", "--out", str(tmp_path / "net"), *flags)
    assert calls == [("some_vit", bool(flags))]
    assert torch.equal(from_pretrained(tmp_path / "net").pos_embed, small_net("tome").pos_embed)


def test_a_checkpoint_of_the_authors_becomes_a_supernets_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    net, calls = small_net("prune_merge", prance_embed_dim=40), []

    def load(path: Path, token_mode: str) -> Any:
        calls.append((path, token_mode))
        return net

    monkeypatch.setattr(importing, "load_prance_checkpoint", load)
    out = str(tmp_path / "net")
    prance(monkeypatch, "import", "prance", "their.pth", "--out", out, "--token-mode", "prune_merge")
    assert calls == [(Path("their.pth"), "prune_merge")]
    loaded = from_pretrained(out)
    assert loaded.config == net.config
    assert torch.equal(loaded.pos_embed, net.pos_embed)
    assert "their.pth is now a supernet" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("timm", "no_such_vit"), "timm cannot make 'no_such_vit': "),
        (("timm", "resnet18"), "is not a plain ViT"),
        (("prance", "nowhere.pth"), "No checkpoint at nowhere.pth"),
    ],
)
def test_what_cannot_be_imported_ends_with_one_line_and_no_folder(
    arguments: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = refusal(monkeypatch, "import", *arguments, "--out", tmp_path / "net")
    assert message in words
    assert "\n" not in words
    assert not (tmp_path / "net").exists()


def test_weights_that_cannot_be_downloaded_end_with_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(name: str, pretrained: bool) -> Any:
        raise OSError("no connection\nto the hub")

    monkeypatch.setattr(importing, "from_timm", unreachable)
    with pytest.raises(SystemExit) as stop:
        prance(monkeypatch, "import", "timm", "some_vit", "--pretrained", "--out", str(tmp_path))
    assert stop.value.code == "prance: timm cannot make 'some_vit': no connection to the hub"


@pytest.mark.parametrize("source", [("timm", "vit_tiny_patch16_224"), ("prance", "their.pth")])
def test_a_folder_that_holds_a_network_is_not_overwritten(
    source: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model.safetensors").write_text("mine")
    with pytest.raises(SystemExit) as stop:
        prance(monkeypatch, "import", *source, "--out", str(tmp_path))
    assert "holds a network already; pass another --out" in str(stop.value.code)
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]
    assert (tmp_path / "model.safetensors").read_text() == "mine"
