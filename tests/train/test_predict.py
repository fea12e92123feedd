"""`prance predict` gives a row for every picture that it is shown, and says what it could not read."""

from __future__ import annotations

import csv
import io
import json
import os
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from command_line import prance, refusal
from PIL import Image

from agents import AdaptiveViT
from agents.deployed.budgets import Calibration
from agents.deployed.calibrate import timed_on
from agents.deployed.pictures import Preprocessing
from prance_env.images.transform import ImageTransform
from supernet import SupernetConfig
from train.deploy.opening import open_adaptive
from train.deploy.predicting import picture_paths


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, random = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    (folder / "more").mkdir()
    for name, size in {"a.png": (48, 48), "b.jpg": (100, 80), "more/c.webp": (60, 200)}.items():
        Image.fromarray(random.integers(0, 255, size, np.uint8)).save(folder / name)
    for hidden in ("._a.png", ".thumbnails/a.png"):
        (folder / hidden).parent.mkdir(exist_ok=True)
        (folder / hidden).write_bytes(b"of a system")
    (folder / "notes.txt").write_text("no picture")
    (folder / "page.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0")  # which is not read
    return folder


def test_folders_patterns_and_the_input_name_pictures(pictures: Path) -> None:
    every = [str(pictures / name) for name in ("a.png", "b.jpg", "more/c.webp")]
    assert picture_paths([str(pictures)]) == every
    assert picture_paths([str(pictures / "*.png"), str(pictures / "more")]) == [every[0], every[2]]
    assert picture_paths(["-"], [f"{every[1]}\n", "\n"]) == [every[1]]
    for words in ([str(pictures / "*.gif")], ["-"], [str(pictures / "none.png")]):
        with pytest.raises(FileNotFoundError, match=r"no pattern that matches|There are no pictures"):
            picture_paths(words)


@pytest.mark.parametrize("budget", ["0.1", "60%"])
def test_rows_are_what_the_model_says(
    model: str, pictures: Path, budget: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--model", model, "--budget", budget, "--batch-size", "2")
    prance(monkeypatch, "predict", str(pictures), *options, "--top", "2", "--out", str(tmp_path / "a.csv"))
    prance(monkeypatch, "predict", str(pictures), *options, "--format", "jsonl", "--out", str(tmp_path / "a.jsonl"))
    expected = AdaptiveViT.from_pretrained(model).predict(picture_paths([str(pictures)]), budget)
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    rows = list(csv.DictReader(io.StringIO((tmp_path / "a.csv").read_text())))
    assert [row["label"] for row in lines] == [int(row["label"]) for row in rows] == expected.labels.tolist()
    assert [row["macs"] for row in lines] == expected.macs.tolist()
    assert [Path(row["path"]).name for row in rows] == ["a.png", "b.jpg", "c.webp"]
    assert len(json.loads(rows[0]["top"])) == 2
    assert json.loads(rows[0]["patches"]) == expected.patches[0].tolist()


@pytest.mark.parametrize("budget", ["0.1", "24%"])
def test_a_menu_chooses_the_same_alone_and_together(
    model: str, pictures: Path, budget: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = []
    for size in ("1", "3"):
        options = ("--model", model, "--budget", budget, "--menu", "--batch-size", size)
        prance(monkeypatch, "predict", str(pictures), *options)
        found.append([(r["label"], r["macs"]) for r in csv.DictReader(io.StringIO(capsys.readouterr().out))])
    assert found[0] == found[1]


def test_a_broken_picture_is_a_row_and_the_others_are_read(
    model: str, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.fromarray(np.zeros((1, 1_000_000), np.uint8)).save(tmp_path / "long.png")
    words = [str(pictures / "notes.txt"), str(pictures / "a.png"), str(tmp_path / "long.png")]
    out = tmp_path / "rows.csv"
    said = refusal(monkeypatch, "predict", *words, "--model", model, "--budget", "0.1", "--out", str(out))
    assert "2 of 3 pictures could not be read" in said
    rows = list(csv.DictReader(out.open()))
    assert "cannot be read as a picture" in rows[0]["error"]
    assert "are too long and narrow" in rows[2]["error"]
    assert (rows[1]["error"], rows[1]["class"] != "") == ("", True)


def test_a_narrow_picture_that_evaluation_takes_is_taken(tmp_path: Path) -> None:
    Image.effect_noise((2240, 32), 90).save(tmp_path / "narrow.png")
    config = SupernetConfig()
    expected = ImageTransform.of(config)(Image.open(tmp_path / "narrow.png"))
    np.testing.assert_array_equal(Preprocessing()(tmp_path / "narrow.png", config)[0], expected)


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_names_of_files_may_be_any_bytes(
    kind: str, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, out = os.fsdecode(bytes(tmp_path / "a") + b"\xff.png"), tmp_path / "rows"
    try:
        Path(name).write_bytes(b"no picture")
    except OSError:
        pytest.skip("this file system takes names in UTF-8 only")
    output = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    monkeypatch.setattr("sys.stdout", output)
    words = (name, "--model", model, "--budget", "0.1", "--format", kind)
    refusal(monkeypatch, "predict", *words)
    refusal(monkeypatch, "predict", *words, "--out", f"{out}.txt")
    assert isinstance(output.buffer, io.BytesIO)
    written = output.buffer.getvalue()
    assert written == out.with_suffix(".txt").read_bytes()
    if kind == "csv":
        assert os.fsencode(name) in written
    else:
        assert json.loads(written)["path"] == name


def test_mistakes_are_sentences(
    model: str, pictures: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = str(pictures / "a.png")
    for words, message in {
        (picture, "--model", model): "pass budget=",
        (picture, "--model", model, "--budget", "1%"): "out of this model's reach",
        (picture, "--model", model, "--budget", "much"): "'much' is none",
        (picture, "--model", model, "--budget", "5ms"): "needs times of this machine",
        (picture, "--model", "nowhere/at/all"): "There is no folder",
        (picture, "--model", model, "--budget", "0.1", "--top", "0"): "--top 0",
    }.items():
        assert message in refusal(monkeypatch, "predict", *words)
        assert capsys.readouterr().out == ""


def test_milliseconds_of_another_machine_are_warned_of(model: str, tmp_path: Path) -> None:
    adaptive = AdaptiveViT.from_pretrained(model)
    times = Calibration((0.01, 1.0), (0.9, 0.2), milliseconds=(9.0, 2.0), machine=timed_on(adaptive), batch_size=1)
    noted = {"same": times, "machine": replace(times, machine="abacus"), "number": replace(times, batch_size=64)}
    told = {}
    for name, adaptive.calibration in noted.items():
        adaptive.save_pretrained(tmp_path / name)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            open_adaptive(str(tmp_path / name))
            assert not caught
            open_adaptive(str(tmp_path / name), timed=1)
        told[name] = [str(warning.message) for warning in caught]
    assert told["same"] == []
    assert f"timed on abacus (1 at a time) and runs on {times.machine} (1 at a time)" in told["machine"][0]
    assert f"timed on {times.machine} (64 at a time) and runs on {times.machine} (1 at a time)" in told["number"][0]
