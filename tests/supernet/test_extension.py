"""Registries and plug-ins: names that packages installed beside this one add."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import threading
import types
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from helpers import PATIENCE

from supernet import extension
from supernet.extension import Registry

MODULE = """
from prance_env import register_dataset, register_observation, register_reward
from supernet import register_supernet, register_token_mode, supernet_config, token_mode
from train.policies import register_algorithm
from train.policies.registry import ALGORITHMS

register_token_mode("their_mode", token_mode("prune"))
register_observation("their_view", ("max_prob", "decision"))
register_supernet("their_net", lambda: supernet_config("digits"))
register_reward("their_reward", lambda outcome: outcome.accuracy)
register_algorithm("their_ppo", ALGORITHMS["ppo"])


@register_dataset("their_images")
def load(split):
    raise ValueError("never opened")
"""
USE = """
import prance_env, sys
assert "their_package" not in sys.modules, "importing loads plug-ins"
from supernet import list_supernets, list_token_modes
assert "their_mode" in list_token_modes()
assert "their_net" in list_supernets()
settings = prance_env.EnvSettings(
    token_mode="their_mode", observation="their_view", dataset="their_images", reward={"function": "their_reward"}
)
assert settings.spaces()[0].shape == (4,)
from train.policies import AgentTraining
assert AgentTraining(algo="their_ppo").timesteps == AgentTraining(algo="ppo").timesteps
print("used")
"""


def installed(folder: Path, module: str) -> dict[str, str]:
    """The environment of a process that has a package with one plug-in on its path."""
    (folder / "their_package.py").write_text(module)
    info = folder / "their_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[prance_env.plugins]\ntheirs = their_package\n")
    paths = [str(folder), str(Path(__file__).parent.parent.parent)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


@pytest.mark.slow
def test_an_installed_package_adds_names_that_everything_takes(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", USE], env=installed(tmp_path, MODULE), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "used\n"), done.stderr


@pytest.mark.slow
def test_a_plug_in_that_fails_is_named_with_its_package(tmp_path: Path) -> None:
    program = "from supernet import list_supernets\nlist_supernets()"
    done = subprocess.run(
        [sys.executable, "-c", program], env=installed(tmp_path, "1 / 0"), capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert (
        "plug-in 'theirs' (their_package) of the installed package 'their-package' failed (ZeroDivision" in done.stderr
    )


def nothing_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a process that has not looked for plug-ins yet."""
    for name, value in {"_asker": None, "_loaded": set(), "_done": False, "_failed": []}.items():
        monkeypatch.setattr(extension, name, value)


def test_plug_ins_that_fail_are_all_said_at_every_call_and_the_others_are_loaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    registry: Registry[int] = Registry("thing", "add", "thing")
    module = types.ModuleType("plugs_of_others")
    vars(module).update(good=lambda: registry.add("theirs", 1), bad=lambda: 1 / 0, worse=lambda: {}["cupy"])
    monkeypatch.setitem(sys.modules, module.__name__, module)
    entries = [EntryPoint(n, f"{module.__name__}:{n}", extension.GROUP) for n in ("bad", "good", "worse")]
    monkeypatch.setattr(extension, "entry_points", lambda group: entries)
    nothing_loaded(monkeypatch)
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"'bad' .*ZeroDivisionError.* 'worse' .*KeyError: 'cupy'"):
            registry.names()
    assert "theirs" in registry


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_that_is_forked_while_a_thread_loads_plug_ins_loads_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    registry: Registry[int] = Registry("thing", "add", "thing")
    parent, loading, go_on = os.getpid(), threading.Event(), threading.Event()

    def slow() -> None:
        loading.set()
        if os.getpid() == parent:
            go_on.wait(PATIENCE)
        registry.add("slow", 2)

    module = types.ModuleType("slow_plugs_of_others")
    vars(module).update(first=lambda: registry.add("first", object()), slow=slow)  # not to be added twice
    monkeypatch.setitem(sys.modules, module.__name__, module)
    entries = [EntryPoint(n, f"{module.__name__}:{n}", extension.GROUP) for n in ("first", "slow")]
    monkeypatch.setattr(extension, "entry_points", lambda group: entries)
    nothing_loaded(monkeypatch)
    thread = threading.Thread(target=registry.names)
    thread.start()
    assert loading.wait(PATIENCE)
    child = multiprocessing.get_context("fork").Process(target=lambda: os._exit(registry.names() != ["first", "slow"]))
    child.start()
    child.join(10)
    hangs = child.is_alive()
    child.kill()
    go_on.set()
    thread.join()
    child.join()
    assert not hangs
    assert child.exitcode == 0
    assert registry.names() == ["first", "slow"]


def test_a_registry_refuses_taken_and_empty_names_and_lists_what_there_is() -> None:
    registry: Registry[int] = Registry("data set", "register_dataset", "dataset")
    assert registry.add("one", 1) == registry.add("one", 1) == 1
    with pytest.raises(ValueError, match=r"Data set name 'one' is taken; registered are \['one'\]"):
        registry.add("one", 2)
    with pytest.raises(ValueError, match="'' is no name for a data set"):
        registry.add("", 2)
    with pytest.raises(ValueError, match=r"dataset='two' is unknown; choose one of \['one'\].*register_dataset"):
        registry["two"]
    registry.remove("one")
    assert "one" not in registry
