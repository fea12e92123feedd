"""A sample of `make faults`: a fault at a few file events, and damaged files of every kind."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import scenes

from tools.faults.cases import Case, cases, short_cases, small_world
from tools.faults.forked import run
from tools.faults.interrupts import INTERRUPT, interrupt_one, lines_of, words_to_go_on
from tools.faults.soak import SOAK, soak
from tools.faults.walk import Planned, walk_one
from tools.malformed.trying import try_all

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")]


@pytest.fixture(scope="module", autouse=True)
def own_engines() -> Iterator[None]:
    """Engines over few scenes are not for other modules."""
    with scenes():
        yield


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Case]]:
    with small_world():
        files = tmp_path_factory.mktemp("files")
        yield cases(files) | short_cases(files)


def test_a_supernet_whose_training_was_killed_is_the_one_that_was_not(known: dict[str, Case], tmp_path: Path) -> None:
    case, whole = known["supernet"], tmp_path / "whole"
    reference = run(case.words, whole)
    assert reference.status == 0, reference.text
    events = len(reference.events)
    faults = [("torn", events - 12), ("full", events // 3)]
    for kind, at in faults:
        found = walk_one("supernet", case, Planned(kind, at), whole, reference.seconds, tmp_path / "run")
        assert found.problems == []


@pytest.mark.parametrize(("name", "moments"), [("ppo", (0.35, 0.9)), ("predict", (0.5,)), ("tune", (0.6,))])
def test_what_an_interrupted_command_says_is_true(
    name: str, moments: tuple[float, ...], known: dict[str, Case], tmp_path: Path
) -> None:
    if name == "tune":
        pytest.importorskip("optuna")
    case, whole = known[name], tmp_path / "whole"
    reference = run(case.words, whole)
    assert reference.status == 0, reference.text
    for at in moments:
        found = interrupt_one(name, case, Planned(INTERRUPT, at), whole, reference.seconds, tmp_path / "run")
        assert found.problems == []


def test_what_suffers_fault_after_fault_is_compared_in_the_end(known: dict[str, Case], tmp_path: Path) -> None:
    case, whole = known["export"], tmp_path / "whole"
    reference = run(case.words, whole)
    minute = Planned(SOAK, 60)
    found = next(soak("export", case, minute, reference, whole, tmp_path / "run", seed=3))
    assert found.faults > 1
    assert found.problems == []
    (whole / "static.json").unlink()
    found = next(soak("export", case, minute, reference, whole, tmp_path / "run", seed=3))
    assert ["static.json is left over" in problem for problem in found.problems] == [True]


def test_only_what_a_command_really_says_is_done(tmp_path: Path) -> None:
    case, out = Case(("train", "agent")), tmp_path / "run"
    told = f"Go on with: prance train agent --resume --out {out} --import mine"
    assert words_to_go_on(["Stopped at 3 of 9 steps.", told], case, out) == (
        *("train", "agent", "--resume"),
        *("--import", "mine"),
    )
    assert words_to_go_on([told], case, tmp_path / "other") is None
    assert words_to_go_on(["Continue somehow."], case, out) is None
    assert words_to_go_on([], case, out) is None
    text = "Training:  40%|####    | 3/9 [00:01<00:02]\r\nStopped at 3 of 9 steps.\n\n\x1b[?25hGo on with: x\n"
    assert lines_of(text) == ["Stopped at 3 of 9 steps.", "Go on with: x"]


def test_damaged_files_load_and_work_or_are_refused_in_one_sentence() -> None:
    counts, wrong = try_all(108, seed=1)
    assert wrong == []
    assert counts["sentence"] > 40
