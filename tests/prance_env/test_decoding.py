"""Broken images, worker processes, and images that are decoded ahead."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import time
import warnings
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils import seeding
from helpers import ENV_ID, PATIENCE, transcript
from image_files import CONFIG, break_files, everything, expected_pixels, files_of, image_folder

from prance_env import EnvSettings, PranceEnv, close_engines
from prance_env.images.decoded import DecodedSource
from prance_env.images.loading import load_dataset
from prance_env.images.source import ImageSource
from prance_env.images.workers import DecodingPool
from prance_env.lanes import Lanes
from prance_env.settings import shared_engine
from supernet import Supernet

# ---- broken images --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_broken_image_is_raised_with_its_path(num_workers: int, tmp_path: Path) -> None:
    files = break_files(image_folder(tmp_path, 12, splits=()), 20)
    source = load_dataset(str(tmp_path), "val", CONFIG, num_workers)
    torch.testing.assert_close(source.fetch(np.arange(20)), expected_pixels(files[:20]), rtol=0, atol=0)
    with pytest.raises(OSError, match=rf"{files[20]} \(image 20\) cannot be decoded.*on_error='skip'"):
        everything(source)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_broken_image_is_skipped_for_the_next_good_one(num_workers: int, tmp_path: Path) -> None:
    files = break_files(image_folder(tmp_path, 12, splits=()), 3, 4, 20, 35)
    instead = {3: 5, 4: 5, 20: 21, 35: 0}
    index = np.array([4, 3, *range(36), 20])
    source = load_dataset(str(tmp_path), "val", CONFIG, num_workers, "skip")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        images = source.fetch(index)
        source.fetch(index)
    named = [str(w.message).split(" ")[0] for w in caught]
    assert sorted(named) == sorted(str(files[k]) for k in instead)
    shown = source.shown(index)
    assert shown.tolist() == [instead.get(i, i) for i in index.tolist()]
    torch.testing.assert_close(images, expected_pixels([files[i] for i in shown]), rtol=0, atol=0)


def test_the_stand_in_does_not_depend_on_the_order_of_asking(tmp_path: Path) -> None:
    files = break_files(image_folder(tmp_path, 12, splits=()), 4, 5)
    alone = load_dataset(str(tmp_path), "val", CONFIG, 0, "skip")
    with pytest.warns(UserWarning, match="image 5"):
        alone.fetch(np.array([5]))
    with pytest.warns(UserWarning, match="image 4"):
        images = alone.fetch(np.array([4]))
    torch.testing.assert_close(images, expected_pixels([files[6]]), rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:.*cannot be decoded")
def test_a_folder_of_broken_images_ends_with_an_error(tmp_path: Path) -> None:
    break_files(image_folder(tmp_path, 1, splits=()), 0, 1, 2)
    source = load_dataset(str(tmp_path), "val", CONFIG, 0, "skip")
    with pytest.raises(OSError, match="Nor can any other image"):
        source.fetch(np.array([1]))


@pytest.mark.filterwarnings("ignore:.*cannot be decoded")
def test_an_episode_on_a_broken_image_is_one_on_its_stand_in(
    checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_files(image_folder(tmp_path, 12, splits=()), 10, 11, 35)
    kwargs: dict[str, Any] = {"checkpoint": checkpoint, "dataset": str(tmp_path), "on_error": "skip"}
    envs = gym.make_vec(ENV_ID, num_envs=4, **kwargs)
    observations, infos = envs.reset(options={"index": np.array([11, 12, 35, 2])})
    assert infos["index"].tolist() == [12, 12, 0, 2]
    assert infos["label"].tolist() == [1, 1, 0, 0]
    np.testing.assert_allclose(observations[0], observations[1], rtol=0, atol=1e-5)
    engine = envs.lanes.engine  # type: ignore[attr-defined]
    with monkeypatch.context() as patch:
        patch.setattr(engine, "_compute", None)  # what was found broken is known to be
        np.testing.assert_array_equal(engine.start(np.array([35, 11])).index, [0, 12])
    for _ in range(CONFIG.space.num_decisions):
        infos = envs.step(np.zeros(envs.action_space.shape, dtype=np.float32))[4]
    assert infos["index"].tolist() == [12, 12, 0, 2]
    assert infos["prediction"][0] == infos["prediction"][1]


# ---- workers --------------------------------------------------------------------------------------------------------


def folder_kwargs(checkpoint: str, folder: Path, **changes: Any) -> dict[str, Any]:
    """Arguments of an environment over `folder`."""
    return {"checkpoint": checkpoint, "dataset": str(folder), "split": "val", "num_workers": 2, **changes}


def report_transcript(kwargs: dict[str, Any], queue: Any) -> None:
    """Plays in a child and sends what happened."""
    torch.set_num_threads(1)
    queue.put(transcript(gym.make(f"prance_env:{ENV_ID}", **kwargs), seed=5))


@pytest.mark.parametrize(
    ("method", "daemon"),
    [
        ("fork", True),
        ("fork", False),
        pytest.param("spawn", True, marks=pytest.mark.slow),
        pytest.param("spawn", False, marks=pytest.mark.slow),
    ],
)
def test_children_give_the_same_episodes(method: str, daemon: bool, checkpoint: str, folder: Path) -> None:
    kwargs = folder_kwargs(checkpoint, folder)
    env = gym.make(ENV_ID, **kwargs)
    here = transcript(env, seed=5)
    source = env.unwrapped.settings.engine().dataset  # type: ignore[attr-defined]
    source.prefetch(np.arange(36))  # the parent's workers are busy when the child is forked
    context: Any = multiprocessing.get_context(method)
    queue = context.Queue()
    child = context.Process(target=report_transcript, args=(kwargs, queue), daemon=daemon)
    child.start()
    assert queue.get(timeout=PATIENCE) == here
    child.join(timeout=PATIENCE)
    assert child.exitcode == 0
    assert len(everything(source)) == 36


def fetch_in_child(source: ImageSource, queue: Any) -> None:
    """Decodes everything with workers of the child's own."""
    queue.put(everything(source).numpy())


@pytest.mark.parametrize(
    ("method", "daemon"), [("fork", True), ("fork", False), pytest.param("spawn", False, marks=pytest.mark.slow)]
)
def test_a_source_that_is_in_use_can_be_handed_to_a_child(method: str, daemon: bool, folder: Path) -> None:
    source = load_dataset(str(folder), "val", CONFIG, 2)
    source.prefetch(np.arange(36))
    context: Any = multiprocessing.get_context(method)
    queue = context.Queue()
    child = context.Process(target=fetch_in_child, args=(source, queue), daemon=daemon)
    child.start()
    np.testing.assert_array_equal(queue.get(timeout=PATIENCE), everything(source))
    child.join(timeout=PATIENCE)
    assert child.exitcode == 0


def test_a_worker_that_was_killed_is_reported_and_replaced(folder: Path) -> None:
    source = load_dataset(str(folder), "val", CONFIG, 1)
    expected = everything(source)
    assert isinstance(source, DecodedSource)
    (process,) = source._pool._executor._processes.values()  # type: ignore[union-attr]
    os.kill(process.pid, signal.SIGSTOP)
    source.prefetch(np.arange(36))
    process.kill()
    process.join()
    with pytest.raises(RuntimeError, match=r"process that decodes images has died.*num_workers"):
        everything(source)
    torch.testing.assert_close(everything(source), expected, rtol=0, atol=0)


@pytest.mark.slow
def test_workers_end_with_their_parent(folder: Path) -> None:
    context = multiprocessing.get_context("fork")
    queue: Any = context.Queue()
    child = context.Process(target=report_workers, args=(str(folder), queue))
    child.start()
    workers = queue.get(timeout=PATIENCE)
    assert len(workers) == 2
    child.kill()
    child.join()
    deadline = time.monotonic() + PATIENCE
    while any(alive(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not [pid for pid in workers if alive(pid)]


def report_workers(folder: str, queue: Any) -> None:
    """Sends the ids of its workers and waits to be killed."""
    source = load_dataset(folder, "val", CONFIG, 2)
    everything(source)
    assert isinstance(source, DecodedSource)
    queue.put(list(source._pool._executor._processes))  # type: ignore[union-attr]
    time.sleep(2 * PATIENCE)


def alive(pid: int) -> bool:
    """Whether a process runs, which a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_closed_engines_leave_no_processes_and_what_is_open_goes_on(checkpoint: str, folder: Path) -> None:
    arguments: dict[str, Any] = {"checkpoint": checkpoint, "dataset": str(folder), "split": "val", "cache_mb": 0.0}
    env = gym.make(ENV_ID, num_workers=1, **arguments).unwrapped
    assert isinstance(env, PranceEnv)
    env.reset(seed=0)
    assert env._lanes is not None
    source = env._lanes.engine.dataset
    assert isinstance(source, DecodedSource)
    source.prefetch(np.arange(36))
    (worker,) = source._pool._executor._processes  # type: ignore[union-attr]
    assert alive(worker)
    close_engines()
    assert not alive(worker)
    assert shared_engine.cache_info().currsize == 0
    torch.testing.assert_close(everything(source), expected_pixels(files_of(folder / "val")), rtol=0, atol=0)
    plain = gym.make(ENV_ID, **arguments)
    plain.reset(seed=0)
    assert env.reset()[1]["index"] == plain.reset()[1]["index"]
    env.close()
    close_engines()
    close_engines()


def test_threads_may_ask_for_the_same_images_at_once(folder: Path) -> None:
    source = load_dataset(str(folder), "val", CONFIG, 1)
    assert isinstance(source, DecodedSource)
    work = source._work

    def meanwhile(indices: list[int]) -> Any:
        source._work = work
        with ThreadPoolExecutor(1) as thread:
            thread.submit(source.fetch, np.array([0, 1])).result(timeout=PATIENCE)
        return work(indices)

    source.prefetch(np.array([0]))
    source._work = meanwhile  # type: ignore[assignment]
    expected = expected_pixels(files_of(folder / "val")[:3])
    torch.testing.assert_close(source.fetch(np.arange(3)), expected, rtol=0, atol=0)


# ---- prefetching ----------------------------------------------------------------------------------------------------


def lanes_over(checkpoint: str, folder: Path, **changes: Any) -> Lanes:
    """Eight seeded lanes over the folder, with an engine of their own."""
    settings = EnvSettings(checkpoint=checkpoint, dataset=str(folder), split="val", num_workers=2, **changes)
    shared_engine.cache_clear()
    lanes = Lanes(settings, 8)
    lanes.generators = [seeding.np_random(lane)[0] for lane in range(8)]
    return lanes


def test_the_next_episodes_images_are_asked_for_ahead(
    checkpoint: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[int]] = []
    original = DecodedSource.prefetch
    monkeypatch.setattr(
        DecodedSource, "prefetch", lambda self, index: (asked.append(index.tolist()), original(self, index))[1]
    )
    lanes = lanes_over(checkpoint, folder, cache_mb=0.0)
    plain = lanes_over(checkpoint, folder, cache_mb=0.0)
    plain.engine.dataset.lookahead = 0  # type: ignore[misc]
    for _ in range(5):
        asked.clear()
        lanes.start(np.arange(8))
        ahead = asked[-1]
        drawn = lanes.infos()["index"]
        plain.start(np.arange(8))
        np.testing.assert_array_equal(plain.infos()["index"], drawn)
        following = [int(np.random.default_rng().__class__(_copy(lanes, i)).integers(36)) for i in range(8)]
        assert ahead == sorted(set(following))


def _copy(lanes: Lanes, lane: int) -> np.random.PCG64:
    generator = lanes.generators[lane]
    assert generator is not None
    bits = np.random.PCG64()
    bits.state = generator.bit_generator.state
    return bits


def test_what_is_prefetched_is_decoded_before_it_is_fetched_and_not_again(folder: Path) -> None:
    source = load_dataset(str(folder), "val", CONFIG, 1)
    assert isinstance(source, DecodedSource)
    index = np.array([3, 1, 30])
    source.prefetch(index)
    futures = [source._pending[i][0] for i in index.tolist()]
    for future in futures:
        future.result(timeout=PATIENCE)
    source._pool.submit = None  # type: ignore[assignment,method-assign]
    source._work = lambda indices: [] if not indices else pytest.fail(f"{indices} decoded again")  # type: ignore[assignment]
    files = files_of(folder / "val")
    torch.testing.assert_close(source.fetch(index), expected_pixels([files[i] for i in index]), rtol=0, atol=0)
    assert not source._pending


def test_prefetched_images_that_nobody_fetches_are_forgotten(folder: Path) -> None:
    source = load_dataset(str(folder), "val", CONFIG, 1)
    assert isinstance(source, DecodedSource)
    source.lookahead = 10
    for begin in range(0, 30, 5):
        source.prefetch(np.arange(begin, begin + 5))
    assert list(source._pending) == list(range(20, 30))
    source.prefetch(np.arange(20, 23))  # asked for again: now the youngest
    source.prefetch(np.arange(0, 7))
    assert list(source._pending) == [20, 21, 22, *range(7)]
    assert all(isinstance(f, Future) for f, _ in source._pending.values())


def test_the_next_chunk_is_decoded_while_the_network_computes(
    checkpoint: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prance_env.engine.CACHE_BATCH", 10)
    engine = lanes_over(checkpoint, folder).engine
    pending: list[list[int]] = []
    original = Supernet.begin
    monkeypatch.setattr(
        Supernet,
        "begin",
        lambda net, *args, **kwargs: (pending.append(list(engine.dataset._pending)), original(net, *args, **kwargs))[1],
    )
    engine.start(np.arange(36))
    assert pending == [list(range(10, 20)), list(range(20, 30)), list(range(30, 36)), []]


def test_a_full_cache_needs_no_prefetching(checkpoint: str, folder: Path) -> None:
    lanes = lanes_over(checkpoint, folder)
    assert lanes.engine.lookahead > 0
    lanes.engine.start(np.arange(36))
    assert lanes.engine.lookahead == 0


def _drop(pool: DecodingPool[int, int], done: Any) -> None:
    pool._executor = None
    gc.collect()
    done.put("dropped")


def test_a_child_that_was_forked_while_the_workers_lock_was_held_does_not_wait_for_it() -> None:
    pool: DecodingPool[int, int] = DecodingPool(abs, 1)
    assert pool.result(pool.submit(-3)) == 3
    lock: Any = cast(Any, pool._executor)._shutdown_lock
    context = multiprocessing.get_context("fork")
    done = context.Queue()
    with lock:  # as the thread that manages the workers does now and then
        child = context.Process(target=_drop, args=(pool, done))
        child.start()
        try:
            assert done.get(timeout=PATIENCE) == "dropped"
        finally:
            child.kill()
            child.join()
    assert pool.result(pool.submit(-4)) == 4
