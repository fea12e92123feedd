"""Classes as texts: reading names, and what becomes of a name in many templates."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from supernet.convert.texts import TextEmbeddings, check_names, check_templates, embed_classes, read_lines


def encode(texts: list[str]) -> Tensor:
    """Embeds a text by its letters: no unit vectors, and different for different texts."""
    rows = [[float(text.count(letter)) + len(text) / 50 for letter in "abcdefgh "] for text in texts]
    return torch.tensor(rows)


def test_names_are_read_line_by_line_whatever_stands_around_them(tmp_path: Path) -> None:
    path = tmp_path / "classes.txt"
    path.write_bytes("\ufeffcat\r\n  red   bus \nCafé\n\n\n".encode())
    assert read_lines(path, "class name") == ["cat", "red bus", "Café"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("crème brûlée".encode("latin-1"), r"no text in UTF-8 \(byte 0xe8 at position 2\); .*iconv -f latin1"),
        ("cat".encode("utf-16"), "no text in UTF-8"),
        (b"", "is empty"),
        (b"\n \n", "is empty"),
        (b"cat\n\ndog\n", "line 2 is empty.*put a class name there"),
    ],
)
def test_what_is_no_list_of_names_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "classes.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_lines(path, "class name")
    with pytest.raises(FileNotFoundError, match="one class name a line"):
        read_lines(tmp_path / "none.txt", "class name")


def test_duplicates_are_listed_with_their_places() -> None:
    names = ["crane", "maillot", "Crane", "dog", "maillot"]
    with pytest.raises(ValueError, match=r"'Crane' \(classes 0 and 2\), 'maillot' \(classes 1 and 4\).*crane \(bird\)"):
        check_names(names)
    with pytest.raises(ValueError, match=r"my.txt is empty"):
        check_names([], "my.txt")
    many = [str(i % 6) for i in range(12)]
    with pytest.raises(ValueError, match="and 2 more"):
        check_names(many)


@pytest.mark.parametrize("template", ["a photo", "{} and {}", "{0}", "{name} {}", ""])
def test_a_template_has_one_place_for_the_name(template: str) -> None:
    with pytest.raises(ValueError, match=r"exactly one \{\}"):
        check_templates(["a {}.", template])
    with pytest.raises(ValueError, match="no templates"):
        check_templates([])


def test_one_template_gives_the_normalised_embedding_and_the_order_of_many_does_not_matter() -> None:
    names, templates = ["cab", "bad egg", "head"], ["a {}.", "{} here", "the bad {}"]
    one = embed_classes(encode, names, 50.0, ["a {}."])
    torch.testing.assert_close(one.vectors, F.normalize(encode([f"a {n}." for n in names]), dim=1))
    many = embed_classes(encode, names, 50.0, templates)
    torch.testing.assert_close(many.vectors.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(many.vectors, embed_classes(encode, names, 50.0, templates[::-1]).vectors)
    by_hand = F.normalize(F.normalize(encode([t.replace("{}", "head") for t in templates]), dim=1).mean(0), dim=0)
    torch.testing.assert_close(many.vectors[2], by_hand)
    for batch_size in (1, 2, 7):
        parts = embed_classes(encode, names, 50.0, templates, batch_size=batch_size)
        torch.testing.assert_close(parts.vectors, many.vectors)


def test_embeddings_come_back_from_a_file_without_a_text_tower(tmp_path: Path) -> None:
    texts = embed_classes(encode, ["cab", "Café"], 64.25, ["a {}."], "some model")
    texts.save(tmp_path / "texts.safetensors")
    again = TextEmbeddings.load(tmp_path / "texts.safetensors")
    assert (again.names, again.scale, again.templates, again.source) == (
        ("cab", "Café"),
        64.25,
        ("a {}.",),
        "some model",
    )
    assert torch.equal(again.vectors, texts.vectors)


def test_other_files_and_wrong_numbers_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "texts.safetensors"
    with pytest.raises(FileNotFoundError, match="No text embeddings"):
        TextEmbeddings.load(path)
    path.write_bytes(b"none")
    with pytest.raises(ValueError, match="damaged"):
        TextEmbeddings.load(path)
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match=r"holds \['weight'\], but text embeddings are 'text' and 'scale'"):
        TextEmbeddings.load(path)
    unit = F.normalize(torch.randn(2, 4), dim=1)
    for names, vectors, scale, message in (
        (("a",), unit, 100.0, r"shape \(2, 4\) for 1 class names"),
        ((), unit[:0], 100.0, "at least one class"),
        (("a", "b"), 2 * unit, 100.0, "must have length 1, but have 2 to 2"),
        (("a", "b"), unit, 0.0, "scale=0.0"),
        (("a", "b"), unit, float("inf"), "scale=inf"),
    ):
        with pytest.raises(ValueError, match=message):
            TextEmbeddings(names, vectors, scale)
