"""Networks shared by the tests of supernets."""

from __future__ import annotations

import pytest
from helpers import random_net
from mode_nets import AUTHORS, CASES, OURS, make_config

from supernet import Supernet
from supernet.tokens import modes


@pytest.fixture(scope="session", params=CASES.values(), ids=list(CASES))
def net(request: pytest.FixtureRequest) -> Supernet:
    """A random frozen supernet for every mode, architecture and first group."""
    return random_net(make_config(*request.param))


@pytest.fixture(
    scope="session",
    params=[(mode, "class-token") for mode in OURS] + [(mode, "authors") for mode in AUTHORS],
    ids="-".join,
)
def mode_net(request: pytest.FixtureRequest) -> Supernet:
    """One network with a class token for every mode."""
    return random_net(make_config(*request.param, decide_first=True))


@pytest.fixture
def own_modes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Token modes that the test registers are forgotten after it."""
    monkeypatch.setattr(modes._OURS, "_things", dict(modes._OURS._things))
