"""Stores of a teacher's answers: what was written is read, whatever happened in between."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from train.networks.logit_store import LogitStore, StoreInfo, dense

INFO = StoreInfo(num_images=10, num_classes=7, top_k=3, epochs=2, images="these", view={"img_size": 8}, teacher="it")


def probabilities(count: int, classes: int = 7, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, classes, generator=torch.Generator().manual_seed(seed)).mul(3).softmax(1)


def filled(folder: Path, info: StoreInfo = INFO) -> LogitStore:
    store = LogitStore.create(folder, info)
    for epoch in range(info.epochs):
        for start in range(0, info.num_images, 5):
            probs = probabilities(5, info.num_classes, seed=100 * epoch + start)
            store.write(store.done, np.arange(start, start + 5) + 1000 * epoch, probs)
    return store


def test_records_are_read_as_they_were_written(tmp_path: Path) -> None:
    filled(tmp_path)
    store, order = LogitStore.open(tmp_path), np.array([7, 0, 3])
    assert store.seeds(1, order).tolist() == [1007, 1000, 1003]
    assert store.seeds(3, order).tolist() == [1007, 1000, 1003]  # after the last epoch the first comes again
    expected = torch.cat([probabilities(5, seed=100), probabilities(5, seed=105)])[torch.from_numpy(order)]
    targets = store.targets(1, order)
    top = expected.topk(3)
    assert torch.allclose(targets.gather(1, top.indices), top.values, atol=1e-3)
    assert torch.equal(targets.topk(3).indices, top.indices)
    assert torch.allclose(targets.sum(1), torch.ones(3), atol=1e-6)


def test_another_seed_is_refused_unless_none_is_noted(tmp_path: Path) -> None:
    LogitStore.create(tmp_path, replace(INFO, seed=0))
    LogitStore.create(tmp_path, replace(INFO, seed=0))
    with pytest.raises(ValueError, match=r"begun with other values of \['seed'\]"):
        LogitStore.create(tmp_path, replace(INFO, seed=1))
    noted = json.loads((tmp_path / "store.json").read_text())
    del noted["seed"]
    (tmp_path / "store.json").write_text(json.dumps(noted))  # as earlier versions did
    assert LogitStore.create(tmp_path, replace(INFO, seed=1)).info.seed is None


def test_files_have_the_size_that_the_format_says(tmp_path: Path) -> None:
    filled(tmp_path)
    info = LogitStore.open(tmp_path).info
    assert info.dtype.itemsize == 4 + 4 * 3 + 4
    assert (tmp_path / "epoch_0001.bin").stat().st_size == 10 * 20
    big = replace(info, num_images=14_197_122, num_classes=21_841, top_k=100, epochs=90)
    assert big.num_bytes / 2**30 == pytest.approx(485.5, abs=0.05)
    small = replace(info, num_images=1_281_167, num_classes=1000, top_k=10, epochs=300)
    assert small.num_bytes / 2**30 == pytest.approx(17.18, abs=0.005)


def test_more_classes_than_two_bytes_can_count(tmp_path: Path) -> None:
    info = replace(INFO, num_images=2, num_classes=70_000, epochs=1)
    store, probs = LogitStore.create(tmp_path, info), torch.zeros(2, 70_000)
    probs[0, 69_999], probs[1, 65_536] = 0.9, 0.8
    store.write(0, np.array([1, 2]), probs)
    assert LogitStore.open(tmp_path).targets(0, np.array([0, 1])).argmax(1).tolist() == [69_999, 65_536]


@pytest.mark.parametrize("at", range(20))
def test_a_flipped_bit_anywhere_in_a_record_is_noticed_and_only_there(tmp_path: Path, at: int) -> None:
    filled(tmp_path)
    path, others = tmp_path / "epoch_0001.bin", np.array([0, 1, 2, 4, 5, 6, 7, 8, 9])
    good = path.read_bytes()
    for bit in range(8):
        bad = bytearray(good)
        bad[3 * 20 + at] ^= 1 << bit
        path.write_bytes(bad)
        store = LogitStore.open(tmp_path)
        for read in (store.seeds, store.targets):
            with pytest.raises(ValueError, match=r"epoch_0001\.bin is damaged at image 3; write .* prance distill and"):
                read(1, np.array([5, 3, 8]))
        assert store.seeds(1, others).tolist() == (others + 1000).tolist()
        assert store.seeds(0, np.array([3])).tolist() == [3]


def test_records_of_other_images_epochs_and_stores_are_noticed(tmp_path: Path) -> None:
    filled(tmp_path / "a")
    filled(tmp_path / "b", replace(INFO, teacher="another"))
    first, second = (tmp_path / "a" / f"epoch_000{epoch}.bin" for epoch in range(2))
    good = first.read_bytes()

    def refused(image: int) -> None:
        store = LogitStore.open(tmp_path / "a")
        with pytest.raises(ValueError, match=rf"epoch_0000\.bin is damaged at image {image};"):
            store.targets(0, np.arange(10))

    records = [good[i : i + 20] for i in range(0, 200, 20)]
    records[2], records[7] = records[7], records[2]
    first.write_bytes(b"".join(records))
    refused(2)
    first.write_bytes(good[:80] + second.read_bytes()[80:100] + good[100:])
    refused(4)
    first.write_bytes((tmp_path / "b" / "epoch_0000.bin").read_bytes())
    refused(0)
    first.write_bytes(good)
    assert LogitStore.open(tmp_path / "a").seeds(0, np.arange(10)).tolist() == list(range(10))


def records_without_checksums(seeds: np.ndarray, probs: torch.Tensor) -> bytes:
    top = probs.topk(3)
    rows = zip(seeds.tolist(), top.indices.tolist(), top.values.tolist(), strict=True)
    return b"".join(struct.pack("<I3H3e", seed, *classes, *values) for seed, classes, values in rows)


def old_store(folder: Path) -> bytes:
    """Half of the first epoch as earlier versions left it, and what is to come of that epoch."""
    noted = {"num_images": 10, "num_classes": 7, "top_k": 3, "epochs": 1, "images": "these", "view": {"img_size": 8}}
    (folder / "store.json").write_text(json.dumps({**noted, "teacher": "it", "seed": None, "format": 1}))
    (folder / "progress.json").write_text('{"records": 5}')
    parts = [records_without_checksums(np.arange(s, s + 5), probabilities(5, seed=s)) for s in (0, 5)]
    (folder / "epoch_0000.bin").write_bytes(parts[0] + bytes(80))
    return b"".join(parts)


def test_a_store_of_earlier_versions_goes_on_and_is_read_without_checksums(tmp_path: Path) -> None:
    whole = old_store(tmp_path)
    store = LogitStore.create(tmp_path, replace(INFO, epochs=1, seed=4))
    assert not store.info.checksums
    store.write(store.done, np.arange(5, 10), probabilities(5, seed=5))
    assert (tmp_path / "epoch_0000.bin").read_bytes() == whole
    assert "checksums" not in json.loads((tmp_path / "store.json").read_text())
    new = filled(tmp_path / "new", replace(INFO, epochs=1))
    assert new.info.checksums
    read, order = LogitStore.open(tmp_path), np.array([9, 0, 4])
    assert read.seeds(0, order).tolist() == [9, 0, 4]
    assert torch.equal(read.targets(0, order), LogitStore.open(tmp_path / "new").targets(0, order))


@pytest.mark.parametrize(("at", "content"), [(4, struct.pack("<H", 7)), (10, struct.pack("<e", float("nan")))])
def test_without_checksums_what_no_teacher_says_is_refused(tmp_path: Path, at: int, content: bytes) -> None:
    whole = bytearray(old_store(tmp_path))
    whole[6 * 16 + at : 6 * 16 + at + 2] = content
    (tmp_path / "epoch_0000.bin").write_bytes(whole)
    (tmp_path / "progress.json").write_text('{"records": 10}')
    store = LogitStore.open(tmp_path)
    with pytest.raises(ValueError, match=r"epoch_0000\.bin is damaged at image 6;"):
        store.targets(0, np.arange(10))


def test_with_checksums_a_stopped_store_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    filled(tmp_path / "whole")
    LogitStore.create(tmp_path / "parts", INFO).write(0, np.arange(5), probabilities(5))
    store = LogitStore.create(tmp_path / "parts", INFO)
    for epoch, start in ((0, 5), (1, 0), (1, 5)):
        probs = probabilities(5, seed=100 * epoch + start)
        store.write(store.done, np.arange(start, start + 5) + 1000 * epoch, probs)
    for name in ("store.json", "progress.json", "epoch_0000.bin", "epoch_0001.bin"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert (tmp_path / "parts" / "epoch_0001.bin").stat().st_size == 10 * 20


def test_with_all_classes_the_gradient_is_that_of_the_divergence_from_the_teacher() -> None:
    teacher = probabilities(4)
    listed = teacher.topk(7)
    target = dense(listed.indices, listed.values.half().float(), 7)
    assert torch.allclose(target, teacher, atol=1e-3)
    exact = dense(listed.indices, listed.values, 7)
    student = torch.randn(4, 7, requires_grad=True)
    (own,) = torch.autograd.grad(F.cross_entropy(student, exact), student)
    divergence = F.kl_div(student.log_softmax(1), teacher, reduction="batchmean")
    (expected,) = torch.autograd.grad(divergence, student)
    assert torch.allclose(own, expected, atol=1e-6)


def test_a_store_that_was_begun_goes_on_and_is_not_read_before_it_is_whole(tmp_path: Path) -> None:
    store = LogitStore.create(tmp_path, INFO)
    store.write(0, np.arange(5), probabilities(5))
    with pytest.raises(ValueError, match="holds 5 of 20 records; finish it with prance distill --resume"):
        LogitStore.open(tmp_path)
    again = LogitStore.create(tmp_path, INFO)
    assert again.done == 5
    again.write(5, np.arange(5, 10), probabilities(5, seed=5))
    assert again.seeds(0, np.arange(10)).tolist() == list(range(10))
    with pytest.raises(ValueError, match=r"begun with other values of \['top_k'\]"):
        LogitStore.create(tmp_path, replace(INFO, top_k=2))


def test_damaged_stores_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds no store\.json"):
        LogitStore.open(tmp_path)
    filled(tmp_path)
    (tmp_path / "epoch_0001.bin").write_bytes(b"short")
    with pytest.raises(ValueError, match="not 200 bytes long"):
        LogitStore.open(tmp_path)
    for text in ("[]", "{", json.dumps({"format": 9}), json.dumps({"format": 1, "teacher": "x"})):
        (tmp_path / "store.json").write_text(text)
        with pytest.raises(ValueError, match=r"store\.json.*; write the store anew"):
            LogitStore.open(tmp_path)
    with pytest.raises(ValueError, match=r"top_k=8 must lie in 1\.\.7"):
        replace(INFO, top_k=8)
