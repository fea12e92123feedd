"""Rows of an evaluation: read back without loss, played again to the same result, and refused where they cannot be."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from command_line import refusal
from helpers import settings_for

from agents import RandomAgent
from prance_env import InferenceEngine
from train.commands.main import main
from train.evaluate import Evaluation, evaluate
from train.evaluate import rows as module
from train.evaluate.replay import validate_rows
from train.evaluate.rows import Columns, read_rows, rows_of, write_rows

IMAGES = 60


@pytest.fixture(scope="module")
def result(engine: InferenceEngine) -> Evaluation:
    return evaluate(RandomAgent(engine.config, seed=3), settings_for(engine))


@pytest.fixture
def rows(result: Evaluation) -> Columns:
    return {name: values.copy() for name, values in rows_of(result, "remainder").items()}


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_rows_come_back_bit_for_bit_and_are_reproduced(
    engine: InferenceEngine, result: Evaluation, rows: Columns, tmp_path: Path, suffix: str
) -> None:
    if suffix == "parquet":
        pytest.importorskip("pyarrow")
    path = tmp_path / f"rows.{suffix}"
    write_rows(path, rows)
    back = read_rows(path)
    assert list(back) == list(rows)
    for name, values in rows.items():
        np.testing.assert_array_equal(back[name], values, err_msg=name)
    np.testing.assert_array_equal(back["remainder"], result.difficulty)
    np.testing.assert_array_equal(back["patches_after_2"], result.patches[:, 1].round(6))
    np.testing.assert_array_equal(back["action_3_7"].astype(np.float32), result.taken[:, 2, 6])
    assert validate_rows(back, settings_for(engine)) == []


def test_rows_that_differ_are_named(engine: InferenceEngine, rows: Columns) -> None:
    expected = (int(rows["macs"][4]), int(rows["prediction"][IMAGES - 1]))
    rows["macs"][4] += 1
    rows["prediction"][IMAGES - 1] = (expected[1] + 1) % 10
    first, last = validate_rows(rows, settings_for(engine), batch_size=16)
    assert str(first) == f"row 4 (image 4): macs {expected[0] + 1}, replayed {expected[0]}"
    assert (last.row, last.column, last.replayed) == (IMAGES - 1, "prediction", expected[1])


def test_other_actions_are_noticed(engine: InferenceEngine, rows: Columns) -> None:
    rows["action_1_7"][:] = -1
    assert {d.column for d in validate_rows(rows, settings_for(engine))} >= {"macs"}


def test_rows_may_be_few_and_in_any_order(engine: InferenceEngine, rows: Columns) -> None:
    some = np.array([17, 3, 30])
    assert validate_rows({k: v[some] for k, v in rows.items()}, settings_for(engine)) == []


def test_rows_that_cannot_be_played_are_refused(engine: InferenceEngine, rows: Columns) -> None:
    settings = settings_for(engine)
    with pytest.raises(ValueError, match=r"lack the columns \['macs'\]"):
        validate_rows({k: v for k, v in rows.items() if k != "macs"}, settings)
    with pytest.raises(ValueError, match=r"\['action_4_1'\] too many.*3 decisions of 7"):
        validate_rows({**rows, "action_4_1": rows["macs"]}, settings)
    with pytest.raises(ValueError, match=r"index=60 is not one of the 60 images.*--split"):
        validate_rows({**rows, "index": rows["index"] + 1}, settings)
    with pytest.raises(ValueError, match="Row 2 holds actions"):
        validate_rows({**rows, "action_1_1": np.where(np.arange(IMAGES) == 2, np.nan, 0)}, settings)
    with pytest.raises(ValueError, match="There are no rows"):
        validate_rows({name: values[:0] for name, values in rows.items()}, settings)
    for value in (np.nan, 2.5, 1e300):
        with pytest.raises(ValueError, match=r"Row 3: index=.* is no whole number of 53 bits"):
            validate_rows({**rows, "index": np.where(np.arange(IMAGES) == 3, value, 1.0)}, settings)


def test_files_that_are_no_rows_are_refused_by_name(
    rows: Columns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=r"'xlsx'.*\.csv or \.parquet"):
        write_rows(tmp_path / "rows.xlsx", rows)
    with pytest.raises(FileNotFoundError, match=r"nowhere\.csv"):
        read_rows(tmp_path / "nowhere.csv")
    for name, content in (("a.csv", "index,label\n1\n"), ("b.csv", "index\none\n"), ("c.csv", "")):
        (tmp_path / name).write_text(content)
        with pytest.raises(ValueError, match=name):
            read_rows(tmp_path / name)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ValueError, match=r"-e '\.\[parquet\]"):
        write_rows(tmp_path / "rows.parquet", rows)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.csv", "b.csv", "c.csv"]


def test_a_damaged_parquet_file_is_refused_by_name(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    (tmp_path / "d.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(ValueError, match=r"d\.parquet does not hold rows"):
        read_rows(tmp_path / "d.parquet")


def test_validate_reads_the_settings_beside_the_rows_and_fails_with_one_line(
    engine: InferenceEngine,
    rows: Columns,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    calls = []

    def from_id(*arguments: object, **kwargs: object) -> object:
        calls.append((*arguments, kwargs["split"], kwargs["checkpoint"]))
        return settings_for(engine)

    monkeypatch.setattr("train.evaluate.replay.EnvSettings.from_id", from_id)
    path = tmp_path / "rows.csv"
    write_rows(path, rows)
    monkeypatch.setattr("sys.argv", ["prance", "validate", str(path)])
    main()
    (tmp_path / "settings.json").write_text(json.dumps({"env": "E", "split": "val", "checkpoint": "C"}))
    main()
    assert f"all {IMAGES} rows are reproduced" in capsys.readouterr().out
    rows["prediction"][:] = -1
    write_rows(path, rows)
    words = refusal(monkeypatch, "validate", path, "--split", "train")
    assert words.startswith(f"prance: {IMAGES} of {IMAGES} rows")
    assert words.endswith("; ...")
    assert calls == [("Prance-Digits-v0", "test", None), ("E", "val", "C"), ("E", "train", "C")]
    (tmp_path / "settings.json").write_text("{")
    words = refusal(monkeypatch, "validate", path)
    assert "settings.json is no JSON file" in words
    assert "delete it" in words


@pytest.mark.parametrize("error", [NotImplementedError("no such codec"), KeyError("index"), TypeError("a list")])
def test_whatever_pyarrow_says_of_a_damaged_file_is_one_sentence(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_parquet", lambda: (Mock(), Mock(read_table=Mock(side_effect=error))))
    (tmp_path / "a.parquet").touch()
    with pytest.raises(ValueError, match=r"a\.parquet does not hold rows"):
        read_rows(tmp_path / "a.parquet")
