"""docs/environment.md is what the code makes of the docstrings, and the docstrings tell the truth about the code."""

from __future__ import annotations

import inspect
import re

import gymnasium as gym
import pytest
from helpers import ENV_ID, INFO_KEYS

from prance_env import PranceEnv, PranceVectorEnv, wrappers
from prance_env.observations import list_observations
from prance_env.settings import EnvSettings
from tools.environment_page import PAGE, environment_page, split_docstring

TEXT = PAGE.read_text()


def section(title: str) -> str:
    """The page between one heading and the next."""
    found = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", TEXT, re.DOTALL | re.MULTILINE)
    assert found is not None, title
    return found[1]


def first_cells(title: str) -> list[str]:
    """First column of the tables of a section."""
    return re.findall(r"^\| `?(.+?)`? \|", section(title), re.MULTILINE)


def test_the_page_is_the_one_that_the_code_gives() -> None:
    assert environment_page() == TEXT, "run `python -m tools.environment_page`"


def test_every_argument_info_key_and_wrapper_is_on_the_page() -> None:
    assert first_cells("Arguments")[2:] == list(inspect.signature(PranceEnv).parameters)
    assert first_cells("Info")[2:] == [*INFO_KEYS, "macs_weight", "latency_ms"]
    own = set(inspect.signature(PranceVectorEnv).parameters) - set(inspect.signature(PranceEnv).parameters)
    assert set(first_cells("As a native batch")[2:]) == own
    classes = [n for n, c in vars(wrappers).items() if inspect.isclass(c) and c.__module__ == wrappers.__name__]
    for name in classes:
        if not name.startswith("_"):
            assert f"`{name}`" in section("Wrappers"), name


def test_slices_and_ranges_are_those_of_the_spaces() -> None:
    text = section("Observation Space")
    for observation in list_observations():
        settings = EnvSettings.from_id(ENV_ID, observation=observation)
        box = settings.spaces()[0]
        table = text.split(f'with `observation="{observation}"`, ')[1].split("\n\n")[1]
        for name, place in settings.layout().items():
            low, high = box.low[place].min(), box.high[place].max()
            assert f"| `[{place.start}:{place.stop}]` | `{name}` | [{low:g}, {high:g}] |" in table
    assert f"{gym.make(ENV_ID).action_space.shape}" in TEXT.split("## ")[0]


def test_the_docstring_lists_as_many_parts_as_an_observation_has() -> None:
    rows = split_docstring(PranceEnv)[0]["Observation Space"].split("\n|")[3:]
    assert len(rows) == len(EnvSettings.from_id(ENV_ID, observation="cls").layout())


def test_an_undocumented_argument_is_found() -> None:
    class Forgetful:
        """One line.

        Args:
            known: That.
        """

        def __init__(self, known: int, unknown: int) -> None: ...

    with pytest.raises(ValueError, match=r"Forgetful documents the arguments \['known'\], but takes .*'unknown'"):
        split_docstring(Forgetful)
