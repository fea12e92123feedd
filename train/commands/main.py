"""The `prance` command: finds the file of the command that was typed, and runs it.

Only that one file is imported, so that `prance --help` is quick. What is in it is told by the docstrings of the others.
"""

from __future__ import annotations

import ast
import difflib
import inspect
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, make_dataclass
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar, Union

from tyro.conf import OmitArgPrefixes, OmitSubcommandPrefixes, subcommand

from ..going_on import STOPPED, after_stop, out_of
from ..own_modules import import_named
from ..refusing import ended_by_its_reader, guarded, read_options, refuse
from ..runs.interrupt import Terminated, signals_as_interrupts

T = TypeVar("T")


class Command(NamedTuple):
    """Where a command is.

    Attributes:
        module: Its file in this folder.
        name: The class of its options, whose method `run` runs it.
    """

    module: str
    name: str

    def load(self) -> type[Any]:
        """The class."""
        return getattr(import_module(f".{self.module}", __package__), self.name)

    def summary(self) -> str:
        """The first paragraph of the class's docstring, read without importing its file."""
        tree = ast.parse(Path(__file__).with_name(f"{self.module}.py").read_text())
        found = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == self.name)
        return (ast.get_docstring(found) or "").split("\n\n")[0]


class Group(NamedTuple):
    """Commands that begin with the same word.

    Attributes:
        help: What they have in common, in words.
        commands: By their second word.
    """

    help: str
    commands: Mapping[str, Command]


COMMANDS: dict[str, Command | Group] = {
    "demo": Command("demo", "Demo"),
    "train": Group(
        "Train a supernet, an agent, both together, or a static network.",
        {
            "supernet": Command("train_supernet", "TrainSupernet"),
            "static": Command("train_static", "TrainStatic"),
            "agent": Command("train_agent", "TrainAgent"),
            "joint": Command("train_joint", "TrainJoint"),
        },
    ),
    "tune": Command("tune", "Tune"),
    "eval": Command("eval", "Eval"),
    "yardsticks": Command("yardsticks", "Yardsticks"),
    "designs": Command("designs", "Designs"),
    "benchmark": Command("benchmark", "Benchmark"),
    "validate": Command("validate", "Validate"),
    "headroom": Command("headroom", "Headroom"),
    "export": Command("export", "Export"),
    "predict": Command("predict", "Predict"),
    "serve": Command("serve", "Serve"),
    "view": Command("view", "View"),
    "video": Command("video", "Video"),
    "plot": Command("plot", "Plot"),
    "import": Group(
        """Make a supernet out of weights from elsewhere.

        For example:

            prance import timm deit_small_patch16_224 --pretrained --out runs/deit
            prance import clip ViT-B-16 --pretrained datacomp_xl_s13b_b90k --classes names.txt --out runs/clip
            prance import prance supernet-tiny.pth --out runs/prance-tiny
        """,
        {
            "timm": Command("import_", "ImportTimm"),
            "clip": Command("import_", "ImportClip"),
            "prance": Command("import_", "ImportPrance"),
        },
    ),
    "order": Command("order", "Order"),
    "prune": Command("prune", "Prune"),
    "distill": Command("distill", "Distill"),
    "casestudy": Group(
        """Studies from the weights of others to a page of results.

        For example:

            prance casestudy fashion --threads 2 --out casestudy
        """,
        {"fashion": Command("casestudy", "Fashion")},
    ),
    "bench": Command("bench", "Bench"),
    "bench-env": Command("bench_env", "BenchEnv"),
    "bench-training": Command("bench_training", "BenchTraining"),
    "bench-supernet": Command("bench_supernet", "BenchSupernet"),
    "bench-menu": Command("bench_menu", "BenchMenu"),
    "profile": Command("profile", "Profile"),
    "list": Command("list", "List"),
}
HELP = """Vision Transformers whose inference is a reinforcement-learning environment.

For example:

    prance demo
    prance list
    prance train agent --out runs/agent
    prance eval --agent runs/agent full random

`prance --version` says what is installed.
"""


@dataclass
class _Unread:
    """Stands for the options of a command whose file need not be read."""


def parse(words: list[str]) -> Any:
    """The command that was typed, as an object with `run`.

    What is no command ends the process with a message, and `--help` with a help text.

    Raises:
        ValueError: If options are wrong; so do the other errors that settings of commands name.
    """
    import_named(words)
    found, path = _found(words)
    _check_known(words, found)
    if isinstance(found, Command):
        prog = " ".join(["prance", *path])
        kind = _refusing(found.load())
        options = _with_sizes(kind, words[len(path) :])
        return read_options(kind, prog, options, _resumed(kind, options), (OmitArgPrefixes,))
    # Whoever completes commands in a shell needs all options.
    complete = any(word.startswith("--tyro-") for word in words)
    overview = _overview(Group(HELP, {}), COMMANDS, complete)
    return read_options(overview, "prance", words, None, (OmitArgPrefixes, OmitSubcommandPrefixes))


def _check_known(words: list[str], found: Command | Group | None) -> None:
    """Ends the process with the nearest command if a word is none."""
    known, word = (found.commands, words[1:2]) if isinstance(found, Group) else (COMMANDS, words[:1])
    if isinstance(found, Command) or not word or word[0].startswith("-"):
        return
    near = difflib.get_close_matches(word[0], known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    refuse(f"{word[0]!r} is no command; {hint}There are {', '.join(known)}.")


def _refusing(options: type[T]) -> type[T]:
    """The same options, which end the process with one line about what they refuse: tyro would draw a box."""

    def __init__(self: Any, *args: Any, **named: Any) -> None:
        try:
            options.__init__(self, *args, **named)
        except ValueError as e:
            refuse(e)

    return type(options.__name__, (options,), {"__init__": __init__, "__doc__": options.__doc__})


def _resumed(kind: type[Any], words: list[str]) -> Any | None:
    """What an interrupted run was begun with, if that is what is to go on: what is not typed is as it was.

    Raises:
        FileExistsError: If the folder holds something else.
        FileNotFoundError: If there is no run, whose settings would have said what other options mean.
    """
    resumed: Callable[[Path], Any | None] | None = getattr(kind, "resumed", None)
    if "--resume" not in words or resumed is None:
        return None
    out = out_of(words)
    found = None if out is None else resumed(out)
    if out is None or found is not None or {"-h", "--help"} & {*words}:
        return found
    from ..runs.folder import check_kind, nothing_to_resume  # as every command that has something to resume does

    check_kind(out, [f.name for f in fields(kind)])
    raise nothing_to_resume(out)


def _with_sizes(kind: type[Any], words: list[str]) -> list[str]:
    """The options, after those that `--effort small` stands for; of two equal ones, the last counts."""
    asked = " ".join(words).replace("--effort=", "--effort ")
    small: str = getattr(kind, "small", "")
    return [*small.split(), *words] if "--effort small" in asked and "--resume" not in words else words


def _found(words: list[str]) -> tuple[Command | Group | None, list[str]]:
    """The command or the group of commands that words begin with, and these first words."""
    names = [word.replace("_", "-") for word in words[:2]]
    found = COMMANDS.get(names[0]) if names else None
    if isinstance(found, Group) and len(names) == 2 and names[1] in found.commands:
        return found.commands[names[1]], names
    return found, names[:1]


def _overview(group: Group, commands: Mapping[str, Command | Group], complete: bool) -> type[Any]:
    """A class with a field for one of the commands, from which tyro makes the help text."""
    options = []
    for name, command in commands.items():
        if isinstance(command, Group):
            kind, text = _overview(command, command.commands, complete), inspect.cleandoc(command.help)
        else:
            kind, text = command.load() if complete else _Unread, command.summary()
        options.append(Annotated[kind, subcommand(name, description=text)])
    overview = make_dataclass("Overview", [("command", Union[tuple(options)])])  # noqa: UP007
    overview.__doc__ = inspect.cleandoc(group.help)
    return overview


def _check_device(command: Any) -> None:
    """Before anything is written."""
    device = getattr(command, "device", None) or getattr(command, "environment", {}).get("device", "cpu")
    if device != "cpu":
        from prance_env.supernets import usable_device

        usable_device(device)


def _print_version() -> None:
    """This package's version, and those that its results depend on."""
    from ..machine import versions

    found = versions()
    print(f"prance-env {found.pop('prance-env')}")
    print(", ".join(f"{name} {version}" for name, version in found.items()))


def _run() -> None:
    if sys.argv[1:] == ["--version"]:
        return _print_version()
    with signals_as_interrupts():
        command = parse(sys.argv[1:])
        _check_device(command)
        command.run()


def main() -> None:
    """Entry point: errors that a user can mend are one line; Ctrl-C and SIGTERM say how to go on."""
    try:
        with ended_by_its_reader():
            guarded(_run)
    except KeyboardInterrupt as stop:
        print(f"\n{_after_stop(sys.argv[1:])}", file=sys.stderr)
        sys.exit(128 + (signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT))


def _after_stop(words: list[str]) -> str:
    found, path = _found(words)
    return after_stop(found.load(), path, words[len(path) :]) if isinstance(found, Command) else STOPPED


if __name__ == "__main__":
    main()
