"""`prance import clip`: from class names in a file to a folder that everything else takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from clip_models import NAMES, images_of, small_clip
from command_line import prance, refusal

from prance_env import PranceVectorEnv
from supernet import TextEmbeddings, from_pretrained
from supernet.convert import clip as conversion
from train.networks import import_clip


@pytest.fixture
def clip(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A small CLIP instead of whatever is asked for by name."""
    model = small_clip()
    monkeypatch.setattr(import_clip, "load_clip", lambda name, pretrained: model)
    return model


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    """A list of five names."""
    path = tmp_path / "classes.txt"
    path.write_text("\n".join(NAMES) + "\n")
    return path


def test_names_in_a_file_and_a_model_become_a_zero_shot_supernet(
    clip: Any, classes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "net"
    words = ["import", "clip", "ViT-B-32", "--pretrained", "openai", "--classes", classes, "--out", out]
    prance(monkeypatch, *words, "--templates", "simple")
    text = capsys.readouterr().out
    assert f"The image tower of ViT-B-32 is now a supernet in {out}: 4 blocks" in text
    assert "images 3x32x32, 5 classes" in text
    texts, net = TextEmbeddings.load(out / "texts.safetensors"), from_pretrained(out)
    assert (texts.names, texts.source, len(texts.templates)) == (NAMES, "ViT-B-32/openai", 7)
    assert (out / "classes.txt").read_text().splitlines() == list(NAMES)
    assert from_pretrained(out).config.class_names == NAMES
    images = images_of(clip)
    with torch.inference_mode():
        expected = clip.logit_scale.exp() * clip.encode_image(images, normalize=True) @ texts.vectors.t()
        torch.testing.assert_close(net(images), expected, rtol=0, atol=1e-4)
    assert "holds a network already" in refusal(monkeypatch, *words)
    # The cached embeddings serve without a text tower, and an environment runs on the folder alone.
    monkeypatch.setattr(conversion, "open_clip", lambda: pytest.fail("no text tower is needed"))
    again = ["import", "clip", "ViT-B-32", "--texts", out / "texts.safetensors", "--out", tmp_path / "again"]
    prance(monkeypatch, *again)
    assert torch.equal(from_pretrained(tmp_path / "again")(images), net(images))


def test_the_narrow_widths_of_an_import_see_as_the_full_one_does_if_they_are_fitted(
    clip: Any, classes: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["import", "clip", "ViT-B-32", "--classes", classes, "--fit", folder, "--fit-images", 30]
    with pytest.warns(UserWarning, match="which the supernet does not know"):
        prance(monkeypatch, *words, "--out", tmp_path / "net")
    envs = PranceVectorEnv(4, checkpoint=str(tmp_path / "net"), dataset=str(folder), split="val")
    with pytest.warns(UserWarning, match="which the supernet does not know"):
        envs.reset(seed=0)
    net = from_pretrained(tmp_path / "net")
    assert net.config.text_fitted
    assert {k.split(".")[2] for k in net.state_dict() if k.startswith("head.fitted.")} == {
        str(w) for w in net.space.embed_dims[:-1]
    }
    assert envs.step(envs.action_space.sample())[0].shape[0] == 4


def test_an_image_tower_of_timm_takes_embeddings_of_an_earlier_import(
    classes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {"img_size": 32, "embed_dim": 48, "depth": 4, "num_heads": 3, "num_classes": 24}
    model, asked = timm.create_model("vit_base_patch16_clip_224", **sizes), []

    def create(name: str, pretrained: bool) -> Any:
        asked.append((name, pretrained))
        return model

    monkeypatch.setattr("timm.create_model", create)
    vectors = torch.nn.functional.normalize(torch.randn(5, 24), dim=1)
    TextEmbeddings(NAMES, vectors, 100.0).save(tmp_path / "texts.safetensors")
    words = ["import", "clip", "vit_base_patch16_clip_224", "--out", tmp_path / "net"]
    assert "timm, which has no text towers: pass --texts" in refusal(monkeypatch, *words, "--classes", classes)
    file = [*words, "--texts", tmp_path / "texts.safetensors", "--pretrained", tmp_path / "texts.safetensors"]
    assert "is a file, which goes with open_clip's names only" in refusal(monkeypatch, *file)
    prance(monkeypatch, *words, "--texts", tmp_path / "texts.safetensors", "--pretrained", "openai")
    assert asked == [("vit_base_patch16_clip_224.openai", True)]
    assert from_pretrained(tmp_path / "net").config.num_classes == 5


def test_lists_that_cannot_be_are_refused_before_anything_is_made(
    classes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(import_clip, "load_clip", lambda name, pretrained: pytest.fail("it is too early for a model"))
    words = ["import", "clip", "ViT-B-32", "--out", tmp_path / "net"]
    assert "either --classes FILE" in refusal(monkeypatch, *words)
    assert "either --classes FILE" in refusal(monkeypatch, *words, "--classes", classes, "--texts", classes)
    assert "--templates are for --classes" in refusal(monkeypatch, *words, "--texts", classes, "--templates", "openai")
    assert "--fit-images says" in refusal(monkeypatch, *words, "--texts", classes, "--fit-images", 8)
    listed = [*words, "--classes", classes]
    assert "exactly one {}" in refusal(monkeypatch, *listed, "--templates", classes)
    assert "templates='best' is unknown" in refusal(monkeypatch, *listed, "--templates", "best")
    classes.write_text("cat\ndog\nCat\n")
    assert f"{classes} has duplicates: 'Cat' (classes 0 and 2)" in refusal(monkeypatch, *listed)
    classes.write_bytes(b"cr\xe8me\n")
    assert "no text in UTF-8 (byte 0xe8" in refusal(monkeypatch, *listed)
    assert not (tmp_path / "net").exists()
    TextEmbeddings(NAMES, torch.eye(5), 100.0).save(tmp_path / "other.safetensors")
    monkeypatch.setattr(import_clip, "load_clip", lambda name, pretrained: small_clip())
    words += ["--texts", tmp_path / "other.safetensors"]
    assert "have 5 dimensions, but the image tower projects to 24" in refusal(monkeypatch, *words)
