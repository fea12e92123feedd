"""Tables and files of results."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.padding import Padding
from rich.table import Table as RichTable
from rich.text import Text

from supernet.files import write_text

GAP = 2
"""Spaces between columns."""
NAME_WIDTHS = 14, 24
"""Names break to no less than this; and up to that they are rather kept on one line than what is behind them."""
WORDS, NAMES, NUMBERS = (
    re.compile(r"(?<= )(?=\S)"),
    re.compile(r"(?<=[ /_-])(?=[^ /_-])"),
    re.compile(r"(?<= )(?=\S)(?![^(]*\))"),
)
"""Where cells break."""


class Table:
    """A table that fits where it is printed, without cutting anything: 80 columns, if it goes into a file or a pipe.

    What is too long for one line breaks between words; names, which are in the first column, also after "/", "-" and
    "_", and numbers not within brackets. If that does not suffice, every row becomes a
    list of its cells.

    Args:
        headers: Of the first columns; more by `add_column`.
        title: Above it.
        caption: Below it.
    """

    def __init__(self, *headers: str, title: str = "", caption: str = "") -> None:
        self.title, self.caption = title, caption
        self.headers: list[str] = []
        self.rows: list[tuple[str, ...]] = []
        self._breaks: list[re.Pattern[str]] = []
        for header in headers:
            self.add_column(header)

    def add_column(self, header: str, justify: Literal["left", "right"] = "left") -> None:
        """One more column; "right" is for numbers."""
        self._breaks.append((NUMBERS if justify == "right" else WORDS) if self.headers else NAMES)
        self.headers.append(header)

    def add_row(self, *cells: str) -> None:
        """One more row; cells that are missing at its end are empty."""
        self.rows.append((*cells, *[""] * (len(self.headers) - len(cells))))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        if self.title:
            yield Text(self.title, style="bold")
        widths = self.widths(options.max_width)
        yield self._as_list() if widths is None else self._as_table(widths)
        if self.caption:
            yield Text(self.caption, style="italic")
        yield Text()

    def widths(self, room: int) -> list[int] | None:
        """Widths at which the columns stand beside each other in `room` characters; None if they cannot."""
        columns = [
            [(header, WORDS), *((row[i], breaks) for row in self.rows)]
            for i, (header, breaks) in enumerate(zip(self.headers, self._breaks, strict=True))
        ]
        natural = [max(cell_len(cell) for cell, _ in column) for column in columns]
        widths = [max((cell_len(a) for cell, by in column for a in atoms(cell, by)), default=0) for column in columns]
        widths[0] = max(widths[0], min(natural[0], NAME_WIDTHS[0]))
        left = room - GAP * (len(columns) - 1) - sum(widths)
        if left < 0:
            return None
        wanted = [(0, min(natural[0], NAME_WIDTHS[1])), *enumerate(natural[1:], 1), (0, natural[0])]
        for i, width in wanted:
            more = max(0, min(left, width - widths[i]))
            widths[i], left = widths[i] + more, left - more
        return widths

    def _as_table(self, widths: Sequence[int]) -> RichTable:
        table = RichTable(box=box.SIMPLE_HEAD, padding=(0, GAP - 1, 0, 0), pad_edge=False, show_edge=False)
        for header, breaks, width in zip(self.headers, self._breaks, widths, strict=True):
            justify: Any = "right" if breaks is NUMBERS else "left"
            table.add_column(Text(broken(header, WORDS, width)), justify=justify, width=width)
        for row in self.rows:
            cells = zip(row, self._breaks, widths, strict=True)
            table.add_row(*(Text(broken(cell, breaks, width)) for cell, breaks, width in cells))
        return table

    def _as_list(self) -> Group:
        parts: list[RenderableType] = []
        for first, *others in self.rows:
            parts.append(Text(f"{self.headers[0]} {first}".strip()))
            cells = zip(self.headers[1:], others, strict=True)
            parts += [Padding(Text(f"{header}: {cell}"), (0, 0, 0, 4), expand=False) for header, cell in cells if cell]
        return Group(*parts)


def atoms(cell: str, breaks: re.Pattern[str]) -> list[str]:
    """The pieces between which a cell may break."""
    return [piece.strip() for piece in breaks.split(cell) if piece.strip()]


def broken(cell: str, breaks: re.Pattern[str], width: int) -> str:
    """A cell in lines of at most `width` characters, if its pieces are no longer."""
    lines = [""]
    for piece in breaks.split(cell):
        if lines[-1] and cell_len((lines[-1] + piece).rstrip()) > width:
            lines[-1] = lines[-1].rstrip()
            lines.append("")
        lines[-1] += piece if lines[-1] else piece.lstrip()
    return "\n".join(lines)


def results_table(title: str, rows: dict[str, dict[str, Any]]) -> Table:
    """One line per summary; with intervals, patches after each decision, returns and latency where known."""
    timed, scored = (any(key in s for s in rows.values()) for key in ("latency_ms", "return"))
    table = Table(title=title)
    for column in ("", "accuracy", "MACs / full", "params / full", "patches left", "images"):
        table.add_column(column, justify="left" if not column else "right")
    if scored:
        table.add_column("return", justify="right")
    for column in ("ms / image", "ms / full") if timed else ():
        table.add_column(column, justify="right")
    for name, s in rows.items():
        patches = s.get("patches_after", [s["patches_fraction"]])
        cells = [
            f"{s['accuracy']:.2%}{_interval(s, 'accuracy', 2)}",
            f"{s['macs_fraction']:.1%}{_interval(s, 'macs_fraction', 1)}",
            f"{s['params_fraction']:.1%}",
            " ".join(f"{p:.1%}" for p in patches),
            str(s["n_images"]),
        ]
        if scored:
            cells.append(f"{s['return']:.4f}" if "return" in s else "")
        if timed:
            cells += [f"{s['latency_ms']:.3f}", f"{s['latency_fraction']:.2f}"] if "latency_ms" in s else ["", ""]
        table.add_row(name, *cells)
    return table


def _interval(summary: dict[str, Any], key: str, digits: int) -> str:
    if f"{key}_interval" not in summary:
        return ""
    low, high = (f"{100 * v:.{digits}f}" for v in summary[f"{key}_interval"])
    return f" ({low} .. {high})"


def markdown_table(rows: dict[str, dict[str, Any]], first: str = "") -> str:
    """A Markdown table with one line per summary; `first` heads the column of their names."""
    lines = [f"| {first} | accuracy | MACs / full | patches left | images |", "|---|---:|---:|---:|---:|"]
    lines += [
        f"| {name} | {s['accuracy']:.2%} | {s['macs_fraction']:.1%} | {s['patches_fraction']:.1%} | {s['n_images']} |"
        for name, s in rows.items()
    ]
    return "\n".join(lines)


def write_json(path: Path, data: Any) -> None:
    """Writes JSON atomically."""
    write_text(path, json.dumps(data, indent=2) + "\n")
