"""A sample of `make faults`: a fault at a few file events, and damaged files of every kind."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import scenes

from tools.faults.cases import Case, cases, small_world
from tools.faults.forked import run
from tools.faults.walk import Planned, walk_one
from tools.malformed import try_all

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")]


@pytest.fixture(scope="module", autouse=True)
def own_engines() -> Iterator[None]:
    """Engines over few scenes are not for other modules."""
    with scenes():
        yield


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Case]]:
    with small_world():
        yield cases(tmp_path_factory.mktemp("files"))


def test_a_supernet_whose_training_was_killed_is_the_one_that_was_not(known: dict[str, Case], tmp_path: Path) -> None:
    case, whole = known["supernet"], tmp_path / "whole"
    reference = run(case.words, whole)
    assert reference.status == 0, reference.text
    events = len(reference.events)
    faults = [("torn", events - 12), ("full", events // 3)]
    for kind, at in faults:
        found = walk_one("supernet", case, Planned(kind, at), whole, reference.seconds, tmp_path / "run")
        assert found.problems == []


def test_damaged_files_load_and_work_or_are_refused_in_one_sentence() -> None:
    counts, wrong = try_all(28, seed=1)
    assert wrong == []
    assert counts["sentence"] > 14
