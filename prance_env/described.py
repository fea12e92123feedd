"""What the faces of the environment say about their arguments, taken from the descriptions of the settings' fields."""

from __future__ import annotations

import ast
import inspect
import textwrap
from dataclasses import MISSING, fields
from typing import Any, TypeVar

C = TypeVar("C", bound="type[Any]")


def field_docs(cls: type) -> dict[str, str]:
    """The description under every field of a dataclass, on one line each, those of its base classes included.

    Raises:
        ValueError: If a field has none.
    """
    found: dict[str, str] = {}
    for base in reversed([c for c in cls.__mro__ if hasattr(c, "__dataclass_fields__")]):
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
        assert isinstance(body, ast.ClassDef)
        for node, following in zip(body.body, body.body[1:], strict=False):
            if not (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)):
                continue
            if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
                found[node.target.id] = " ".join(str(following.value.value).split())
    if missing := [f.name for f in fields(cls) if f.name not in found]:
        raise ValueError(f"{cls.__name__}: the fields {missing} have no description under them.")
    return {f.name: found[f.name] for f in fields(cls)}


def takes_settings(face: C) -> C:
    """Class decorator of the faces: what `**arguments` stands for, in the signature and in the docstring.

    The docstring's line `**arguments: ...` is replaced by one entry for each field of the class's `settings_class`.
    """
    settings: type[Any] = vars(face)["settings_class"]
    own = list(inspect.signature(vars(face)["__init__"]).parameters.values())[1:-1]
    keyword = inspect.Parameter.KEYWORD_ONLY
    listed = [
        inspect.Parameter(f.name, keyword, default=f.default, annotation=f.type)
        for f in fields(settings)
        if f.default is not MISSING
    ]
    setattr(face, "__signature__", inspect.Signature([*own, *listed]))  # noqa: B010
    entries = "\n".join(
        textwrap.fill(f"{name}: {text}", 112, initial_indent=" " * 8, subsequent_indent=" " * 12)
        for name, text in field_docs(settings).items()
    )
    lines = (face.__doc__ or "").split("\n")
    at = next(i for i, line in enumerate(lines) if line.strip().startswith("**arguments:"))
    after = next((i for i in range(at + 1, len(lines)) if not lines[i].startswith(" " * 12)), len(lines))
    face.__doc__ = "\n".join([*lines[:at], entries, *lines[after:]])
    return face
