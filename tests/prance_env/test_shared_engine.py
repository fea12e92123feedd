"""One engine for all environments with the same files, and another one when the files are others."""

from __future__ import annotations

import copy
import gc
import json
import os
import shutil
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from command_line import prance
from helpers import ENV_ID, random_net
from image_files import CONFIG, files_of, image_folder, picture
from noise_envs import TINY, noise_dataset
from torch import Tensor, nn

from agents import AdaptiveViT, FullAgent
from prance_env import EnvSettings, make_sb3_env, register_dataset
from prance_env import settings as settings_module
from prance_env.images.loading import DATASETS
from prance_env.rewards.measuring import measure_latency_table
from supernet import (
    Supernet,
    SupernetConfig,
    TokenMode,
    register_stem,
    register_token_mode,
    save_pretrained,
    stems,
)
from supernet.config import with_space
from supernet.tokens import modes
from train.evaluate import evaluate
from train.policies.load_agent import load_agent

Door = Callable[[dict[str, Any]], np.ndarray]
WIDER = replace(TINY, space=replace(TINY.space, embed_dims=(8, 20)))


def net_of(seed: int, config: SupernetConfig = TINY) -> Supernet:
    """Random weights, others for every seed."""
    net = copy.deepcopy(random_net(config))  # which others use, too
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)), alpha=0.1)
    return net


def through_gym(arguments: dict[str, Any]) -> np.ndarray:
    env = gym.make(ENV_ID, **arguments)
    observation, _ = env.reset(seed=0, options={"index": 3})
    assert env.observation_space.contains(observation)
    return observation


def through_vector(arguments: dict[str, Any]) -> np.ndarray:
    envs = gym.make_vec(ENV_ID, num_envs=3, **arguments)
    return envs.reset(options={"index": np.arange(3)})[0]


def through_sb3(arguments: dict[str, Any]) -> np.ndarray:
    envs = make_sb3_env(ENV_ID, n_envs=2, **arguments)
    envs.set_options([{"index": 1}, {"index": 2}])
    observations = envs.reset()
    assert isinstance(observations, np.ndarray)
    return observations


def through_evaluate(arguments: dict[str, Any]) -> np.ndarray:
    settings = EnvSettings(**arguments)
    return evaluate(FullAgent(settings.config()), settings).prediction


def through_load_agent(arguments: dict[str, Any]) -> np.ndarray:
    settings = EnvSettings(**arguments)
    return evaluate(load_agent("random", settings), settings).prediction


def through_adaptive(arguments: dict[str, Any]) -> np.ndarray:
    settings = EnvSettings(**arguments)
    net = AdaptiveViT.from_settings(settings, FullAgent(settings.config()))
    return net(torch.from_numpy(np.stack(settings.engine().dataset.fetch(np.arange(4)).numpy()))).logits.numpy()


DOORS: list[Door] = [
    through_gym,
    through_vector,
    through_sb3,
    through_evaluate,
    through_load_agent,
    through_adaptive,
]


@pytest.fixture(scope="module")
def noise() -> str:
    """The name of twelve images of noise, whose labels fit any of the supernets here."""
    dataset = noise_dataset(net_of(0))
    register_dataset("noise of shared engines", lambda split: dataset)
    return "noise of shared engines"


@pytest.mark.parametrize("door", DOORS, ids=lambda d: d.__name__)
@pytest.mark.parametrize("config", [TINY, WIDER], ids=["same-space", "other-space"])
def test_a_supernet_saved_again_into_its_folder_is_the_one_that_runs(
    door: Door, config: SupernetConfig, noise: str, tmp_path: Path
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    save_pretrained(net_of(1), first)
    before = door({"checkpoint": str(first), "dataset": noise})
    np.testing.assert_array_equal(door({"checkpoint": str(first), "dataset": noise}), before)
    for folder in (first, second):
        save_pretrained(net_of(2, config), folder)
    expected = door({"checkpoint": str(second), "dataset": noise})
    assert expected.shape != before.shape or (expected != before).any()
    np.testing.assert_array_equal(door({"checkpoint": str(first), "dataset": noise}), expected)


def test_the_command_line_sees_a_supernet_that_was_saved_again(
    noise: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accuracy = []
    for seed, folder in ((1, "a"), (2, "a"), (2, "b")):
        save_pretrained(net_of(seed), tmp_path / folder)
        out = tmp_path / f"eval-{len(accuracy)}"
        given = ("--checkpoint", tmp_path / folder, "--dataset", noise, "--out", out)
        prance(monkeypatch, "eval", "--agent", "full", *given)
        accuracy.append(json.loads((out / "metrics.json").read_text())["full"]["accuracy"])
    assert accuracy[1] == accuracy[2] != accuracy[0]


def test_an_environment_goes_on_with_its_files_and_one_with_other_spaces_is_refused(noise: str, tmp_path: Path) -> None:
    save_pretrained(net_of(1), tmp_path)
    arguments: dict[str, Any] = {"checkpoint": str(tmp_path), "dataset": noise}
    running, waiting, settings = gym.make(ENV_ID, **arguments), gym.make(ENV_ID, **arguments), EnvSettings(**arguments)
    agent = FullAgent(settings.config())
    before = running.reset(options={"index": 1})[0]
    kept = weakref.ref(settings.engine())
    save_pretrained(net_of(1, WIDER), tmp_path)
    np.testing.assert_array_equal(running.reset(options={"index": 1})[0], before)
    refusals: list[Callable[[], object]] = [
        waiting.reset,
        lambda: evaluate(agent, settings),
        lambda: AdaptiveViT.from_settings(settings, agent),
    ]
    for use in refusals:
        with pytest.raises(ValueError, match=r"written again with another configuration.*make the environment"):
            use()
    assert EnvSettings(**arguments).engine().config == WIDER
    running.close()
    gc.collect()
    assert kept() is None, "an engine that nobody can ask for takes memory"


def added(folder: Path) -> None:
    picture(77).save(folder / "val" / "class_1" / "zzz.png")


def removed(folder: Path) -> None:
    files_of(folder / "val")[0].unlink()


def written_again(folder: Path) -> None:
    # As long as before and in the same second.
    path = folder / "val" / "class_0" / "000.bmp"
    stat = path.stat()
    picture(99).save(path)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert path.stat().st_size == stat.st_size


def a_class_renamed(folder: Path) -> None:
    (folder / "val" / "class_0").rename(folder / "val" / "class_2b")
    (folder / "train" / "class_0").rename(folder / "train" / "class_2b")


@pytest.mark.parametrize("change", [added, removed, written_again, a_class_renamed], ids=lambda c: c.__name__)
@pytest.mark.parametrize("as_timm_name", [False, True])
def test_images_are_those_that_the_folder_holds(
    change: Callable[[Path], None], as_timm_name: bool, checkpoint: str, tmp_path: Path
) -> None:
    folder = image_folder(tmp_path / "images", 2)
    picture(5).save(folder / "val" / "class_0" / "000.bmp")

    def seen(where: Path) -> tuple[list[int], np.ndarray]:
        dataset = {"name": "torch/folder", "root": str(where)} if as_timm_name else str(where)
        engine = EnvSettings(checkpoint=checkpoint, dataset=dataset, split="val").engine()
        return engine.labels.tolist(), engine.start(np.arange(len(engine.dataset))).prob

    before = seen(folder)
    change(folder)
    shutil.copytree(folder, tmp_path / "copy")
    now, expected = seen(folder), seen(tmp_path / "copy")
    assert now[0] == expected[0]
    np.testing.assert_array_equal(now[1], expected[1])
    assert now[0] != before[0] or (now[1] != before[1]).any()


def test_relative_paths_are_those_of_the_folder_in_which_the_environment_was_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nets = {"one": net_of(1, CONFIG), "two": net_of(2, replace(CONFIG, num_classes=4))}
    for number, (project, net) in enumerate(nets.items()):
        save_pretrained(net, tmp_path / project / "net")
        image_folder(tmp_path / project / "images", 2 + number, splits=())
        table = measure_latency_table(net.config, batch_size=2, num_token_counts=2, repeats=1)
        names = ["class_0", "class_1", "class_2"]
        (tmp_path / project / "classes.txt").write_text("\n".join(names[number:] + names[:number]))
        replace(table, head_ms=float(1 + number)).save(tmp_path / project / "table.json")

    arguments: dict[str, Any] = {
        "checkpoint": "net",
        "dataset": {"name": "images", "class_map": "classes.txt"},
        "reward": {"latency_table": "table.json"},
        "split": "val",
    }
    made, found = {}, {}
    for project in nets:
        monkeypatch.chdir(tmp_path / project)
        made[project] = gym.make(ENV_ID, **arguments)
        found[project] = EnvSettings(**arguments)
    for project, net in nets.items():
        env: Any = made[project].unwrapped
        env.reset(seed=0)
        for settings in (env.settings, found[project]):
            engine = settings.engine()
            assert engine.config == net.config
            seen = len(engine.dataset), int(engine.dataset.labels[0]), settings.reward_config.table.head_ms
            assert seen == ((6, 0, 1.0) if project == "one" else (9, 2, 2.0))
    assert found["one"] != found["two"]


def test_a_class_map_and_a_latency_table_that_were_written_again_are_read_again(
    checkpoint: str, folder: Path, tmp_path: Path
) -> None:
    table = measure_latency_table(
        EnvSettings(checkpoint=checkpoint).config(), batch_size=2, num_token_counts=2, repeats=1
    )
    arguments: dict[str, Any] = {
        "checkpoint": checkpoint,
        "dataset": {"name": str(folder), "class_map": str(tmp_path / "classes.txt")},
        "reward": {"latency_table": str(tmp_path / "table.json")},
        "split": "val",
    }
    labels, milliseconds = [], []
    for number, names in enumerate(("class_0\nclass_1\nclass_2", "class_2\nclass_1\nclass_0")):
        (tmp_path / "classes.txt").write_text(names)
        replace(table, prefix_ms=1000.0 * (1 + number)).save(tmp_path / "table.json")
        info = gym.make(ENV_ID, **arguments).reset(options={"index": 0})[1]
        labels.append(info["label"])
        milliseconds.append(info["latency_ms"] // 1000)
    assert labels == [0, 2]
    assert milliseconds == [1, 2]


def test_a_data_set_registered_anew_is_the_one_that_is_shown(tmp_path: Path) -> None:
    save_pretrained(net_of(1), tmp_path)
    first = noise_dataset(net_of(1))
    other = replace(first, images=255 - first.images)
    for dataset in (first, other):
        DATASETS.remove("again and again")
        register_dataset("again and again", lambda split, dataset=dataset: dataset)
        engine = EnvSettings(checkpoint=str(tmp_path), dataset="again and again").engine()
        assert engine.dataset is dataset
    assert asdict(EnvSettings(checkpoint=str(tmp_path), dataset="again and again"))["dataset"] == "again and again"


class Scaled(nn.Module):
    """A patch embedding times a factor that no weight shows."""

    def __init__(self, config: SupernetConfig, factor: float) -> None:
        super().__init__()
        self.factor = factor
        self.proj = nn.Conv2d(config.in_chans, config.embed_dim, config.patch_size, config.patch_size)

    def forward(self, images: Tensor) -> Tensor:
        return self.factor * self.proj(images).flatten(2).transpose(1, 2)


def multiplied(factor: float, scores: Any, metric: Any, size: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    """All tokens stay, each of them times a factor."""
    return torch.arange(size.shape[1]).expand_as(size), torch.full_like(size, factor)


@pytest.mark.parametrize("what", ["stem", "token mode"])
def test_a_name_that_stands_for_something_else_is_opened_anew(
    what: str, noise: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stems.STEMS, "_things", {})
    monkeypatch.setattr(modes._OURS, "_things", dict(modes._OURS._things))
    seen = []
    for factor in (1.0, 2.0):
        stems.STEMS.remove("mine")
        modes._OURS.remove("mine")
        register_stem("mine", partial(Scaled, factor=factor))
        register_token_mode("mine", TokenMode(partial(multiplied, factor), normalise=False, always=True))
        changed = replace(TINY, stem="mine") if what == "stem" else with_space(TINY, token_mode="mine")
        if factor == 1:
            save_pretrained(random_net(changed), tmp_path)
        seen.append(EnvSettings(checkpoint=str(tmp_path), dataset=noise).engine().start(np.arange(4)).prob)
    assert (seen[0] != seen[1]).all()


def test_threads_that_want_the_same_engine_open_it_once(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = EnvSettings.from_id(split="val", cache_mb=17)  # nobody else's
    opened: list[int] = []
    loaded = settings_module.load_dataset

    def load(*args: Any) -> Any:
        opened.append(threading.get_ident())
        return loaded(*args)

    monkeypatch.setattr(settings_module, "load_dataset", load)
    with ThreadPoolExecutor(4) as pool:
        engines = list(pool.map(lambda _: settings.engine(), range(4)))
    assert len(opened) == 1
    assert len({id(engine) for engine in engines}) == 1


def test_a_network_that_is_opened_in_inference_mode_can_be_learned_from_later() -> None:
    with torch.inference_mode():
        net = EnvSettings.from_id(split="val").network()
    assert not any(p.is_inference() for p in net.parameters())
    images = torch.rand(2, *(net.config.in_chans, net.config.img_size, net.config.img_size), requires_grad=True)
    net(images).sum().backward()
    assert images.grad is not None
