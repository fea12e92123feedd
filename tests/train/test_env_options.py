"""`--dataset`, `--token-mode` and `--dtype`: what a training was told, its evaluation and validation know as well."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from command_line import prance, refusal

from prance_env.engine import InferenceEngine
from train.evaluate.rows import read_rows
from train.options import parse_dataset
from train.timing.episodes import EnvBenchSettings, contenders, make_task
from train.yardsticks import headroom

pytestmark = pytest.mark.usefixtures("few_scenes")


@pytest.mark.parametrize(("algo", "n_envs"), [("ppo", 8), pytest.param("prance_ppo", 64, marks=pytest.mark.slow)])
def test_an_evaluation_uses_what_the_training_used_and_its_rows_can_be_validated(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, checkpoint: str, folder: Path, algo: str, n_envs: int
) -> None:
    dataset = {"name": str(folder), "crop_pct": 0.9}
    run, options = tmp_path / "run", ("--token-mode", "prune_merge", "--dtype", "bfloat16", "--threads", 1)
    training = ("--algo", algo, "--checkpoint", checkpoint, "--dataset", json.dumps(dataset), "--n-envs", n_envs)
    training += options
    prance(monkeypatch, "train", "agent", "--out", run, *training, "--total-timesteps", 96)
    noted = yaml.safe_load((run / "config.yml").read_text())
    assert {k: noted[k] for k in ("dataset", "token_mode", "dtype")} == {
        "dataset": dataset,
        "token_mode": "prune_merge",
        "dtype": "bfloat16",
    }

    prance(monkeypatch, "eval", "--agent", run, "full", "--split", "val", "--out", tmp_path / "eval", "--threads", 1)
    settings = json.loads((tmp_path / "eval" / "settings.json").read_text())
    same = {"dataset": dataset, "token_mode": "prune_merge", "dtype": "bfloat16", "checkpoint": checkpoint}
    assert settings == {"env": "Prance-Digits-v0", "split": "val", **same}
    rows = read_rows(tmp_path / "eval" / "run.csv")
    assert len(rows["index"]) == 36
    assert "action_1_8" in rows  # six sizes and two keep rates
    prance(monkeypatch, "validate", tmp_path / "eval" / "run.csv", "--threads", 1)

    again = refusal(monkeypatch, "train", "agent", "--out", run, *training, "--dtype", "float32", "--resume")
    assert "other values of ['dtype']: dtype='float32' instead of 'bfloat16'" in again
    other = refusal(monkeypatch, "eval", "--agent", run, "--split", "val", "--token-mode", "prune")
    assert "was trained for observations" in other


def test_agents_with_different_settings_ask_for_one_to_be_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, mode in (("a", "merge"), ("b", None)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yml").write_text(yaml.safe_dump({"checkpoint": None, "token_mode": mode}))
    words = refusal(monkeypatch, "eval", "--agent", tmp_path / "a", tmp_path / "b")
    assert "different values of token_mode" in words
    assert "'merge'" in words
    assert words.endswith("name one with --token-mode.")


@pytest.mark.slow
def test_an_environment_without_images_of_its_own_can_be_trained_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, checkpoint: str, folder: Path
) -> None:
    """`Prance-Tiny-v0` has no data set, and the evaluation takes the id from the run, too."""
    given = ("--env", "Prance-Tiny-v0", "--checkpoint", checkpoint, "--algo", "prance_ppo", "--n-envs", 64)
    assert "dataset='FOLDER'" in refusal(monkeypatch, "train", "agent", "--out", tmp_path / "none", *given)
    run = tmp_path / "run"
    prance(monkeypatch, "train", "agent", "--out", run, *given, "--dataset", folder, "--total-timesteps", 48)
    prance(monkeypatch, "eval", "--agent", run, "--split", "val", "--out", tmp_path / "eval")
    assert json.loads((tmp_path / "eval" / "settings.json").read_text())["env"] == "Prance-Tiny-v0"


def test_a_dataset_is_a_name_or_json() -> None:
    assert parse_dataset(None) is None
    assert parse_dataset("/data/imagenet") == "/data/imagenet"
    assert parse_dataset('{"name": "wds/x", "num_samples": 3}') == {"name": "wds/x", "num_samples": 3}
    with pytest.raises(ValueError, match=r"not JSON.*quote it for the shell"):
        parse_dataset("{name: wds/x}")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--dataset", "{name: x}"), "is not JSON"),
        (("--dataset", '{"name": "digits", "colour": 1}'), "unknown fields ['colour']"),
        (("--dataset", "nowhere"), "no folder has this path"),
    ],
)
def test_a_wrong_dataset_ends_with_one_line(
    monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], words: str
) -> None:
    assert words in refusal(monkeypatch, "eval", "--agent", "full", *arguments)


def test_headroom_searches_in_the_mode_and_precision_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[InferenceEngine] = []

    def measure(engine: InferenceEngine, num_subnets: int, images: int) -> dict[str, Any]:
        seen.append(engine)
        accuracies = {"full_accuracy": 0.9, "min_accuracy": 0.5, "min_macs": 0.1}
        return {**accuracies, "images": images, "visible": [None, 0.5], "rows": []}

    monkeypatch.setattr(headroom, "measure_headroom", measure)
    prance(monkeypatch, "headroom", "--token-mode", "merge", "--dtype", "float16")
    assert seen[0].config.space.token_mode == "merge"
    assert seen[0].net.pos_embed.dtype == torch.float16


def test_episodes_are_timed_in_the_mode_and_precision_asked_for(tmp_path: Path) -> None:
    settings = EnvBenchSettings("digits", num_images=2, environment={"token_mode": "tome", "dtype": "bfloat16"})
    task = make_task(settings, tmp_path)
    assert (task["token_mode"], task["dtype"]) == ("tome", "bfloat16")
    for run in contenders(settings, task).values():
        run()
