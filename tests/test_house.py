"""The house: rooms import upwards in no circle, nothing is too long to read, what is exported is documented."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ["supernet", "prance_env", "agents", "train"]
MOST_LINES, MOST_LINES_OF_A_FUNCTION = 400, 60
FILES = [p for package in [*PACKAGES, "tools", "tests", "examples"] for p in sorted((ROOT / package).rglob("*.py"))]


def module_of(path: Path) -> str:
    """Dotted name of a file; that of its folder for `__init__.py`."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path, modules: set[str]) -> Iterator[str]:
    """Modules of this repository that a file imports, at its top or later, for type checkers or for real."""
    package = path.relative_to(ROOT).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        if isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) - node.level + 1]) if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                whole = f"{source}.{alias.name}"
                if whole in modules or source in modules:
                    yield whole if whole in modules else source


def circle_in(arrows: dict[str, set[str]]) -> list[str]:
    """One circle of a graph, its first node last as well; empty if there is none."""
    done: set[str] = set()
    for start in sorted(arrows):
        path: list[str] = []

        def visit(node: str, path: list[str] = path) -> list[str]:
            if node in path:
                return [*path[path.index(node) :], node]
            if node in done:
                return []
            path.append(node)
            for following in sorted(arrows.get(node, ())):
                if found := visit(following):
                    return found
            path.pop()
            done.add(node)
            return []

        if found := visit(start):
            return found
    return []


def arrows_of(packages: list[str]) -> dict[str, set[str]]:
    """Which module of these packages imports which. The front doors, the packages' own `__init__`, are left out."""
    paths = {module_of(p): p for package in packages for p in (ROOT / package).rglob("*.py")}
    inside = set(paths) - set(packages)
    return {name: {i for i in imports_of(paths[name], set(paths)) if i in inside and i != name} for name in inside}


def room_of(module: str) -> str:
    """A module's room: its folder inside the package, or itself where it stands in none."""
    return ".".join(module.split(".")[:2])


@pytest.mark.parametrize("package", PACKAGES)
def test_modules_import_each_other_in_no_circle(package: str) -> None:
    assert circle_in(arrows_of([package])) == []


@pytest.mark.parametrize("package", PACKAGES)
def test_rooms_import_each_other_in_no_circle(package: str) -> None:
    rooms: dict[str, set[str]] = {}
    for module, targets in arrows_of([package]).items():
        rooms.setdefault(room_of(module), set()).update(room_of(t) for t in targets)
    assert circle_in({room: targets - {room} for room, targets in rooms.items()}) == []


def test_folders_depend_on_the_ones_below_only() -> None:
    for module, targets in arrows_of(PACKAGES).items():
        floor = PACKAGES.index(module.split(".")[0])
        assert all(PACKAGES.index(t.split(".")[0]) <= floor for t in targets), f"{module} imports {sorted(targets)}"


def test_a_circle_is_found() -> None:
    assert circle_in({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == ["b", "c", "b"]
    assert circle_in({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_no_file_and_no_function_is_too_long_to_read() -> None:
    long = [f"{module_of(p)}: {n} lines" for p in FILES if (n := len(p.read_text().splitlines())) > MOST_LINES]
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                if lines > MOST_LINES_OF_A_FUNCTION:
                    long.append(f"{module_of(path)}.{node.name}: {lines} lines")
    assert long == []


@pytest.mark.parametrize("package", ["supernet", "prance_env", "agents", "train.evaluate", "train.policies"])
def test_what_a_package_lists_is_there_and_documented(package: str) -> None:
    module = import_module(package)
    listed = module.__all__
    assert len(set(listed)) == len(listed)
    missing = []
    for name in listed:
        thing = getattr(module, name)
        named = {name: thing}
        if inspect.isclass(thing) and thing.__module__.split(".")[0] in PACKAGES:
            functions = {k: v.fget if isinstance(v, property) else v for k, v in vars(thing).items()}
            named |= {f"{name}.{k}": v for k, v in functions.items() if inspect.isfunction(v) and not k.startswith("_")}
        # An override without words of its own has those of the class it comes from.
        missing += [k for k, v in named.items() if not (inspect.getdoc(v) or _inherited(thing, k)).strip()]
    assert missing == []


def _inherited(thing: object, name: str) -> str:
    """What the base classes say about a method."""
    attribute = name.rpartition(".")[2]
    bases = thing.__mro__[1:] if inspect.isclass(thing) else ()
    return next((doc for base in bases if (doc := inspect.getdoc(getattr(base, attribute, None)))), "")
