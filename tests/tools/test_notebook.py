"""The notebook of the first tutorial is its page, and runs from top to bottom."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from pasted import shortened
from pasted_world import STEPS

from tools.notebook import NOTEBOOK, ROOT, notebook

COMMAND = f"""#!{sys.executable}
from conftest import scenes
from train.commands.main import main
with scenes(val=64, test=64):
    main()
"""
MOST_BYTES = 50_000


def test_the_notebook_is_what_the_page_says() -> None:
    assert NOTEBOOK.read_text() == notebook(), "run python -m tools.notebook"
    assert NOTEBOOK.stat().st_size < MOST_BYTES


def short(source: str) -> str:
    """A cell that does less; one whose command fails does so, too."""
    for long, few in STEPS.items():
        source = source.replace(long, few)
    lines = []
    for line in source.splitlines():
        if line.startswith("!prance "):
            lines += ["!prance " + " ".join(shortened(line[1:])), "assert _exit_code == 0"]
        else:
            lines.append(line)
    return "\n".join(lines)


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    command = tmp_path / "bin" / "prance"
    command.parent.mkdir()
    command.write_text(COMMAND)
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(command.parent), prepend=":")
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'tests'}", prepend=":")
    book = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(book)
    for cell in book.cells:
        if cell.cell_type == "code":
            cell.source = short(cell.source)
    nbclient.NotebookClient(book, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in book.cells for output in cell.get("outputs", ())]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert any("accuracy" in output.get("text", "") for output in outputs)
