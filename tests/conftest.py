"""Fixtures shared by the tests."""

from __future__ import annotations

import gc
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import cpu_triton  # noqa: F401
import pytest
import torch
from helpers import random_net
from hypothesis import settings as hypothesis_settings

from prance_env import settings
from prance_env.images import loading
from supernet import SearchSpace, Supernet, SupernetConfig, save_pretrained, supernet_config

torch.set_num_threads(1)
# Ctrl-C as a terminal has it: a shell starts what is in the background with Ctrl-C ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
hypothesis_settings.register_profile("reproducible", deadline=None, derandomize=True, database=None, max_examples=60)
hypothesis_settings.load_profile("reproducible")

FEW_SCENES = 256
CONFIGS = {
    "conv-tied-lln": supernet_config("digits"),
    "patch-fixed-plain": SupernetConfig(
        SearchSpace((2, 1, 1, 1), (20, 24, 40), (1.5, 3.3), (3,), 0.2), 40, 8, 3, 5, head_dim=8, lln=False
    ),
    "patch-tied-plain": SupernetConfig(
        SearchSpace((1, 2, 2), (8, 24, 32), (1, 2), (1, 3, 3), 0.05), 24, 4, 3, 7, head_dim=8, lln=False
    ),
    "conv-fixed-lln": SupernetConfig(
        SearchSpace((1, 3, 3), (16, 28, 36), (0.5, 2), (2,), 0.1), 32, 8, 3, 6, head_dim=12, stem="conv"
    ),
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that need a GPU are skipped without one."""
    for item in items:
        if item.get_closest_marker("cuda") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a GPU"))


def pytest_collection_finish() -> None:
    """What was imported stays: a collection of garbage takes milliseconds if it need not look at it."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def digits_net() -> Supernet:
    """The digits supernet with random weights of std .2, so that its outputs are not degenerate; frozen, shared."""
    return random_net(CONFIGS["conv-tied-lln"])


@pytest.fixture(scope="session", params=CONFIGS.values(), ids=list(CONFIGS))
def any_net(request: pytest.FixtureRequest) -> Supernet:
    """A random frozen supernet of every kind: stem, heads tied to the width or fixed, `lln` on and off."""
    return random_net(request.param)


@pytest.fixture(scope="session")
def random_images() -> Callable[[Supernet, int], torch.Tensor]:
    """Uniform noise of the size that a supernet takes."""

    def images(net: Supernet, batch_size: int) -> torch.Tensor:
        c = net.config
        generator = torch.Generator().manual_seed(batch_size)
        return torch.rand(batch_size, c.in_chans, c.img_size, c.img_size, generator=generator)

    return images


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Random weights for colour images of 32 pixels and three classes."""
    folder = tmp_path_factory.mktemp("supernet")
    save_pretrained(random_net(replace(CONFIGS["conv-fixed-lln"], num_classes=3)), folder)
    return str(folder)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train and val, three classes of twelve images each."""
    from image_files import image_folder

    return image_folder(tmp_path_factory.mktemp("images"), per_class=12)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Arguments of environments over the smallest supernet: for tests of many steps."""
    from noise_envs import tiny_kwargs

    return tiny_kwargs(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session", autouse=True)
def scenes_rendered_once() -> Iterator[None]:
    """The scenes of Digits are rendered once in a process, however many engines ask for them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "make_scenes", lru_cache(maxsize=None)(loading.make_scenes))
        yield


@contextmanager
def scenes(**numbers: int) -> Iterator[None]:
    """The data set Digits with other numbers of scenes, by split; engines over all of them stay for other modules."""
    with pytest.MonkeyPatch.context() as patch:
        for split, number in numbers.items():
            patch.setitem(loading.DIGITS_SCENES, split, number)
        patch.setattr(settings, "shared_engine", lru_cache(maxsize=8)(settings.shared_engine.__wrapped__))
        yield


@pytest.fixture(scope="module")
def few_scenes() -> Iterator[int]:
    """The data set Digits with few scenes in every split, for what renders or evaluates all of them; their number."""
    with scenes(train=FEW_SCENES, val=FEW_SCENES, test=FEW_SCENES):
        yield FEW_SCENES
