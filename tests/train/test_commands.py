"""The `prance` command as a user meets it."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import prance, refusal

import prance_env

pytestmark = pytest.mark.usefixtures("few_scenes")


@pytest.mark.parametrize(
    "command",
    [
        (),
        ("demo",),
        ("train",),
        ("train", "agent"),
        ("train", "supernet"),
        ("tune",),
        ("eval",),
        ("validate",),
        ("yardsticks",),
        ("benchmark",),
        ("headroom",),
        ("bench",),
        ("bench-env",),
        ("bench-training",),
        ("profile",),
        ("list",),
        ("export",),
        ("predict",),
        ("serve",),
        ("view",),
        ("bench-menu",),
        ("import",),
        ("import", "timm"),
        ("import", "prance"),
        ("casestudy", "fashion"),
        ("distill",),
        ("train", "joint"),
    ],
)
def test_help_explains_every_command_with_examples(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: tuple[str, ...]
) -> None:
    with pytest.raises(SystemExit) as stop:
        prance(monkeypatch, *command, "--help")
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "usage: prance" in text
    assert command == ("train",) or "For example" in text


def test_list_shows_environments_supernets_and_their_sizes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prance(monkeypatch, "list")
    text = capsys.readouterr().out
    for word in ("Prance-Digits-v0", "prance_vit_small", "31.1", "random", "ppo"):
        assert word in text


def test_eval_writes_a_summary_and_a_row_per_image_that_agree(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    prance(monkeypatch, "eval", "--agent", "full", "random", "--split", "val", "--out", str(tmp_path))
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["full"]["macs_fraction"] == 1
    assert metrics["full"]["patches_fraction"] == 1
    assert metrics["random"]["macs_fraction"] < 0.9
    with (tmp_path / "random.csv").open() as f:
        rows = list(csv.DictReader(f))
    assert [int(r["index"]) for r in rows] == list(range(metrics["random"]["n_images"]))
    assert np.mean([int(r["correct"]) for r in rows]) == pytest.approx(metrics["random"]["accuracy"])
    assert np.mean([float(r["macs_fraction"]) for r in rows]) == pytest.approx(
        metrics["random"]["macs_fraction"], abs=1e-5
    )
    strata = metrics["random"]["by_difficulty"]
    assert set(strata) == {r["num_digits"] for r in rows}
    assert sum(s["n_images"] for s in strata.values()) == len(rows)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("eval", "--agent", "nobody"), "'nobody' is no agent"),
        (("eval", "--agent", "full", "--env", "CartPole-v1"), "not an environment of prance_env"),
        (("eval", "--agent", "full", "--env", "Prance-Nothing-v0"), "prance list"),
        (("eval", "--agent", "full", "--checkpoint", "nowhere"), "holds no config.json"),
        (("train", "agent", "--out", "{out}", "--resume"), "nothing to resume"),
        (("eval", "--agent", "full", "--threads", "-1"), "--threads -1"),
    ],
)
def test_mistakes_end_with_one_line_that_names_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    words = refusal(monkeypatch, *(a.format(out=tmp_path / "new") for a in arguments))
    assert message in words
    assert "\n" not in words


def test_the_version_is_told_with_those_of_what_results_depend_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prance(monkeypatch, "--version")
    first, second = capsys.readouterr().out.splitlines()
    assert first == f"prance-env {prance_env.__version__}"
    assert f"torch {torch.__version__.partition('+')[0]}" in second
    assert "stable-baselines3" in second
