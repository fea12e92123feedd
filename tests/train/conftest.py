"""What tests of training and evaluation share."""

from __future__ import annotations

import pytest
from helpers import make_engine

from prance_env import InferenceEngine
from supernet import Supernet


@pytest.fixture(scope="module")
def engine(digits_net: Supernet) -> InferenceEngine:
    """Sixty images of noise before a random supernet."""
    return make_engine(digits_net, 60)
