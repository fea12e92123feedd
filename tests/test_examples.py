"""The examples run as they stand, are short, fast enough for a small machine, and teach their agents something."""

from __future__ import annotations

import os
import re
import runpy
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from conftest import scenes

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))
LINES, CPU_SECONDS = 60, 120  # a minute on two cores; a busy machine costs more CPU, too


def cpu_seconds() -> float:
    """What this process and those that it waited for have used."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def test_examples_are_short_and_listed() -> None:
    assert len(EXAMPLES) >= 5
    listed = (Path(__file__).parent.parent / "README.md").read_text()
    for example in EXAMPLES:
        assert len(example.read_text().splitlines()) <= LINES, example.name
        assert f"examples/{example.name}" in listed


@pytest.fixture(scope="module", autouse=True)
def fewer_scenes() -> Iterator[None]:
    """Agents are evaluated on a quarter of the scenes; they are trained on all."""
    with scenes(val=1024, test=1024):
        yield


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs_as_it_stands_and_reaches_something(
    example: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    needed = set(re.findall(r"^(?:from|import) (\w+)", example.read_text(), re.MULTILINE))
    if missing := [name for name in needed if find_spec(name) is None]:
        pytest.skip(f"{missing} is not installed")
    monkeypatch.chdir(tmp_path)
    before = cpu_seconds()
    runpy.run_path(str(example), run_name="__main__")
    assert cpu_seconds() - before < CPU_SECONDS
    printed = capsys.readouterr().out
    numbers = [float(n) for n in re.findall(r"(?:accuracy|return)'?:? (\d\.\d+)", printed)]
    assert max(numbers) > 0.75, printed  # an untrained agent is at 0.5
