"""Writes `examples/first_tutorial.ipynb` from the first tutorial's page, its only source: `python -m tools.notebook`.

Blocks of Python and of commands become cells to run, everything else text. A picture under which the page names the
file that it is (`<!-- notebook: runs/compared/pareto.png -->`) becomes a cell that shows that file.
"""

from __future__ import annotations

import json
import os.path
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "tutorials" / "first-agent.md"
NOTEBOOK = ROOT / "examples" / "first_tutorial.ipynb"
SHOW = "from IPython.display import Image\n\n"
RUN = re.compile(
    r"```(?P<kind>python|sh)\n(?P<code>.*?)```\n|<!-- notebook: (?P<file>\S+) -->\n!\[[^\]]*\]\([^)]*\)\n", re.DOTALL
)
LINK = re.compile(r"\]\((?!https?:|#)([^)]+)\)")


def notebook() -> str:
    """The notebook, as JSON."""
    text, cells, end = re.sub(r"<!-- tests: .*?-->\n", "", PAGE.read_text(), flags=re.DOTALL), [], 0
    for match in RUN.finditer(text):
        cells += _text(text[end : match.start()])
        cells.append(("code", _code(match)))
        end = match.end()
    cells += _text(text[end:])
    made = {
        "cells": [_cell(kind, source, f"cell-{i}") for i, (kind, source) in enumerate(cells)],
        "metadata": {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        },
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    return json.dumps(made, indent=1, ensure_ascii=False) + "\n"


def _text(markdown: str) -> list[tuple[str, str]]:
    """A cell of text, if there is any; links lead from the notebook's folder to where they lead from the page's."""

    def moved(match: re.Match[str]) -> str:
        return f"]({os.path.relpath(PAGE.parent / match[1], NOTEBOOK.parent)})"

    return [("markdown", LINK.sub(moved, markdown).strip())] if markdown.strip() else []


def _code(match: re.Match[str]) -> str:
    """What a cell runs."""
    if match["file"]:
        return f'{SHOW}Image("{match["file"]}")'
    if match["kind"] == "python":
        return match["code"].strip()
    return "\n".join(f"!{line}" for line in re.sub(r"\\\n\s*", "", match["code"]).strip().split("\n"))


def _cell(kind: str, source: str, name: str) -> dict[str, Any]:
    """A cell without outputs."""
    cell = {"cell_type": kind, "id": name, "metadata": {}, "source": source.splitlines(keepends=True)}
    return cell | ({"execution_count": None, "outputs": []} if kind == "code" else {})


if __name__ == "__main__":
    NOTEBOOK.write_text(notebook())
