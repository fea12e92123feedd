"""Whether labels and logits speak of the same classes: by their names, and by what a class map says of others."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from train.networks.classes import Meaning

NAMES, TURNED = ("class_0", "class_1", "class_2"), ("class_1", "class_2", "class_0")
ANIMALS = ("cat", "dog", "cow")
MAP = "map.txt"


def meaning(own: Sequence[str], called: Sequence[str] = NAMES, class_map: str | None = None) -> Meaning:
    source: Any = SimpleNamespace(class_names=dict(enumerate(called)))
    return Meaning.of(source, class_map, own)


def test_a_teacher_is_not_of_the_images_because_the_student_is_not_either() -> None:
    for own in (ANIMALS, ()):
        with pytest.raises(ValueError, match=r"It knows the classes \['cat', .* stand for \['class_0'"):
            meaning(own).order(ANIMALS, "It")
    assert meaning(ANIMALS, ANIMALS[:2]).order(ANIMALS, "It") is None
    assert meaning(ANIMALS, ()).order(ANIMALS, "It") is None  # nobody says what the labels are


def test_a_class_map_gives_other_words_but_does_not_move_those_that_are_known() -> None:
    assert meaning(ANIMALS, class_map=MAP).is_own
    assert meaning(ANIMALS, ("cat", "hound", "cow"), MAP).is_own
    assert not meaning(ANIMALS, ("dog", "hound", "cow"), MAP).is_own
    for own in (TURNED, ()):
        turned = meaning(own, class_map=MAP)
        assert not (own and turned.is_own)
        assert turned.order(TURNED, "It") == [2, 0, 1]
    assert meaning(ANIMALS, class_map=MAP).order(("horse", "hen", "hare"), "It") is None  # whoever maps says so
    with pytest.raises(ValueError, match=r"It knows the classes \['dog', .* stand for \['cat'"):
        meaning(ANIMALS, class_map=MAP).order(("dog", "cat", "horse"), "It")


def test_what_a_run_has_noted_are_nobodys_other_words(tmp_path: Path) -> None:
    file = tmp_path / "class_names.txt"
    file.write_text("\n".join(NAMES))
    assert meaning(ANIMALS, class_map=str(file)).is_own  # a file of the user's, whatever it is called
    (tmp_path / "config.yml").touch()
    moved = meaning(ANIMALS, class_map=str(file))
    assert not moved.is_own
    with pytest.raises(ValueError, match="It knows the classes"):
        moved.order(ANIMALS, "It")
    assert meaning(NAMES, class_map=str(file)).is_own
