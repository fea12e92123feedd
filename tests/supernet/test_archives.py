"""Archives of arrays and states: whatever bit flips, they are what was written or refused."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from supernet.archives import check_archive, load_state, read_arrays

ARRAYS = {"index": np.arange(12), "share": np.linspace(0, 1, 7)}
STATE = {"net": {"weight": torch.arange(24.0).reshape(4, 6)}, "step": 3}


def damaged(data: bytes) -> list[bytes]:
    """Every byte changed in a few ways: one bit, the kinds of compression, what flags and versions there are."""
    values = [{byte ^ 1, byte ^ 128, 0, 8, 9, 12, 14, 95, 255} - {byte} for byte in data]
    return [data[:i] + bytes([v]) + data[i + 1 :] for i, found in enumerate(values) for v in sorted(found)]


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.filterwarnings("ignore")
def test_damaged_arrays_are_refused_or_what_they_were(save: Callable[..., None], tmp_path: Path) -> None:
    path, refused = tmp_path / "a.npz", list[str]()
    save(path, **ARRAYS)
    np.testing.assert_equal(read_arrays(path), ARRAYS)
    for data in damaged(path.read_bytes()):
        path.write_bytes(data)
        try:
            found = read_arrays(path)
        except ValueError as e:
            refused.append(str(e))
        else:  # dates, or names in the directory
            assert all(np.array_equal(found[k], v) for k, v in ARRAYS.items() if k in found)
    assert len(refused) > 2000
    assert all(str(path) in e for e in refused)


def test_arrays_of_other_kinds_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_arrays(tmp_path / "a.npz")
    np.save(tmp_path / "a.npy", np.arange(3))
    with pytest.raises(ValueError, match="damaged or holds no arrays by name"):
        read_arrays(tmp_path / "a.npy")
    np.savez(tmp_path / "a.npz", index=np.array([{"a": 1}], dtype=object))
    with pytest.raises(ValueError, match="damaged or holds no arrays by name"):
        read_arrays(tmp_path / "a.npz")


def test_damaged_states_are_refused_or_what_they_were(tmp_path: Path) -> None:
    path, refused = tmp_path / "last.pt", list[str]()
    torch.save(STATE, path)
    torch.testing.assert_close(load_state(path), STATE, rtol=0, atol=0)
    for data in damaged(path.read_bytes())[::3]:
        path.write_bytes(data)
        try:
            found = load_state(path)
        except ValueError as e:
            refused.append(str(e))
        else:  # what fills up the space between the files
            torch.testing.assert_close(found, STATE, rtol=0, atol=0)
    assert len(refused) > 2000
    assert all(str(path) in e and "put a copy of it back, or begin anew in another folder" in e for e in refused)


def test_a_file_that_is_said_to_be_a_folder_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    torch.save(STATE, path)
    data = bytearray(path.read_bytes())
    attributes = data.rindex(b"last/data/0") - 8  # in the directory at the end
    assert data[attributes] == 0
    data[attributes] = 16
    path.write_bytes(data)
    with pytest.raises(ValueError, match="it says that files are folders"):
        load_state(path)


@pytest.mark.parametrize("kind", ["empty", "zeros", "half", "another", "more"])
def test_what_is_no_state_is_refused(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    torch.save(STATE, path)
    good = path.read_bytes()
    others = {"empty": b"", "zeros": bytes(64), "half": good[: len(good) // 2]}
    if kind == "another":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a.txt", "no state")
    elif kind == "more":
        torch.save({"path": tmp_path}, path)
    else:
        path.write_bytes(others[kind])
    with pytest.raises(ValueError, match="put a copy of it back"):
        load_state(path)


def test_an_archive_in_an_archive_is_not_taken_for_the_whole(tmp_path: Path) -> None:
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("data", "inner")
    path = tmp_path / "last.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("policy.pth", inner.getvalue())
        archive.writestr("data", "outer")
    check_archive(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.index(b"outer")])
    assert zipfile.is_zipfile(path)
    with pytest.raises(ValueError, match="its end is missing"):
        check_archive(path)
    with pytest.raises(FileNotFoundError):
        check_archive(tmp_path / "none.zip")


def test_nothing_is_executed(tmp_path: Path) -> None:
    marker = tmp_path / "marker"

    class Planted:
        def __reduce__(self) -> Any:
            return Path.touch, (marker,)

    torch.save({"state": Planted()}, tmp_path / "last.pt")
    with pytest.raises(ValueError, match="something else than a training state"):
        load_state(tmp_path / "last.pt")
    assert not marker.exists()


def test_an_array_that_is_said_to_be_shorter_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, a=np.arange(40))
    path.write_bytes(path.read_bytes().replace(b"(40,)", b"(30,)"))
    with pytest.raises(ValueError, match=r"a\.npz is damaged .*checksum of a\.npy"):
        read_arrays(path)
