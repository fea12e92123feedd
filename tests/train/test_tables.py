"""Tables fit where they are printed, and nothing of them is cut."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

import train
from train.report.tables import NAMES, NUMBERS, WORDS, Table, broken

WORD = st.text(alphabet="abcdef0123456789%", min_size=1, max_size=9)
NAME = st.lists(WORD, min_size=1, max_size=4).map("/".join)
CELL = st.lists(WORD, min_size=0, max_size=4).map(" ".join)


def printed(table: Table, width: int) -> list[str]:
    console = Console(width=width)
    with console.capture() as capture:
        console.print(table)
    return capture.get().splitlines()


@given(st.lists(st.tuples(NAME, CELL, CELL, CELL), min_size=1, max_size=4), st.integers(40, 120))
def test_every_character_is_printed_in_the_room_there_is(rows: list[tuple[str, ...]], width: int) -> None:
    table = Table("", "accuracy", title="what")
    table.add_column("MACs / full", justify="right")
    table.add_column("words")
    for row in rows:
        table.add_row(*row)
    lines = printed(table, width)
    assert max(map(len, lines)) <= width
    text = "".join(lines)
    for row in rows:
        for cell in row:
            for piece in re.split(r"[ /]", cell):
                assert piece in text
    assert sorted(re.sub(r"[^a-f0-9%]", "", "".join("".join(row) for row in rows))) == sorted(
        re.sub(r"[^a-f0-9%]", "", re.sub("what|accuracy|MACs|full|words", "", text))
    )


def test_what_is_too_long_breaks_where_it_can_be_read() -> None:
    assert broken("runs/agents/ppo-3", NAMES, 12) == "runs/agents/\nppo-3"
    assert broken("prance_vit_small", NAMES, 16) == "prance_vit_small"
    assert broken("96.48% (95.00 .. 97.00)", NUMBERS, 18) == "96.48%\n(95.00 .. 97.00)"
    assert broken("65.7% 51.4% 48.0%", NUMBERS, 12) == "65.7% 51.4%\n48.0%"
    assert broken("McNemar p", WORDS, 8) == "McNemar\np"


def test_numbers_stand_beside_each_other_or_below() -> None:
    table = Table("", title="pairs")
    for header in ("accuracy", "MACs / full"):
        table.add_column(header, justify="right")
    table.add_row("runs/ppo - runs/prance", "+1.05% (+0.60 .. +1.54)", "+5.64% (+5.49 .. +5.79)")
    wide, medium, narrow = (printed(table, width) for width in (80, 60, 30))
    assert " ".join(wide[3].split()) == "runs/ppo - runs/prance +1.05% (+0.60 .. +1.54) +5.64% (+5.49 .. +5.79)"
    assert [line.split()[-1] for line in medium[3:5]] == ["+5.64%", "+5.79)"]
    assert [line.rstrip() for line in narrow[1:4]] == [
        "runs/ppo - runs/prance",
        "    accuracy: +1.05% (+0.60 ..",
        "    +1.54)",
    ]


def test_there_is_one_kind_of_table() -> None:
    root = Path(train.__file__).parent.parent
    files = [*(root / "train").rglob("*.py"), *(root / "tools").rglob("*.py")]
    others = [f for f in files if "rich.table" in f.read_text() and f.name != "tables.py"]
    assert others == []


@pytest.mark.parametrize("columns", ["80", "50"])
def test_what_there_is_is_listed_in_whole(
    columns: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from command_line import prance

    monkeypatch.setenv("COLUMNS", columns)
    prance(monkeypatch, "list")
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= int(columns)
    assert "…" not in shown
    for name in ("Prance-Digits-v0", "prance_vit_small", "datacomp_xl_s13b_b90k"):
        assert name in shown
