"""The front door: links lead somewhere, examples run as pasted, and folders depend on each other one way only."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES += sorted((ROOT / "prance_env" / "weights").glob("*/README.md"))
EXAMPLES = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
STEPS, FEWER_STEPS = "agent.learn(100_000", "agent.learn(2_000"  # examples/ has those that are trained to the end
LAYERS = ["supernet", "prance_env", "agents", "train"]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_relative_links_and_pictures_exist(page: Path) -> None:
    targets = [t for t in re.findall(r"\]\(([^)#]+)", page.read_text()) if "://" not in t]
    assert [t for t in targets if not (page.parent / t).exists()] == []


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES, ids=["train", "gymnasium", "supernet"])
def test_the_readmes_examples_run_as_they_stand(example: str, tmp_path: Path) -> None:
    assert (STEPS in example) == (".learn(" in example)
    example = example.replace(STEPS, FEWER_STEPS)
    done = subprocess.run([sys.executable, "-c", example], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("layer", LAYERS)
def test_folders_depend_on_the_ones_below_only(layer: str) -> None:
    above = set(LAYERS[LAYERS.index(layer) + 1 :])
    for path in (ROOT / layer).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            assert not {n.split(".")[0] for n in names} & above, f"{path.name} imports {names}"
