"""`prance import`: weights from elsewhere end up in a folder that everything else takes."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from command_line import prance, refusal
from safetensors.torch import save_file
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
    flags: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[tuple[Any, ...]] = []

    def from_timm(name: str, pretrained: bool, **rest: Any) -> Any:
        assert rest == {"weights": None, "num_classes": None, "img_size": None, "in_chans": None}
        calls.append((name, pretrained))
        return small_net("tome")

    monkeypatch.setattr(importing, "from_timm", from_timm)
    prance(monkeypatch, "import", "timm", "some_vit", "--out", str(tmp_path / "net"), *flags)
    assert calls == [("some_vit", bool(flags))]
    assert torch.equal(from_pretrained(tmp_path / "net").pos_embed, small_net("tome").pos_embed)
    said = " ".join(capsys.readouterr().out.split())
    assert ("ALL ITS WEIGHTS ARE RANDOM: pass --pretrained" in said) == (not flags)


def test_a_new_classifier_is_said_to_be_random(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    net = copy.deepcopy(small_net())
    monkeypatch.setattr(importing, "from_timm", lambda name, **settings: net)
    for classes, caution in ((7, True), (1000, False)):
        net.reset_classifier(classes)
        arguments = ["deit_tiny_patch16_224", "--pretrained", "--num-classes", str(classes)]
        prance(monkeypatch, "import", "timm", *arguments, "--out", str(tmp_path / str(classes)))
        assert (f"classifier of {classes} classes is random: train it" in capsys.readouterr().out) == caution


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_a_fine_tuned_checkpoint_becomes_a_supernet_of_its_classes_and_image_size(
    ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model, file = timm.create_model("test_vit", num_classes=7, img_size=96).eval(), tmp_path / f"tuned.{ending}"
    state = model.state_dict()
    if ending == "pth":
        torch.save({"epoch": 3, "model": {f"module._orig_mod.{k}": v for k, v in state.items()}}, file)
    else:
        save_file(state, file)
    prance(monkeypatch, "import", "timm", "test_vit", "--weights", str(file), "--out", str(tmp_path / "net"))
    said = capsys.readouterr().out
    assert f"timm's test_vit with the weights in {file} is now a supernet" in said
    assert "images 3x96x96, 7 classes" in said
    assert "RANDOM" not in said
    net, images = from_pretrained(tmp_path / "net"), torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        assert torch.allclose(net(images), model(images), atol=1e-5)
    size = ("--num-classes", "7", "--img-size", "160")
    prance(monkeypatch, "import", "timm", "test_vit", "--weights", str(file), *size, "--out", str(tmp_path / "large"))
    assert from_pretrained(tmp_path / "large").config.img_size == 160


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
        (("timm", "test_vit", "--weights", "nowhere.pth"), "No weights at nowhere.pth"),
        (("timm", "test_vit", "--weights", "nowhere.pth", "--pretrained"), "pretrained=True downloads weights, and"),
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
    def unreachable(name: str, **settings: Any) -> Any:
        raise OSError("no connection\nto the hub")

    monkeypatch.setattr(importing, "from_timm", unreachable)
    words = refusal(monkeypatch, "import", "timm", "some_vit", "--pretrained", "--out", tmp_path)
    assert words == "prance: timm cannot make 'some_vit': no connection to the hub"


@pytest.mark.parametrize("source", [("timm", "vit_tiny_patch16_224"), ("prance", "their.pth")])
def test_a_folder_that_holds_a_network_is_not_overwritten(
    source: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model.safetensors").write_text("mine")
    words = refusal(monkeypatch, "import", *source, "--out", tmp_path)
    assert "holds a network already (model.safetensors); pass another --out" in words
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]
    assert (tmp_path / "model.safetensors").read_text() == "mine"
