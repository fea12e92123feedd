"""Writes the tables of docs/timm.md, which ViTs of timm can be imported: `python -m tools.timm_kinds`.

Every pretrained tag of timm's modules for plain ViTs is tried on the device "meta", with two blocks, as the blocks of a
model of timm are all alike. The tables say which version of timm was asked.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import timm
import torch

from supernet import SupernetConfig
from supernet.convert.timm import timm_config
from supernet.files import write_text
from supernet.stems import OWN_STEMS

PAGE = Path(__file__).parent.parent / "docs" / "timm.md"
MODULES = ("vision_transformer", "deit", "vision_transformer_hybrid")
BEGIN, END = "<!-- Written by `python -m tools.timm_kinds`. -->", "<!-- End of what is written. -->"

KINDS: dict[str, tuple[Callable[[SupernetConfig], bool], str]] = {
    "class token is classified": (
        lambda c: c.global_pool == "token" and not c.distilled,
        "never dropped or merged",
    ),
    "distillation token, two classifiers": (lambda c: c.distilled, "never dropped; logits are the mean of both"),
    "mean of the patches": (
        lambda c: c.global_pool == "avg",
        "of those that are left, weighted by what they stand for",
    ),
    "attention pooling (`map`)": (
        lambda c: c.global_pool == "map",
        "reads as many channels as the last block has; all else of it at full size",
    ),
    "registers": (lambda c: c.reg_tokens > c.distilled, "never dropped, merged or pooled"),
    "norms of queries and keys": (lambda c: c.qk_norm, "each head has its own; heads are elastic"),
    "norms inside attention and MLP": (lambda c: c.scale_norm, "over the active heads and hidden units"),
    "gated MLP (SwiGLU)": (lambda c: c.glu, "a hidden unit takes its gate along"),
    "RMS norms": (lambda c: c.norm == "rms", "over the active channels, as layer norms"),
    "no norm after the last block": (lambda c: not c.final_norm, "features are as wide as the last block"),
    "norm in the patch embedding": (lambda c: c.patch_norm, "always at full width"),
    "convolutional or hybrid stem": (
        lambda c: c.stem not in OWN_STEMS,
        "runs as it is, at full width; its multiply-accumulates are counted by PyTorch",
    ),
    "no classifier": (lambda c: c.num_classes == 0, "gives its features; `net.reset_classifier(n)` puts one in"),
}
"""Kinds by name: whether a configuration is of it, and what is elastic about it."""


@dataclass(frozen=True)
class Tried:
    """What became of the pretrained tags.

    Attributes:
        accepted: Configuration by tag.
        refused: Reason by tag.
    """

    accepted: dict[str, SupernetConfig]
    refused: dict[str, str]


def try_all() -> Tried:
    """Tries all pretrained tags; those of one architecture differ in weights, classes and how images are prepared."""
    tried = Tried({}, {})
    known: dict[tuple[str, int], SupernetConfig | str] = {}
    for tag in (t for module in MODULES for t in timm.list_models(module=module, pretrained=True)):
        key = (tag.partition(".")[0], timm.get_pretrained_cfg(tag).num_classes)
        if key not in known:
            known[key] = _try(*key)
        found = known[key]
        if isinstance(found, str):
            tried.refused[tag] = found
        else:
            tried.accepted[tag] = found
    return tried


def _try(architecture: str, num_classes: int) -> SupernetConfig | str:
    with torch.device("meta"):
        model = timm.create_model(architecture, depth=2, num_classes=num_classes)
    try:
        return timm_config(model)
    except ValueError as e:
        return str(e)


def tables(tried: Tried) -> str:
    """Both tables, as Markdown."""
    total = len(tried.accepted) + len(tried.refused)
    lines = [
        f"Of timm {timm.__version__}'s {total} pretrained tags of its modules {', '.join(f'`{m}`' for m in MODULES)}, "
        f"{len(tried.accepted)} are accepted ({len(tried.accepted) / total:.1%}):",
        "",
        "| kind | tags | what is elastic about it | for example |",
        "|---|---|---|---|",
    ]
    for kind, (is_of_it, elastic) in KINDS.items():
        tags = [tag for tag, config in tried.accepted.items() if is_of_it(config)]
        example = f"`{min(tags, key=lambda tag: (len(tag), tag))}`" if tags else ""
        lines.append(f"| {kind} | {len(tags)} | {elastic} | {example} |")
    lines += ["", f"The other {len(tried.refused)} are refused:", "", "| tag | why |", "|---|---|"]
    lines += [f"| `{tag}` | {_reason(why)} |" for tag, why in tried.refused.items()]
    return "\n".join(lines) + "\n"


def _reason(message: str) -> str:
    found = re.match(r"This model has (.*); the supernet has no such thing", message)
    return found[1] if found else message


def page_with(text: str, written: str) -> str:
    """The page with other tables between its marks.

    Raises:
        ValueError: If the marks are missing.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"The page lacks {BEGIN!r} or {END!r}, between which the tables stand.")
    return f"{before}{BEGIN}\n\n{written}\n{END}{after}"


if __name__ == "__main__":
    write_text(PAGE, page_with(PAGE.read_text(), tables(try_all())))
