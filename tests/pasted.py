"""What pages tell people to type: collected from README, docs and help texts, and run in a world made for it.

Commands that train or measure run in a short form, `SHORT`; pages say so in their source, with `MARK` above the block
or the table. What would be downloaded or is too large to be made in a moment has a local stand-in, see `stand_in`.
"""

from __future__ import annotations

import ast
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from train.commands.main import COMMANDS, HELP, Command, Group

ROOT = Path(__file__).parent.parent
MARK = "<!-- tests: short -->"
BEFORE = re.compile(r"<!-- tests: before\n(.*?)-->\n", re.DOTALL)
FENCE = re.compile(r"(?P<above>(?:<!--(?:(?!-->).)*-->\n)*)```(?P<kind>\w*)\n(?P<code>.*?)```", re.DOTALL)
ROW = re.compile(r"^\| `(prance [^`]+)` \|", re.MULTILINE)

# By verb: what is added to a command, the last of two equal options counting. Of the second, only what it has itself.
TRAIN = "--total-timesteps 48 --n-envs 8"
YARDSTICKS = "--num-subnets 5 --oracle-subnets 4 --copies 1"
SHORT = {
    "train agent": TRAIN,
    "train supernet": "--steps 2 --batch-size 4",
    "train static": "--steps 2 --batch-size 4 --val-images 4 --num-workers 0",
    "train joint": "--steps 1 --batch-size 4 --val-images 4",
    "tune": f"{TRAIN} --trials 1 --evaluations 1",
    "yardsticks": YARDSTICKS,
    "benchmark": f"{YARDSTICKS} --seeds 0 --total-timesteps 48",
    "designs": "--num-subnets 4 --images 16 --seeds 0",
    "casestudy fashion": "--effort tiny --seeds 0 --from runs/vit --images pictures",
    "headroom": "--num-subnets 5",
    "bench": "--repeats 1 --warmup 0 --batch-size 2",
    "bench-env": "--num-images 4 --repeats 1 --warmup 0 --supernet digits",
    "bench-training": f"{TRAIN} --seeds 0 --algos ppo a2c",
    "bench-menu": "--repeats 1 --entries 4 --images 8",
    "bench-supernet": "--repeats 1 --warmup 0 --batch-size 2",
    "profile": "--batch-size 1 --token-counts 1 --repeats 1 --supernet digits",
    "distill": "--batch-size 4",
    "order": "--images 8 --batch-size 4 --check-images 4",
    "export": "--format safetensors",
    "eval": "--resamples 20",
    "demo": "--quick",
    "serve": "--port 0",
}
SHORTER = {
    "--latency": "4",
    "--budget": "0.1",
    "--epochs": "1",
    "--check": "4",
    "--ablate-images": "2",
    "--rounds": "1",
    "--agent-timesteps": "48",
    "--val-images": "4",
    "--max-hours": "1",
    "--rows": "csv",
    "--num-workers": "0",
}
LONG = set(SHORT) - {"eval", "export", "order", "distill", "profile", "serve"}
"""Verbs that would take more than some seconds, which pages must be marked for."""


@dataclass(frozen=True)
class Piece:
    """Something to run.

    Attributes:
        kind: "python" or "sh".
        text: Code, or a command on one line.
        marked: Whether the page says that it is run in a short form.
    """

    kind: str
    text: str
    marked: bool


def pieces_of(page: Path) -> list[Piece]:
    """The blocks and tables of a page, in order."""
    text, found = page.read_text(), []
    for match in FENCE.finditer(text):
        marked, above = MARK in match["above"], "".join(BEFORE.findall(match["above"]))
        if match["kind"] == "python":
            found.append((match.start(), Piece("python", above + match["code"], marked)))
        elif match["kind"] in ("", "sh"):
            found += [(match.start(), Piece("sh", line, marked)) for line in command_lines(match["code"])]
    for match in ROW.finditer(text):
        table = text.rfind("\n\n", 0, match.start())
        found.append((match.start(), Piece("sh", match[1], text[:table].rstrip().endswith(MARK))))
    return [piece for _, piece in sorted(found, key=lambda pair: pair[0])]


def command_lines(block: str) -> list[str]:
    """The commands of a block, continued lines put together and comments left out."""
    lines = re.sub(r"\\\n\s*", "", block).split("\n")
    words = [shlex.split(line, comments=True) for line in lines if line.strip()]
    return [shlex.join(w) for w in words if w]


def help_texts() -> dict[str, str]:
    """The help text of every command, by its name; that of `prance` itself is named so."""
    found = {"prance": HELP}
    for name, entry in COMMANDS.items():
        if isinstance(entry, Group):
            found[name] = entry.help
            found |= {f"{name} {verb}": _docstring(command) for verb, command in entry.commands.items()}
        else:
            found[name] = _docstring(entry)
    return found


def _docstring(command: Command) -> str:
    tree = ast.parse((ROOT / "train" / "commands" / f"{command.module}.py").read_text())
    kind = next(n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == command.name)
    return ast.get_docstring(kind) or ""


def commands_of(help_text: str) -> list[str]:
    """The example commands of a help text."""
    lines = [line.strip() for line in re.sub(r"\\\n\s*", "", help_text).split("\n")]
    return command_lines("\n".join(line for line in lines if line.startswith("prance ")))


def verb_of(line: str) -> str:
    """A command without its options: "train agent"."""
    words = line.split()[1:]
    return " ".join(words[: 2 if isinstance(COMMANDS.get(words[0]), Group) else 1])


def shortened(line: str, out: str = "") -> list[str]:
    """The words of a command in its short form, after `prance`.

    Args:
        line: As it stands.
        out: What is added at the end.
    """
    words, verb = shlex.split(line)[1:], verb_of(line)
    extra = SHORT.get(verb, "")
    if "--resume" in words:  # with the settings of the run
        more = verb in ("tune", "train agent") and {"--trials", "--total-timesteps"} & set(words)
        extra = {"tune": "--trials 2", "train agent": "--total-timesteps 96"}[verb] if more else ""
    if verb == "train supernet" and "--resume" not in words and not any(w.startswith("digits") for w in words):
        extra += " --val-images 4 --num-workers 0"
    if verb == "profile" and "--decide-first-group" in words:  # the short form's supernet cannot
        words.remove("--decide-first-group")
    if verb == "export" and ("--adaptive" in words or ("onnx" in words and "torch" not in words)):
        extra = ""
    extra += "".join(f" {name} {value}" for name, value in SHORTER.items() if name in words)
    extra += " --device cpu" if "--device" in words else ""
    return [*words, *extra.split(), *out.split()]
