"""The front door: links lead somewhere, code runs as pasted, and the map shows the house."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES += sorted((ROOT / "prance_env" / "weights").glob("*/README.md"))
EXAMPLES = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
STEPS, FEWER_STEPS = "agent.learn(100_000", "agent.learn(2_000"  # examples/ has those that are trained to the end
PASTED = [
    ROOT / "docs" / "extending.md",
    ROOT / "docs" / "timm.md",
    *sorted((ROOT / "docs" / "tutorials").glob("*.md")),
]
PACKAGES = ["supernet", "prance_env", "agents", "train"]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_relative_links_and_pictures_exist(page: Path) -> None:
    targets = [t for t in re.findall(r"\]\(([^)#]+)", page.read_text()) if "://" not in t]
    # The reference is made when the site is built.
    assert [t for t in targets if not (page.parent / t).exists() and "reference/" not in t] == []


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES, ids=["train", "gymnasium", "supernet"])
def test_the_readmes_examples_run_as_they_stand(example: str, tmp_path: Path) -> None:
    assert (STEPS in example) == (".learn(" in example)
    example = example.replace(STEPS, FEWER_STEPS)
    done = subprocess.run([sys.executable, "-c", example], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("page", PASTED, ids=lambda p: p.stem)
def test_the_code_of_a_page_runs_as_it_stands_one_block_after_the_other(page: Path, tmp_path: Path) -> None:
    code = "\n".join(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)).replace(STEPS, FEWER_STEPS)
    if not code:
        pytest.skip("the page has no code")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_map_of_the_house_is_what_the_rooms_say_of_themselves() -> None:
    rows = []
    for package in PACKAGES:
        for init in [ROOT / package / "__init__.py", *sorted((ROOT / package).glob("*/__init__.py"))]:
            doc = ast.get_docstring(ast.parse(init.read_text()))
            assert doc, f"{init} does not say what is inside"
            rows.append(f"| `{init.parent.relative_to(ROOT)}/` | {doc.splitlines()[0]} |")
    text = (ROOT / "CONTRIBUTING.md").read_text()
    assert re.findall(r"^\| `.*/` \| .* \|$", text, re.MULTILINE)[: len(rows)] == rows


def test_every_page_is_in_the_sites_navigation() -> None:
    listed = set(re.findall(r": ([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE))
    pages = {str(p.relative_to(ROOT / "docs")) for p in (ROOT / "docs").rglob("*.md")}
    assert pages == {name for name in listed if not name.startswith("reference/")}
