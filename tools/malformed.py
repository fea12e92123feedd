"""`python -m tools.malformed`: hundreds of damaged files, which load and work, or are refused in one sentence each."""

from __future__ import annotations

import copy
import json
import os
import pickle
import random
import select
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import tyro
import yaml
from PIL import Image

from agents import FullAgent, PrancePPO, PrancePPOConfig, StaticAgent, make_sb3
from agents.baselines import BaselineAgent
from agents.sb3.hyperparams import read_preset
from agents.sb3.policy_file import load_policy, save_policy
from prance_env import make_sb3_env
from prance_env.images import loading
from prance_env.images.loading import load_dataset
from prance_env.rewards.latency import LatencyTable, load_latency_table
from prance_env.settings import EnvSettings
from supernet import (
    SubnetConfig,
    Supernet,
    create_supernet,
    from_pretrained,
    load_static,
    save_pretrained,
    save_static,
)
from train.commands.train_agent import TrainAgent
from train.evaluate.replay import run_validate
from train.networks.logit_store import LogitStore, StoreInfo
from train.networks.subnet_choice import choose_subnet
from train.policies.settings import AgentTraining
from train.policies.tune import read_ranges
from train.runs.folder import write_command
from train.runs.progress import Progress, read_progress
from train.runs.trained import env_of_run
from train.side_by_side import EvalSettings, run_eval
from train.yardsticks.fronts import FRONTS, Front, Yardsticks

PATIENCE = 10.0
"""Seconds after which something hangs."""
SLACK = 64 * 2**20
"""Bytes by which memory may differ from one process to another."""
NONSENSE: tuple[Any, ...] = (
    *(None, True, "text", "", -1, 0, 1, 10**30, 1e308, float("nan"), float("inf")),
    *([], {}, [[1]], {"a": 1}, [None], "../../etc/passwd", "\x00", "é" * 1000),
)


@dataclass(frozen=True)
class Subject:
    """One kind of file.

    Attributes:
        make: Writes valid ones to a folder.
        file: The one that is damaged.
        use: Loads what is in the folder and uses it; raises if that cannot be right.
    """

    make: Callable[[Path], object]
    file: str
    use: Callable[[Path], object]


def subjects() -> dict[str, Subject]:
    """All kinds, by name."""
    net = create_supernet("digits", EnvSettings.from_id().checkpoint)
    config, space = net.config, net.config.space
    sizes = (len(space.groups) - 1, len(space.embed_dims), len(space.mlp_ratios), 2)
    table = LatencyTable(
        *("cpu", "2", 1, 8, [*space.groups], [*space.embed_dims], [*space.mlp_ratios], [2, config.num_tokens]),
        *(1.0, 1.0, np.ones(sizes).tolist()),
    )
    static = StaticAgent(SubnetConfig.min(space, 1), config)
    ppo = PrancePPO("Prance-Digits-v0", PrancePPOConfig(n_envs=4, hidden=(8,)))
    sb3 = make_sb3("ppo", make_sb3_env("Prance-Digits-v0", n_envs=4), seed=0)
    hyperparams = {"n_envs": 4, "n_timesteps": 64, "policy": "MlpPolicy", **read_preset("ppo").hyperparams}
    preset = yaml.safe_dump({"default": {**hyperparams, "env_kwargs": {}}})

    images = torch.zeros(2, config.in_chans, config.img_size, config.img_size)
    return {
        "supernet": Subject(
            lambda f: save_pretrained(net, f), "config.json", lambda f: _finite(from_pretrained(f)(images))
        ),
        "weights": Subject(
            lambda f: save_pretrained(net, f), "model.safetensors", lambda f: _finite(from_pretrained(f)(images))
        ),
        "static": Subject(lambda f: static.save(f / "a.json"), "a.json", lambda f: BaselineAgent.load(f / "a.json")),
        "full": Subject(
            lambda f: FullAgent(config).save(f / "a.json"), "a.json", lambda f: BaselineAgent.load(f / "a.json")
        ),
        "agent": Subject(ppo.save, "config.json", lambda f: _look(PrancePPO.load(f))),
        "agent's weights": Subject(ppo.save, "model.safetensors", lambda f: _look(PrancePPO.load(f))),
        "policy": Subject(lambda f: save_policy(sb3, f / "p", {}), "p", lambda f: _look(load_policy(f / "p"))),
        "latency": Subject(
            lambda f: table.save(f / "l.json"),
            "l.json",
            lambda f: _finite(load_latency_table(str(f / "l.json")).full_ms(space)),
        ),
        "preset": Subject(
            lambda f: (f / "p.yml").write_text(preset),
            "p.yml",
            lambda f: AgentTraining(conf_file=str(f / "p.yml")).timesteps,
        ),
        "ranges": Subject(
            lambda f: (f / "r.yml").write_text("ppo: {gamma: {low: 0.9, high: 1.0}, n_epochs: [1, 2]}"),
            "r.yml",
            lambda f: read_ranges("ppo", f / "r.yml"),
        ),
        "run": Subject(
            lambda f: write_command(f, AgentTraining()),
            "config.yml",
            lambda f: (TrainAgent.resumed(f), env_of_run(f, "val")),
        ),
        "settings": Subject(_rows, "settings.json", lambda f: run_validate(f / "full.csv")),
        "rows": Subject(_rows, "full.csv", lambda f: run_validate(f / "full.csv")),
        "image": Subject(_images, "val/0/a.png", lambda f: load_dataset(str(f), "val", config).fetch(np.arange(1))),
        **_subjects_of_runs(net),
    }


def _subjects_of_runs(net: Supernet) -> dict[str, Subject]:
    """What searches, stores and exports leave."""
    config, smallest = net.config, SubnetConfig.min(net.config.space, 1)
    info = StoreInfo(num_images=3, num_classes=4, top_k=2, epochs=1, images="these", view={"img_size": 8}, teacher="it")
    zeros = np.zeros(4, dtype=np.int64)
    point = Front(np.ones(1), np.ones((1, 4), bool), np.ones((1, 4)), (None,))
    fronts = Yardsticks(zeros, zeros, zeros, dict.fromkeys(FRONTS, point), {"split": "val"})
    images = torch.zeros(1, config.in_chans, config.img_size, config.img_size)

    def fill(folder: Path) -> None:
        LogitStore.create(folder, info).write(0, np.arange(3), torch.eye(4)[:3])

    def read(folder: Path) -> None:
        store = LogitStore.open(folder)
        targets, seeds = store.targets(0, np.arange(3)), store.seeds(0, np.arange(3))
        _finite(targets)
        if not torch.equal(targets, torch.eye(4)[:3]) or seeds.tolist() != [0, 1, 2]:
            raise AssertionError("it gives other records than were written")

    return {
        "static network": Subject(
            lambda f: save_static(net.extract(smallest), f), "static.json", lambda f: _finite(load_static(f)(images))
        ),
        "subnet": Subject(
            lambda f: (f / "s.json").write_text(smallest.to_json()),
            "s.json",
            lambda f: _finite(net(images, choose_subnet(config, str(f / "s.json")))),
        ),
        "store": Subject(fill, "store.json", read),
        "store's progress": Subject(fill, "progress.json", read),
        "store's records": Subject(fill, "epoch_0000.bin", read),
        "yardsticks": Subject(fronts.save, "yardsticks.json", lambda f: _plain(Yardsticks.load(f))),
        "outcomes": Subject(fronts.save, "outcomes.npz", lambda f: _plain(Yardsticks.load(f))),
        "progress": Subject(lambda f: Progress().write(f, 1, 2), "progress.json", read_progress),
    }


def _plain(fronts: Yardsticks) -> None:
    for price in (0.01, 1.0):
        _finite(fronts.point("static", price)[0])


def _look(agent: Any) -> None:
    seen = np.zeros((2, *agent.observation_space.shape), np.float32)
    _finite(agent.predict(seen, deterministic=True)[0])


def _rows(folder: Path) -> None:
    run_eval(["full"], EvalSettings(split="val", resamples=10), folder)


def _images(folder: Path) -> None:
    (folder / "val" / "0").mkdir(parents=True)
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (60, 40, 3)).astype(np.uint8)).save(folder / "val" / "0" / "a.png")


def _finite(values: Any) -> None:
    if not np.isfinite(np.asarray(values.detach() if isinstance(values, torch.Tensor) else values)).all():
        raise AssertionError("it gives NaN or inf")


def damages(path: Path, rng: random.Random, marker: Path) -> Iterator[bytes]:
    """Endless damaged versions of a file."""
    good = path.read_bytes()
    data = {".json": json.loads, ".yml": yaml.safe_load}.get(path.suffix)
    known = data(good.decode()) if data else None
    yield from _fixed(good, marker)
    while True:
        if known is None or rng.random() < 0.2:
            yield _bytes_damaged(good, rng)
        else:
            changed = _data_damaged(copy.deepcopy(known), rng)
            yield (json.dumps(changed) if path.suffix == ".json" else yaml.safe_dump(changed)).encode()


def _fixed(good: bytes, marker: Path) -> Iterator[bytes]:
    """What anybody would try."""

    class Planted:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {marker}",)

    yield from (b"", b"\x00" * 64, b"\xff\xfe", b"null", b"3", b"[]", b"{}", b'"a"', good[: len(good) // 2], good * 2)
    yield pickle.dumps(Planted())
    yield f"!!python/object/apply:os.system ['touch {marker}']".encode()
    yield f"default: !!python/object/apply:os.system ['touch {marker}']".encode()
    yield b"[" * 100_000
    yield b'{"a":' * 20_000
    yield b"a: &a [1]\nb: [*a, *a]\n? [1]\n: 2"
    yield (2**60).to_bytes(8, "little") + good[8:]


def _bytes_damaged(good: bytes, rng: random.Random) -> bytes:
    content = bytearray(good)
    for _ in range(rng.choice((1, 1, 8))):
        content[rng.randrange(len(content))] = rng.randrange(256)
    return bytes(content[: rng.randrange(len(content))] if rng.random() < 0.3 else content)


def _data_damaged(data: Any, rng: random.Random) -> Any:
    paths = list(_paths(data))
    path = rng.choice(paths)
    inner = data
    for key in path[:-1]:
        inner = inner[key]
    what = rng.random()
    if what < 0.1:
        del inner[path[-1]]
    elif what < 0.2 and isinstance(inner, dict):
        inner["more"] = rng.choice(NONSENSE)
    else:
        inner[path[-1]] = rng.choice(NONSENSE)
    return data


def _paths(data: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        yield (*above, key)
        if len(above) < 4 and (not isinstance(value, list) or len(value) < 20):
            yield from _paths(value, (*above, key))


@dataclass(frozen=True)
class Outcome:
    """What came of a file: "loads", "sentence", or what is wrong, with the words; and bytes of memory at most."""

    kind: str
    words: str
    memory: int


def attempt(use: Callable[[], object]) -> Outcome:
    """Uses something in a process of its own."""
    told, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(told)
        os.write(tell, json.dumps(_here(use))[:60_000].encode())
        os._exit(0)
    os.close(tell)
    with os.fdopen(told, "rb") as pipe:
        text = pipe.read() if select.select([pipe], [], [], PATIENCE)[0] else None
    if text is None:
        os.kill(pid, signal.SIGKILL)
    used = os.wait4(pid, 0)[2].ru_maxrss * 1024
    if not text:
        return Outcome("hang" if text is None else "crash", "", used)
    kind, words = json.loads(text)
    return Outcome(kind, words, used)


def _here(use: Callable[[], object]) -> tuple[str, str]:
    warnings.simplefilter("ignore")
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    try:
        use()
        return "loads", ""
    except (ValueError, OSError, ModuleNotFoundError, SystemExit) as e:
        words = str(e)
        return ("sentence" if words and len(words) < 3000 else "no sentence"), words[:3000]
    except BaseException as e:
        return "traceback", f"{type(e).__name__}: {e}"[:3000]


def try_all(number: int, seed: int, only: tuple[str, ...] = ()) -> tuple[Counter[str], list[dict[str, Any]]]:
    """Tries damaged files of all kinds in turn.

    Args:
        number: How many.
        seed: Draws them.
        only: Kinds; all if none is named.

    Returns:
        How many of each outcome, and those that are wrong.
    """
    with mock.patch.dict(loading.DIGITS_SCENES, dict.fromkeys(loading.DIGITS_SCENES, 64)):
        return _try_all(number, seed, only)


def _try_all(number: int, seed: int, only: tuple[str, ...]) -> tuple[Counter[str], list[dict[str, Any]]]:
    found, counts, wrong = {n: s for n, s in subjects().items() if not only or n in only}, Counter[str](), []
    with tempfile.TemporaryDirectory(prefix="prance-malformed-") as name:
        root, rng = Path(name), random.Random(seed)
        streams, memory = {}, {}
        for kind, subject in found.items():
            (root / kind).mkdir()
            subject.make(root / kind)
            valid = attempt(lambda kind=kind, subject=subject: subject.use(root / kind))  # type: ignore[misc]
            assert valid.kind == "loads", (kind, valid)
            memory[kind] = valid.memory
            streams[kind] = damages(root / kind / subject.file, rng, root / "marker")
        for turn in range(number):
            kind = list(found)[turn % len(found)]
            path, content = root / kind / found[kind].file, next(streams[kind])
            good = path.read_bytes()
            path.write_bytes(content)
            outcome = attempt(lambda kind=kind: found[kind].use(root / kind))  # type: ignore[misc]
            path.write_bytes(good)
            what = outcome.kind
            if outcome.memory > 1.5 * memory[kind] + SLACK:
                what = "memory"
            if (root / "marker").exists():
                what = "executed"
            counts[what] += 1
            if what not in ("loads", "sentence"):
                wrong.append({"of": kind, **asdict(outcome), "kind": what, "file": repr(content[:300])})
    return counts, wrong


@dataclass
class Malformed:
    """Damage files of every kind that this package reads, and see what comes of it.

    Attributes:
        number: How many files.
        seed: Draws them.
        only: Kinds of files; all if none is named.
    """

    number: int = 440
    seed: int = 0
    only: tuple[str, ...] = ()

    def run(self) -> None:
        """Tries them, prints what is wrong, and ends with status 1 if anything is."""
        torch.set_num_threads(1)
        begun = time.monotonic()
        counts, wrong = try_all(self.number, self.seed, self.only)
        for problem in wrong:
            print(json.dumps(problem, indent=1))
        print(f"{self.number} files in {time.monotonic() - begun:.0f} s: {dict(counts)}, {len(wrong)} of them wrong")
        sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    tyro.cli(Malformed).run()
