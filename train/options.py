"""What the options of commands have in common: choices out of the registries, and the arguments of an environment.

Settings of commands are dataclasses whose fields are the options, and whose docstrings under the fields are the help.
They live in the room whose work they describe, and are annotated with what is here.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict, TypeVar, get_type_hints

from tyro.conf import arg
from tyro.constructors import PrimitiveConstructorSpec

from prance_env.described import field_docs
from prance_env.images.loading import ON_ERROR
from prance_env.observations import list_observations
from prance_env.settings import EnvArguments, EnvSettings
from prance_env.supernets import DTYPES, token_modes
from supernet import SupernetConfig, list_supernets

from .refusing import refuse
from .runs.trained import DEFAULTS
from .typed_numbers import whole

S = TypeVar("S")

MOST_THREADS = 1024
# What commands choose themselves, or offer in their own words.
OF_THE_COMMAND = (
    *("supernet", "split", "reward", "observation"),
    *("normalize_actions", "cost_conditioning", "render_mode"),
)


def choice(names: Callable[[], Iterable[str]]) -> Any:
    """Marks a text as one of some names, which are looked up when a command line is read: plug-ins add to them.

    Args:
        names: What gives the names.
    """

    def literal() -> Any:
        return Literal[tuple(names())]

    return arg(constructor_factory=literal, help_behavior_hint=_default_of_choice)


def _default_of_choice(label: str) -> str:
    """The end of a help text; tyro gives the default of such an option as a list."""
    if "MISSING" in label:
        return "(required)"
    return f"(default: {label.strip('[]').strip(chr(39))})"


def _token_modes() -> list[str]:
    return token_modes(SupernetConfig())


Split = Literal["train", "val", "test"]
Observation = Annotated[str, choice(list_observations)]
TokenMode = Annotated[str, choice(_token_modes)]
DType = Annotated[str, choice(lambda: DTYPES)]
SupernetName = Annotated[str, choice(list_supernets)]
Device = Annotated[str, arg(help="Torch device: cpu, cuda, cuda:1, ...")]
SaveFreq = Annotated[float, arg(help="Seconds between two checkpoints.")]
Trust = Annotated[
    bool, arg(help="Read files that can run code, as SB3's zip files can, though this user has not written them here.")
]
Effort = Annotated[
    Literal["full", "small"],
    arg(help="small: a quick look, with the sizes that are said above; what is given beside it wins."),
]


def parse_dataset(text: str | None) -> str | dict[str, Any] | None:
    """What `--dataset` says, as environments take it: a name, or the fields of `DatasetConfig`.

    Raises:
        ValueError: If the text begins like JSON and is none.
    """
    if text is None or not text.lstrip().startswith("{"):
        return text
    try:
        parsed: dict[str, Any] = json.loads(text)
    except json.JSONDecodeError as e:
        raise ValueError(
            f'--dataset {text} is not JSON ({e}); quote it for the shell: --dataset \'{{"name": "FOLDER", '
            '"crop_pct": 0.9}\'.'
        ) from e
    return parsed


def _dataset_of(words: list[str]) -> str | dict[str, Any] | None:
    try:
        return parse_dataset(words[0])
    except ValueError as e:
        refuse(e)


def _checked_threads(threads: int) -> int:
    """So many threads.

    Raises:
        ValueError: If there cannot be as many: more end the process inside OpenMP.
    """
    if not 0 <= threads <= MOST_THREADS:
        raise ValueError(f"--threads {threads} must be from 0 to {MOST_THREADS}; 0 leaves torch's choice.")
    return threads


def _threads_of(words: list[str]) -> int:
    number = whole(words[0])
    try:
        return _checked_threads(number)
    except ValueError as e:
        refuse(e)


_THREADS = PrimitiveConstructorSpec[int](
    nargs=1,
    metavar="INT",
    instance_from_str=_threads_of,
    is_instance=lambda value: isinstance(value, int),
    str_from_instance=lambda value: [str(value)],
)
Threads = Annotated[int, _THREADS, arg(help="CPU threads of torch; 0 leaves torch's choice.")]
_DATASET = PrimitiveConstructorSpec[Any](
    nargs=1,
    metavar="NAME|FOLDER|JSON",
    instance_from_str=_dataset_of,
    is_instance=lambda value: isinstance(value, str | dict),
    str_from_instance=lambda value: [value if isinstance(value, str) else json.dumps(value)],
)
DatasetOption = Annotated[str | dict[str, Any], _DATASET]
# How the command line says it, where that differs from what the argument's own description says, and what counts if it
# says nothing.
_HELP = {
    "checkpoint": ("Folder with the supernet.", "the bundled one if not given"),
    "decide_first_group": (
        "Whether a decision precedes the first group, too, which is one more an episode; it needs groups of equally "
        "many blocks.",
        "as the checkpoint says, usually not, if not given",
    ),
    "dataset": (
        "Images: digits, a folder in ImageNet's layout, a timm name such as hfds/..., or JSON such as "
        '{"name": "wds/shards", "num_samples": 50000} (docs/images.md).',
        "those of the environment id if not given",
    ),
}


def environment_options(
    without: Collection[str] = (), settings: type[EnvSettings] = EnvSettings, noted: str = ""
) -> type:
    """What tyro makes the options of an environment from: those arguments of `EnvSettings` that a command line can say.

    Args:
        without: Arguments that a command offers in its own words.
        settings: The list of arguments.
        noted: Who says, if the command line does not, what results depend on; empty: the environment's id.
    """
    hints, docs = get_type_hints(settings), field_docs(settings)
    types: dict[str, Any] = {"token_mode": TokenMode | None, "dtype": DType, "on_error": Literal[tuple(ON_ERROR)]}
    types["dataset"] = Annotated[Any, _DATASET]  # None is no data set that an environment can be made with
    options = {}
    for f in fields(settings):
        if f.name not in (*OF_THE_COMMAND, *without):
            kind = types.get(f.name) or _as_typed(hints[f.name])
            text, usual = _HELP.get(f.name, (docs[f.name], "" if f.default is None else f"usually {f.default}"))
            usual = f"{noted} if not given" if noted and f.name in DEFAULTS else usual
            options[f.name] = Annotated[kind, arg(help=text, help_behavior_hint=usual and f"({usual})")]
    # The functional form, since the names are only known now.
    return TypedDict("EnvironmentOptions", options, total=False)  # type: ignore[operator]


def override_options(settings: type, without: Collection[str] = (), said: Mapping[str, str] | None = None) -> type:
    """What tyro makes options from that change settings: the fields of a dataclass, none of which has to be given.

    Args:
        settings: The dataclass.
        without: Fields that a command offers in its own words.
        said: What counts where the dataclass's default does not, by field; None: what a preset says, for all of them.
    """
    hints, docs = get_type_hints(settings, include_extras=True), field_docs(settings)
    options = {}
    for f in fields(settings):
        if f.name not in without:
            usual = "as the preset says" if said is None else said.get(f.name, f"default: {_in_words(f.default)}")
            kind = _as_typed(hints[f.name])
            options[f.name] = Annotated[kind, arg(help=docs[f.name], help_behavior_hint=f"({usual})")]
    return TypedDict(f"{settings.__name__}Overrides", options, total=False)  # type: ignore[operator]


def _in_words(default: Any) -> str:
    """A default as it would be typed."""
    if isinstance(default, tuple):
        return " ".join(map(str, default)) or "left out"
    return str(default) or "none"


def _as_typed(kind: Any) -> Any:
    """`bool | None` to `bool`: a flag takes no word, so that it is left out for None; others take the word None."""
    return bool if kind == bool | None else kind


EnvironmentOptions = Annotated[EnvArguments, arg(constructor_factory=environment_options)]
"""The arguments of an environment that were given; what is missing is as the environment's id says."""


def noted_options(noted: str) -> Any:
    """`EnvironmentOptions` where somebody else says what is missing, but for device, cache and workers."""
    return arg(constructor_factory=partial(environment_options, noted=noted))


def given_flags(settings: Any, names: Collection[str]) -> list[str]:
    """Those of the fields `names` that are not at their defaults, as they are typed."""
    usual = {f.name: f.default for f in fields(settings)}
    return [f"--{name.replace('_', '-')}" for name in names if getattr(settings, name) != usual[name]]


def narrowed(command: Any, settings: type[S]) -> S:
    """The settings within a command, whose class adds options such as `out` and `threads` to them."""
    return settings(**{f.name: getattr(command, f.name) for f in fields(settings)})  # type: ignore[arg-type]


def check_file(out: Path | None, *endings: str) -> None:
    """Refuses, before anything is computed, a file that could not be written in the end, or replaces something else.

    Args:
        out: The file; it may be in folders that are yet to be made. None: the output, or nothing.
        *endings: Of names, such as ".csv", that the command's files have; a file that is there may have no other.

    Raises:
        FileExistsError: If another kind of file is there.
        ValueError: If it is a folder, or in a file.
        PermissionError: If its folder may not be changed.
    """
    if out is None:
        return
    if out.is_dir():
        raise ValueError(f"--out {out} is a folder; pass the name of a file, such as {out / 'name'}{out.suffix}.")
    if out.is_file() and out.suffix.lower() not in endings:
        raise FileExistsError(
            f"--out {out} is there already, and only a file that ends with {' or '.join(endings)} is replaced; pass "
            "another --out."
        )
    above = next(folder for folder in out.absolute().parents if folder.exists())
    if not above.is_dir():
        raise ValueError(f"--out {out} cannot be: {above} is a file.")
    if not os.access(above, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(above))


def set_threads(threads: int) -> None:
    """Gives torch so many threads.

    Raises:
        ValueError: If there cannot be as many.
    """
    import torch

    if _checked_threads(threads):
        torch.set_num_threads(threads)
