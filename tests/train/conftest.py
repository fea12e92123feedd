"""What tests of training and evaluation share."""

from __future__ import annotations

import numpy as np
import pytest
from adaptive_models import price_minded
from helpers import make_engine

from prance_env import InferenceEngine
from supernet import Supernet


@pytest.fixture(scope="module")
def engine(digits_net: Supernet) -> InferenceEngine:
    """Sixty images of noise before a random supernet."""
    return make_engine(digits_net, 60)


@pytest.fixture(scope="module")
def model(digits_net: Supernet, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a saved model with a calibration and a menu."""
    made = price_minded(digits_net)
    images = make_engine(digits_net, 24).dataset.fetch(np.arange(24))
    made.calibrate(images)
    made.make_menu(images, 4)
    folder = tmp_path_factory.mktemp("model")
    made.save_pretrained(folder)
    return str(folder)
