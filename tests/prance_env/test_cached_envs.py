"""Environments over files: the cache changes no number, and memory does not grow."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import CONFIGS, random_net
from image_files import image_folder

from prance_env import PranceVectorEnv
from prance_env.cache import HEADER_BYTES, MEBIBYTE, DiskStore
from supernet import Supernet, save_pretrained
from tools.soak import resident_megabytes


def assert_same(a: list[np.ndarray[Any, Any]], b: list[np.ndarray[Any, Any]]) -> None:
    """Bit for bit."""
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(x, y)


def environment(folder: Path, weights: Path, num_envs: int = 4, **kwargs: Any) -> PranceVectorEnv:
    """Lanes over image files."""
    return PranceVectorEnv(
        num_envs, "SAME_STEP", checkpoint=str(weights), dataset=str(folder), split="val", num_workers=2, **kwargs
    )


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Colour images of 32 pixels, three classes."""
    folder = tmp_path_factory.mktemp("weights")
    save_pretrained(random_net(replace(CONFIGS["conv-fixed-lln"], num_classes=3)), folder)
    return folder


def rollout(envs: PranceVectorEnv, steps: int) -> list[np.ndarray[Any, Any]]:
    """Observations, rewards and images of some steps."""
    out = [envs.reset(seed=3)[0]]
    rng = np.random.default_rng(0)
    for _ in range(steps):
        actions = rng.uniform(-1, 1, envs.action_space.shape or ()).astype(np.float32)
        observations, rewards, _, _, infos = envs.step(actions)
        out += [observations, rewards, infos["index"]]
    return out


@pytest.mark.slow
def test_environments_over_files_do_not_notice_the_cache(weights: Path, tmp_path: Path) -> None:
    folder = image_folder(tmp_path / "images", 8)
    plain = rollout(environment(folder, weights), 12)
    for kwargs in (
        {"cache_mb": 0},
        {"cache_mb": 0.05},
        {"cache_dir": str(tmp_path / "c")},
        {"cache_dir": str(tmp_path / "c")},
    ):
        assert_same(rollout(environment(folder, weights, **kwargs), 12), plain)
    (path,) = (p for p in (tmp_path / "c").iterdir() if p.suffix != ".lock")
    assert path.stat().st_size > HEADER_BYTES


@pytest.mark.slow
def test_memory_does_not_grow_over_many_resets(tmp_path: Path) -> None:
    config = replace(CONFIGS["conv-fixed-lln"], num_classes=3, img_size=128)
    save_pretrained(Supernet(config), tmp_path)
    envs = environment(image_folder(tmp_path / "images", 40), tmp_path, 8, cache_mb=0, reward={"mode": "terminal"})
    rollout(envs, 80)  # warms up: allocators and decoders take what they need for these very episodes
    before = resident_megabytes()
    rollout(envs, 80)
    episodes = 8 * 80 / config.space.num_decisions
    image, prefix = 3 * 128**2 / MEBIBYTE, (config.num_patches + 1) * config.embed_dim * 4 / MEBIBYTE
    assert resident_megabytes() - before < 0.4 * episodes * min(image, prefix)


def test_bundled_weights_can_be_cached_on_disk(tmp_path: Path) -> None:
    envs = PranceVectorEnv(4, split="val", cache_dir=str(tmp_path))
    plain = PranceVectorEnv(4, split="val")
    assert_same(rollout(envs, 7), rollout(plain, 7))
    assert isinstance(envs.lanes.engine.cache.store, DiskStore)
