"""The examples run as they stand, are short, fast enough for a small machine, and teach their agents something."""

from __future__ import annotations

import re
import resource
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))
LINES, CPU_SECONDS = 60, 120  # a minute on two cores; a busy machine costs more CPU, too


def test_examples_are_short_and_listed() -> None:
    assert len(EXAMPLES) >= 5
    listed = (Path(__file__).parent.parent / "README.md").read_text()
    for example in EXAMPLES:
        assert len(example.read_text().splitlines()) <= LINES, example.name
        assert f"examples/{example.name}" in listed


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs_as_it_stands_and_reaches_something(example: Path, tmp_path: Path) -> None:
    needed = set(re.findall(r"^(?:from|import) (\w+)", example.read_text(), re.MULTILINE))
    if missing := [name for name in needed if find_spec(name) is None]:
        pytest.skip(f"{missing} is not installed")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, str(example)], cwd=tmp_path, capture_output=True, text=True, timeout=900, check=False
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < CPU_SECONDS
    numbers = [float(n) for n in re.findall(r"(?:accuracy|return)'?:? (\d\.\d+)", done.stdout)]
    assert max(numbers) > 0.75, done.stdout  # an untrained agent is at 0.5
