"""The front door: links lead somewhere, and the map shows the house. That pages run as pasted: test_pasted.py."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES += sorted((ROOT / "prance_env" / "weights").glob("*/README.md"))
PACKAGES = ["supernet", "prance_env", "agents", "train"]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_relative_links_and_pictures_exist(page: Path) -> None:
    targets = [t for t in re.findall(r"\]\(([^)#]+)", page.read_text()) if "://" not in t]
    # The reference is made when the site is built.
    assert [t for t in targets if not (page.parent / t).exists() and "reference/" not in t] == []


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
