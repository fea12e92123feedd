"""Every command and every snippet of README, docs and help texts runs, pasted as it stands or in a short form."""

from __future__ import annotations

import io
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Set
from importlib.util import find_spec
from pathlib import Path

import pytest
from conftest import scenes
from pasted import LONG, MARK, ROOT, SHORT, Piece, command_lines, commands_of, help_texts, pieces_of, verb_of
from pasted_world import (
    MY_REWARDS,
    SAVED_AS,
    SERVED,
    in_a_child,
    make_runs,
    make_world,
    page_names,
    run,
    run_code,
    stand_in,
)

from train.commands.main import COMMANDS, Group, parse

PAGES = [p for p in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))] if pieces_of(p)]
HELP = {name: commands for name, text in help_texts().items() if (commands := commands_of(text))}
EXTRAS = {"export": ("onnx", "onnxruntime"), "tune": ("optuna",), "import clip": ("open_clip",)}
FEW = 32
QUICK = ("contracts", "environment", "extending", "own-agent", "supernets")
"""Pages that take seconds, which are run with the slow tests; the others are run by `make test-pasted`."""
EVERY = [pytest.param(p, marks=() if p.stem in QUICK else pytest.mark.pasted, id=p.stem) for p in PAGES]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """With everything in it; copied for every page."""
    folder = tmp_path_factory.mktemp("world")

    def make() -> None:
        stand_in()
        make_world(folder)
        make_runs()

    with scenes(train=FEW, val=FEW, test=FEW):
        in_a_child(make, folder)
        yield folder


def missing(piece: Piece, saved: Set[str] = frozenset()) -> list[str]:
    """Packages that a piece needs and that are not installed; modules that its page saves are."""
    if piece.kind == "python":
        needed = set(re.findall(r"^(?:from|import) (\w+)", piece.text, re.MULTILINE))
    else:
        needed = set(EXTRAS.get(verb_of(piece.text), ())) if piece.text.startswith("prance ") else set()
        needed |= {"pyarrow"} if "rows.parquet" in piece.text else set()
    return [name for name in needed - saved if find_spec(name) is None]


def run_piece(piece: Piece, names: dict[str, object]) -> None:
    """In this process."""
    if piece.kind == "python":
        run_code(piece.text, names)
        return
    line = re.sub(r"^accelerate launch .* -m train ", "prance ", piece.text).replace("/data/imagenet", "pictures")
    line = line.replace("/fast/cache", "cache").replace("rows.parquet --split val", "rows.parquet --split test")
    found, pipe, line = line.rpartition(" '|' ")
    if pipe:
        sys.stdin = io.StringIO(subprocess.run(shlex.split(found), check=True, capture_output=True, text=True).stdout)
    if line.startswith("prance "):
        run(line)
    elif line.startswith("pip install "):
        extras = re.findall(r"'\.\[(\w+)\]'", line)
        assert line == "pip install ." or extras, line
        assert all(f"\n{extra} = [" in (ROOT / "pyproject.toml").read_text() for extra in extras), line
    elif line.startswith("curl "):
        assert {line} <= SERVED, f"{line}: is not asked of the service"
    elif line.startswith("make "):
        assert f"\n{line.split()[1]}:" in (ROOT / "Makefile").read_text(), line
    else:
        assert re.match(r"tensorboard --logdir runs$|python -m rl_zoo3\.train |apt-get install [\w-]+$", line), (
            f"{line}: how is it tried?"
        )


# Before the world is made, whose images are few.
@pytest.mark.parametrize("name", [*(p.stem for p in PAGES), *HELP])
def test_commands_are_understood_as_they_stand(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_rewards.py").write_text(MY_REWARDS)
    monkeypatch.syspath_prepend(tmp_path)
    pieces = [piece for page in PAGES if page.stem == name for piece in pieces_of(page)]
    saved = [piece for piece in pieces if SAVED_AS.match(piece.text)]

    def understand() -> None:
        for piece in saved:
            run_code(piece.text, {})
        for line in [*(piece.text for piece in pieces if piece.kind == "sh"), *HELP.get(name, [])]:
            line = re.sub(r"^accelerate launch .* -m train ", "prance ", line)
            words = shlex.split(line)
            # What goes on with a run, or begins with what a search found, takes its settings from there.
            if words[0] == "prance" and not {"--resume", "--conf-file"} & set(words):
                parse(words[1:])

    if saved:  # what they register is not for other tests
        in_a_child(understand, tmp_path)
    else:
        understand()


@pytest.mark.slow
@pytest.mark.parametrize("page", EVERY)
def test_what_a_page_says_runs_from_top_to_bottom(page: Path, world: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(world, tmp_path / "world"))
    saved = {named[1] for piece in pieces_of(page) if (named := SAVED_AS.match(piece.text))}
    pieces = [piece for piece in pieces_of(page) if not missing(piece, saved)]

    def work() -> None:
        names = page_names()
        for piece in [p for p in pieces if p.kind == "python" and page.stem == "README"]:
            run_piece(piece, names)
        stand_in()
        for piece in pieces:
            if page.stem != "README" or piece.kind == "sh":
                print(f"--- {piece.text[:200]}", flush=True)
                run_piece(piece, names)

    in_a_child(work, folder)


@pytest.mark.slow
@pytest.mark.pasted
@pytest.mark.parametrize("name", HELP)
def test_the_examples_of_a_help_text_run(name: str, world: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(world, tmp_path / "world"))

    def work() -> None:
        stand_in()
        for line in HELP[name]:
            if not missing(piece := Piece("sh", line, True)):
                print(f"--- {line}", flush=True)
                run_piece(piece, {})

    in_a_child(work, folder)


def test_pages_say_where_less_is_run_than_they_show() -> None:
    unmarked = []
    for page in PAGES:
        for piece in pieces_of(page):
            long = piece.kind == "sh" and piece.text.startswith("prance ") and verb_of(piece.text) in LONG
            if (long or ".learn(100_000" in piece.text) and not piece.marked:
                unmarked.append(f"{page.stem}: {piece.text[:80]}")
    assert unmarked == [], f"put {MARK} above"


def test_every_verb_has_examples_in_its_help() -> None:
    verbs = {f"{n} {v}" for n, e in COMMANDS.items() if isinstance(e, Group) for v in e.commands}
    verbs |= {name for name, entry in COMMANDS.items() if not isinstance(entry, Group)}
    shown = {verb_of(line) for lines in HELP.values() for line in lines}
    assert shown == verbs
    assert set(SHORT) <= verbs


def test_commands_are_found_in_blocks_tables_and_help(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text(
        f"# A\n\n{MARK}\n```sh\nprance demo   # quick\nprance eval \\\n    --agent full\n```\n\n"
        "<!-- tests: before\nx = 1\n-->\n```python\nprint(x)\n```\n\n"
        "| | |\n|---|---|\n| `prance list` | what there is |\n"
    )
    assert pieces_of(tmp_path / "a.md") == [
        Piece("sh", "prance demo", True),
        Piece("sh", "prance eval --agent full", True),
        Piece("python", "x = 1\nprint(x)\n", False),
        Piece("sh", "prance list", False),
    ]
    assert command_lines("a \\\n  b\n\n# c\n") == ["a b"]
    assert commands_of("For example:\n\n    prance list\n\nand\n    prance eval \\\n        --agent x\n") == [
        "prance list",
        "prance eval --agent x",
    ]
