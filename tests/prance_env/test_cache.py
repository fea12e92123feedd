"""The cache of prefixes and verdicts: nobody notices its size, its place, or that its writer was killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from cached_rounds import TOTAL, assert_same, played_through, rounds
from helpers import PATIENCE, make_engine, random_net, unit_actions

from prance_env import ImageDataset, InferenceEngine
from prance_env.cache import HEADER_BYTES, MEBIBYTE, RECORD, DiskStore, MemoryStore, cache_key
from prance_env.engine import CACHE_MB
from prance_env.images.loading import DIGITS_SCENES
from supernet import Supernet, supernet_config


@pytest.fixture(scope="module")
def images(digits_net: Supernet) -> ImageDataset:
    """Noise of which the digits supernet is right about every other image."""
    dataset = make_engine(digits_net, TOTAL).dataset
    assert isinstance(dataset, ImageDataset)
    return dataset


def row_bytes(net: Supernet) -> int:
    """Size of one prefix."""
    return (net.config.num_patches + 1) * net.config.embed_dim * net.cls_token.element_size()


def no_computation(engine: InferenceEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on the prefix of an image can only come from the cache."""

    def refuse(part: Any) -> Any:
        raise AssertionError(f"{part} computed")

    monkeypatch.setattr(engine, "_compute", refuse)


# ---- the budget -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def large(any_net: Supernet) -> tuple[ImageDataset, list[np.ndarray[Any, Any]]]:
    """Images, and all numbers of episodes over them with a cache that holds everything."""
    engine = make_engine(any_net, TOTAL)
    assert isinstance(engine.dataset, ImageDataset)
    return engine.dataset, played_through(engine, unit_actions(any_net.space, 20), rounds())


@pytest.mark.parametrize("held", [0, pytest.param(1, marks=pytest.mark.slow), 9])
@pytest.mark.parametrize("on_disk", [False, True], ids=["memory", "disk"])
def test_a_small_budget_gives_the_same_numbers_as_a_large_one(
    any_net: Supernet, large: tuple[ImageDataset, list[np.ndarray[Any, Any]]], held: int, on_disk: bool, tmp_path: Path
) -> None:
    dataset, expected = large
    folder = tmp_path if on_disk else None
    small = InferenceEngine(any_net, dataset, (held + 0.5) * row_bytes(any_net) / MEBIBYTE, folder)
    assert_same(played_through(small, unit_actions(any_net.space, 20), rounds()), expected)
    assert small.cache.store.capacity == held == small.cache.held.sum()
    assert small.cache.known.all()


def test_the_budget_is_what_the_prefixes_take(digits_net: Supernet, images: ImageDataset) -> None:
    engine = InferenceEngine(digits_net, images, 5 * row_bytes(digits_net) / MEBIBYTE)
    assert isinstance(engine.cache.store, MemoryStore)
    assert engine.cache.store._rows.nbytes == 5 * row_bytes(digits_net)


def test_the_default_holds_all_of_digits() -> None:
    config = supernet_config("digits")
    needed = max(DIGITS_SCENES.values()) * (config.num_patches + 1) * config.embed_dim * 4
    assert needed <= CACHE_MB * MEBIBYTE


def test_the_verdict_is_computed_once_even_without_a_budget(
    digits_net: Supernet, images: ImageDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = InferenceEngine(digits_net, images, 0)
    first = engine.start(np.arange(TOTAL))
    runs: list[int] = []
    original = Supernet.run_group
    monkeypatch.setattr(
        Supernet,
        "run_group",
        lambda self, state, group, *rest: (runs.append(group), original(self, state, group, *rest))[1],
    )
    again = engine.start(np.arange(TOTAL))
    assert runs == [0]
    np.testing.assert_array_equal(again.prob, first.prob)
    np.testing.assert_array_equal(again.prediction, first.prediction)


# ---- on disk --------------------------------------------------------------------------------------------------------


def on_disk(net: Supernet, images: ImageDataset, folder: Path, capacity: float = TOTAL) -> InferenceEngine:
    """An engine with a cache of this many prefixes."""
    return InferenceEngine(net, images, (capacity + 0.5) * row_bytes(net) / MEBIBYTE, folder)


def cache_file(folder: Path) -> Path:
    """The one there is."""
    (path,) = (p for p in folder.iterdir() if p.suffix != ".lock")
    return path


@pytest.mark.slow
def test_what_one_engine_has_computed_the_next_one_reads(
    digits_net: Supernet, images: ImageDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    actions = unit_actions(digits_net.space, 20)
    plain = InferenceEngine(digits_net, images)
    writer = on_disk(digits_net, images, tmp_path)
    reader = on_disk(digits_net, images, tmp_path)  # opened before anything is there
    expected = played_through(plain, actions, rounds())
    assert_same(played_through(writer, actions, rounds()), expected)
    later = on_disk(digits_net, images, tmp_path)
    for engine in (reader, later):
        no_computation(engine, monkeypatch)
        assert_same(played_through(engine, actions, rounds()), expected)


def test_verdicts_beyond_the_budget_are_read_as_well(
    digits_net: Supernet, images: ImageDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = on_disk(digits_net, images, tmp_path, 5).start(np.arange(TOTAL))
    monkeypatch.setattr(Supernet, "run_to_end", None)
    again = on_disk(digits_net, images, tmp_path, 5).start(np.arange(TOTAL))
    np.testing.assert_array_equal(again.prob, first.prob)
    np.testing.assert_array_equal(again.state.tokens, first.state.tokens)


@pytest.mark.parametrize("way", [1, -1])
def test_a_cache_grows_with_its_budget_and_never_shrinks_whoever_writes_last(
    way: int, digits_net: Supernet, images: ImageDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = InferenceEngine(digits_net, images).start(np.arange(TOTAL)).state.tokens
    small = on_disk(digits_net, images, tmp_path, 5)
    large = on_disk(digits_net, images, tmp_path, 15)
    for engine in (small, large)[::way]:
        assert torch.equal(engine.start(np.arange(TOTAL)).state.tokens, expected)
    again = on_disk(digits_net, images, tmp_path, 2)
    assert again.cache.store.capacity == 15
    no_computation(again, monkeypatch)
    assert torch.equal(again.start(np.arange(15)).state.tokens, expected.view(TOTAL, -1)[:15].view(-1, 64))


def test_the_key_changes_with_everything_that_counts(
    digits_net: Supernet, images: ImageDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = cache_key(digits_net, images)
    assert cache_key(digits_net, replace(images)) == key
    copied = Supernet(digits_net.config)
    copied.load_state_dict(digits_net.state_dict())
    assert cache_key(copied, images) == key
    heavier = Supernet(digits_net.config)
    heavier.load_state_dict({k: v + (k == "head.bias") for k, v in digits_net.state_dict().items()})
    wider = random_net(replace(digits_net.config, norm_eps=1e-5))
    brighter = replace(images, images=images.images.clone().clamp(min=1))
    relabelled = replace(images, labels=(images.labels + 1) % 10)
    half = Supernet(digits_net.config).to(torch.bfloat16)
    half.load_state_dict(digits_net.state_dict())
    others = [(heavier, images), (wider, images), (digits_net, brighter), (digits_net, relabelled), (half, images)]
    assert len({key, *(cache_key(net, source) for net, source in others)}) == 1 + len(others)
    weight = SimpleNamespace(dtype=torch.float32, device=torch.device("cuda"))
    elsewhere: Any = SimpleNamespace(config=digits_net.config, state_dict=digits_net.state_dict, pos_embed=weight)
    assert cache_key(elsewhere, images) != key
    monkeypatch.setattr(torch, "__version__", "0")
    assert cache_key(digits_net, images) != key


def test_half_precision_is_kept_as_it_is(digits_net: Supernet, images: ImageDataset, tmp_path: Path) -> None:
    half = Supernet(digits_net.config).to(torch.bfloat16).eval().requires_grad_(False)
    store = on_disk(half, images, tmp_path).cache.store
    tokens = torch.randn(3, 17, 64).to(torch.bfloat16)
    index = np.array([4, 0, 9])
    store.write(index, tokens, index, index / 10)
    assert torch.equal(store.read(index), tokens)
    known, prediction, prob = store.recall(np.array([9, 1, 0]))
    assert known.tolist() == [2, 0, 2]
    assert (prediction[0], prob[0], prediction[2]) == (9, 0.9, 0)


# ---- damage ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["first prefix", "last prefix", "verdict", "state", "checksum"])
def test_a_damaged_entry_is_computed_again(
    place: str, digits_net: Supernet, images: ImageDataset, tmp_path: Path
) -> None:
    expected = on_disk(digits_net, images, tmp_path).start(np.arange(TOTAL))
    path = cache_file(tmp_path)
    rows = HEADER_BYTES + TOTAL * RECORD.itemsize
    record = HEADER_BYTES + 3 * RECORD.itemsize
    assert RECORD.fields is not None
    offset = {
        "first prefix": rows + 100,
        "last prefix": path.stat().st_size - 1,
        "verdict": record + RECORD.fields["prob"][1] + 5,
        "state": record + RECORD.fields["known"][1] + 1,
        "checksum": record + RECORD.fields["crc"][1],
    }[place]
    data = bytearray(path.read_bytes())
    data[offset] ^= 0x10
    path.write_bytes(data)
    engine = on_disk(digits_net, images, tmp_path)
    computed: list[int] = []
    original = engine._compute
    engine._compute = lambda part: (computed.extend(part.tolist()), original(part))[1]  # type: ignore[method-assign]
    again = engine.start(np.arange(TOTAL))
    assert computed == [{"first prefix": 0, "last prefix": TOTAL - 1}.get(place, 3)]
    np.testing.assert_array_equal(again.prob, expected.prob)
    assert torch.equal(again.state.tokens, expected.state.tokens)
    repaired = on_disk(digits_net, images, tmp_path)
    assert repaired.cache.recall(np.arange(TOTAL)).all()


@pytest.mark.parametrize("kind", ["foreign", "cut", "empty", "another size"])
def test_a_file_that_is_no_cache_is_made_again(
    kind: str, digits_net: Supernet, images: ImageDataset, tmp_path: Path
) -> None:
    expected = on_disk(digits_net, images, tmp_path).start(np.arange(TOTAL))
    path = cache_file(tmp_path)
    data = path.read_bytes()
    path.write_bytes(
        {
            "foreign": b"something else " * 10_000,
            "cut": data[:-1],
            "empty": b"",
            "another size": data.replace(b'"total": 24', b'"total": 25'),
        }[kind]
    )
    with pytest.warns(UserWarning, match=rf"{path} is damaged or another file"):
        engine = on_disk(digits_net, images, tmp_path)
    assert not engine.cache.recall(np.arange(TOTAL)).any()
    assert torch.equal(engine.start(np.arange(TOTAL)).state.tokens, expected.state.tokens)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert on_disk(digits_net, images, tmp_path).cache.recall(np.arange(TOTAL)).all()


def test_a_full_disk_ends_the_writing_but_not_the_episodes(
    digits_net: Supernet, images: ImageDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = InferenceEngine(digits_net, images).start(np.arange(TOTAL))
    engine = on_disk(digits_net, images, tmp_path)
    original, calls = os.pwrite, [0]

    def full_after_seven(*args: Any) -> int:
        calls[0] += 1
        if calls[0] > 7:
            raise OSError(28, "No space left on device")
        return original(*args)

    monkeypatch.setattr(os, "pwrite", full_after_seven)
    with pytest.warns(UserWarning, match=r"is written no more.*No space left.*cache_mb"):
        got = engine.start(np.arange(TOTAL))
    assert engine.cache.held.sum() == 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = engine.start(np.arange(TOTAL))
    for episodes in (got, again):
        assert torch.equal(episodes.state.tokens, expected.state.tokens)
        np.testing.assert_array_equal(episodes.prob, expected.prob)


def test_where_nothing_can_be_written_prefixes_are_kept_in_memory_with_one_warning(
    digits_net: Supernet, images: ImageDataset, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    expected = InferenceEngine(digits_net, images).start(np.arange(TOTAL))
    with pytest.warns(UserWarning, match=f"{tmp_path / 'file'}.*cannot be written.*kept in memory") as warned:
        engine = on_disk(digits_net, images, tmp_path / "file")
    assert len(warned) == 1
    assert isinstance(engine.cache.store, MemoryStore)
    got = engine.start(np.arange(TOTAL))
    assert torch.equal(got.state.tokens, expected.state.tokens)
    assert engine.cache.held.all()


def test_where_nothing_can_be_written_an_earlier_cache_is_read(
    digits_net: Supernet, images: ImageDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = on_disk(digits_net, images, tmp_path).start(np.arange(TOTAL // 2))

    def read_only(store: DiskStore, capacity: int) -> int:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(DiskStore, "_opened", read_only)
    monkeypatch.setattr(os, "pwrite", None)
    with pytest.warns(UserWarning, match="can only be read") as warned:
        engine = on_disk(digits_net, images, tmp_path)
    got = engine.start(np.arange(TOTAL))
    assert len(warned) == 1
    assert engine.cache.held.sum() == TOTAL // 2
    assert torch.equal(got.state.tokens[: len(expected.state.tokens)], expected.state.tokens)


@pytest.mark.parametrize("swapped", ["images", "supernets"])
def test_a_record_in_anothers_place_is_not_served(
    swapped: str, digits_net: Supernet, images: ImageDataset, tmp_path: Path
) -> None:
    """Whole records with their prefixes, whose checksums would be right where they come from."""
    on_disk(digits_net, images, tmp_path / "a").start(np.arange(TOTAL))
    path = cache_file(tmp_path / "a")
    source = bytearray(path.read_bytes())
    if swapped == "supernets":
        other = Supernet(digits_net.config).eval().requires_grad_(False)
        on_disk(other, images, tmp_path / "b").start(np.arange(TOTAL))
        source = bytearray(cache_file(tmp_path / "b").read_bytes())
    target, size = bytearray(path.read_bytes()), row_bytes(digits_net)
    for start, width in ((HEADER_BYTES, RECORD.itemsize), (HEADER_BYTES + TOTAL * RECORD.itemsize, size)):
        taken = source[start + 5 * width : start + 6 * width]
        target[start + 3 * width : start + 4 * width] = taken
        if swapped == "supernets":
            target[start + 5 * width : start + 6 * width] = taken
    path.write_bytes(target)
    known = on_disk(digits_net, images, tmp_path / "a").cache.recall(np.arange(TOTAL))
    assert np.flatnonzero(~known).tolist() == ([3] if swapped == "images" else [3, 5])


# ---- killed and many processes --------------------------------------------------------------------------------------


def die_in_write(net: Supernet, images: ImageDataset, folder: Path, write: int) -> None:
    """Fills a cache and is killed when half of a write has been done."""
    torch.set_num_threads(1)
    original, calls = os.pwrite, [0]

    def pwrite(file: int, data: bytes, offset: int) -> int:
        calls[0] += 1
        if calls[0] == write:
            original(file, data[: len(data) // 2], offset)
            os.kill(os.getpid(), signal.SIGKILL)
        return original(file, data, offset)

    os.pwrite = pwrite
    on_disk(net, images, folder).start(np.arange(TOTAL))


@pytest.mark.parametrize("write", [1, 2, 15, 16, 48])
def test_a_process_killed_while_filling_the_cache_leaves_what_it_had_finished(
    write: int, digits_net: Supernet, images: ImageDataset, tmp_path: Path
) -> None:
    expected = InferenceEngine(digits_net, images).start(np.arange(TOTAL))
    context = multiprocessing.get_context("fork")
    child = context.Process(target=die_in_write, args=(digits_net, images, tmp_path, write))
    child.start()
    child.join(timeout=PATIENCE)
    assert child.exitcode == -signal.SIGKILL
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        engine = on_disk(digits_net, images, tmp_path)
    finished = (write - 1) // 2  # a prefix and a record each
    assert engine.cache.recall(np.arange(TOTAL)).tolist() == [i < finished for i in range(TOTAL)]
    got = engine.start(np.arange(TOTAL))
    assert torch.equal(got.state.tokens, expected.state.tokens)
    np.testing.assert_array_equal(got.prob, expected.prob)
    np.testing.assert_array_equal(got.prediction, expected.prediction)


def play_and_send(net: Supernet, images: ImageDataset, folder: Path, seed: int, queue: Any) -> None:
    """Plays some rounds over a shared cache."""
    torch.set_num_threads(1)
    engine = on_disk(net, images, folder)
    queue.put((seed, played_through(engine, unit_actions(net.space, 20), rounds(seed, 6))))


@pytest.mark.slow
def test_processes_that_fill_one_cache_together_get_the_same_numbers(
    digits_net: Supernet, images: ImageDataset, tmp_path: Path
) -> None:
    context: Any = multiprocessing.get_context("fork")
    queue = context.Queue()
    children = [
        context.Process(target=play_and_send, args=(digits_net, images, tmp_path, seed, queue)) for seed in range(3)
    ]
    for child in children:
        child.start()
    results = dict(queue.get(timeout=PATIENCE) for _ in children)
    for child in children:
        child.join(timeout=PATIENCE)
        assert child.exitcode == 0
    plain = InferenceEngine(digits_net, images)
    for seed, numbers in results.items():
        assert_same(numbers, played_through(plain, unit_actions(digits_net.space, 20), rounds(seed, 6)))
