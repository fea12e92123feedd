"""What the check of a GPU makes of the figures, that its commands are commands, and that it needs a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from supernet.checkpoint import load_config
from tools import gpu_check
from tools.gpu_check import SMALL, Check, Target, episode_targets, main, targets_of
from train.commands.main import parse


def row(ms: float, macs: float, speed: float, peak: float) -> dict[str, Any]:
    return {"ms_per_image": ms, "macs_per_image": macs, "throughput_vs_timm": speed, "peak_mib": peak}


def test_targets_are_read_from_the_rows_of_a_benchmark() -> None:
    rows = {"full": row(1.0, 4.0, 1.0, 100), "per image": row(0.6, 2.0, 1.9, 60)}
    rows |= {"full, graph": row(0.8, 4.0, 1.25, 0), "per image, graph": row(0.5, 2.0, 2.0, 0)}
    speed, full, kept, memory = targets_of("net", 8, {("net", 8, k): v for k, v in rows.items()}, 1.9, 0.9)
    assert (speed.value, speed.met) == (2.0, True)
    assert (full.value, full.met) == (1.25, True)
    assert kept.value == pytest.approx(0.8 / 0.5 * 0.5)
    assert not kept.met
    assert (memory.value, memory.met) == (0.6, True)


def test_episodes_are_judged_by_timms_forward_and_the_engine() -> None:
    times = {"timm": 1.0, "engine alone": 0.5, "prefix cached, tensors": 0.52, "tensors + PrancePPO": 0.7}
    rows = {
        name: {"ms_per_episode": {"environment": ms}, "episodes_per_second": {"environment": 1e4 / ms}}
        for name, ms in times.items()
    }
    wanted = episode_targets(256, rows, 0.75)
    assert [t.value for t in wanted] == pytest.approx([0.52, 1.04, 1.4, 1e4 / 0.52 / 1342])
    assert [t.met for t in wanted] == [True, True, False, True]
    assert len(episode_targets(1024, rows, 0.6)) == 1


def test_what_was_not_measured_is_missed() -> None:
    assert [t.met for t in targets_of("net", 8, {}, 1.9, 0.9) + episode_targets(256, {}, 0.75)] == [False] * 8
    assert Target("few", 0.5, at_most=0.6).met
    assert not Target("few", 0.7, at_most=0.6).met


def test_it_runs_commands_that_there_are_and_reports_what_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commands: list[tuple[str, ...]] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    monkeypatch.setattr(gpu_check, "run", lambda name, seconds, *command: commands.append(command) or "FAILED")
    monkeypatch.setattr(gpu_check, "write_supernet", lambda folder: folder)
    with pytest.raises(SystemExit):
        main(Check(tmp_path))
    tests, *benches = commands
    assert all(Path(word).is_file() for word in tests if word.startswith("tests/"))
    parsed = [parse(list(words)) for module, *words in benches if module == "train"]
    assert [type(p).__name__ for p in parsed] == ["Bench", "BenchEnv", "BenchEnv", "Bench", "Bench"]
    assert {p.device for p in parsed} == {"cuda"}
    assert len([line for line in (tmp_path / "report.md").read_text().splitlines() if "MISSED" in line]) == 15
    assert (tmp_path / "report.json").is_file()
    assert "tests FAILED" in capsys.readouterr().out


def test_a_part_that_takes_too_long_is_stopped_and_what_it_has_written_counts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gpu_check.run("endless", 0.5, "timeit", "-n", "1", "-r", "1", "import time; time.sleep(60)") == "STOPPED"
    assert "endless: STOPPED after" in capsys.readouterr().out
    assert gpu_check.rows_in(tmp_path / "none.json") == []
    (tmp_path / "some.json").write_text('{"rows": [{"contender": "timm"}]}')
    assert gpu_check.rows_in(tmp_path / "some.json") == [{"contender": "timm"}]


def test_all_parts_together_have_one_time_and_a_supernet_that_cannot_be_written_ends_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now, taken = [100.0], list[tuple[str, float]]()

    def run(name: str, seconds: float, *command: str) -> str:
        used = seconds if name != "tests" else 10.0
        taken.append((name, seconds))
        now[0] += used
        return "STOPPED"

    def broken(name: str) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(gpu_check.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(gpu_check, "run", run)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    own = gpu_check.write_supernet
    monkeypatch.setattr(gpu_check, "write_supernet", lambda folder: folder)
    with pytest.raises(SystemExit):
        main(Check(tmp_path, seconds=130))
    assert [seconds for _, seconds in taken] == pytest.approx([130 * 4 / 14, 36, 24, 24, 24, 12])
    assert now[0] == pytest.approx(100 + 130)
    monkeypatch.setattr(gpu_check, "write_supernet", own)
    monkeypatch.setattr(gpu_check.timm, "create_model", broken)
    taken.clear()
    with pytest.raises(SystemExit):
        main(Check(tmp_path, tests=False))
    assert [name.split("_")[1] for name, _ in taken] == ["small", "tiny", "small"]
    assert "supernet: FAILED (OSError: No space left on device)" in capsys.readouterr().out


@pytest.mark.slow
def test_the_supernet_that_plays_is_timms_small_one(tmp_path: Path) -> None:
    assert gpu_check.write_supernet(tmp_path / "net") is not None
    config = load_config(tmp_path / "net")
    assert (config.embed_dim, config.space.depth, SMALL.startswith("deit_small")) == (384, 12, True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="would run the check")
def test_it_says_that_it_needs_a_gpu() -> None:
    with pytest.raises(SystemExit, match="gpu-check needs a GPU that PyTorch can use"):
        main(Check())
