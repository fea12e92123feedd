"""The one reader and the one checker of weight files."""

from __future__ import annotations

import argparse
import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from supernet.files import check_tensors, checksum_of, problems_of, read_safetensors, read_weights, write_tensors

SHAPES: dict[str, tuple[int, ...]] = {"a": (2,), "b": (3, 1)}
GOOD = {"a": torch.zeros(2), "b": torch.zeros(3, 1)}


def test_a_safetensors_file_gives_its_tensors_and_its_header_whatever_its_name(tmp_path: Path) -> None:
    save_file(GOOD, tmp_path / "x", {"by": "me"})
    tensors, header = read_safetensors(tmp_path / "x")
    assert header == {"by": "me"}
    assert {k: v.tolist() for k, v in tensors.items()} == {k: v.tolist() for k, v in GOOD.items()}
    (tmp_path / "x").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"x is damaged or not an agent's file .*download or save it again"):
        read_safetensors(tmp_path / "x", kind="an agent's file")


def test_a_flipped_bit_of_tensors_or_of_texts_beside_them_is_noticed(tmp_path: Path) -> None:
    path, texts = tmp_path / "x", {"names": "cat, dog"}
    write_tensors(GOOD, path, texts)
    assert read_safetensors(path)[1] == texts
    good, taken = path.read_bytes(), list[bytes]()
    for i in range(8, len(good)):
        path.write_bytes(good[:i] + bytes([good[i] ^ 1]) + good[i + 1 :])
        with contextlib.suppress(ValueError):
            read_safetensors(path)
            taken.append(good[i : i + 1])
    # A file without a checksum is one of somebody else's.
    assert b"".join(taken) in (b"prancesha256", b"sha256prance")


def test_files_with_the_checksum_of_version_0_1_are_read(tmp_path: Path) -> None:
    save_file(GOOD, tmp_path / "x", {"prance": json.dumps({"names": "cat", "sha256": checksum_of(GOOD)})})
    assert read_safetensors(tmp_path / "x")[1] == {"names": "cat"}
    save_file({**GOOD, "a": torch.ones(2)}, tmp_path / "x", {"prance": json.dumps({"sha256": checksum_of(GOOD)})})
    with pytest.raises(ValueError, match="its checksum is that of other weights"):
        read_safetensors(tmp_path / "x")


@pytest.mark.parametrize("name", ["x.safetensors", "x.pth"])
def test_a_missing_file_is_named_with_what_was_looked_for(name: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"No actor at .*{name}"):
        read_weights(tmp_path / name, "actor")


def test_a_torch_file_may_hold_containers_and_arguments_beside_the_weights(tmp_path: Path) -> None:
    torch.save({"model": GOOD, "args": argparse.Namespace(lr=0.1)}, tmp_path / "x.pth")
    content = read_weights(tmp_path / "x.pth")
    assert content["args"].lr == 0.1
    assert content["model"].keys() == GOOD.keys()


@pytest.mark.parametrize(
    ("change", "problems"),
    [
        ({}, []),
        ({"a": None}, ["missing a"]),
        ({"c": torch.zeros(1)}, ["unexpected c"]),
        ({"a": 3.0}, ["a is a float, not a tensor"]),
        ({"b": torch.zeros(1, 3)}, ["b has the shape (1, 3) instead of (3, 1)"]),
        ({"a": torch.tensor([0, torch.nan])}, ["a holds NaN or inf"]),
        ({"a": torch.zeros(1), "c": torch.tensor(torch.inf)}, ["unexpected c", "a has the", "c holds NaN or inf"]),
    ],
)
def test_everything_that_does_not_fit_is_listed(change: dict[str, Any], problems: list[str]) -> None:
    found = {k: v for k, v in {**GOOD, **change}.items() if v is not None}
    listed = problems_of(found, SHAPES)
    assert len(listed) == len(problems)
    assert all(text.startswith(start) for text, start in zip(listed, problems, strict=True))


def test_precision_counts_where_it_is_asked_for() -> None:
    half = {**GOOD, "a": torch.zeros(2).half()}
    check_tensors(half, SHAPES, "x")
    with pytest.raises(ValueError, match=r"^x does not fit this agent: a is torch.float16 \(2,\), not torch.float32"):
        check_tensors(half, SHAPES, "x", {k: v.dtype for k, v in GOOD.items()}, "agent")


def test_of_many_problems_eight_are_shown_and_the_others_counted() -> None:
    with pytest.raises(ValueError, match=r"missing 0; .*missing 7; and 3 more\.$"):
        check_tensors({}, {str(i): () for i in range(11)}, "x")
