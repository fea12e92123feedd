"""What a wheel lacks, or holds too much, is named."""

from __future__ import annotations

from pathlib import Path
from zipfile import ZipFile

import pytest

from tools.check_wheel import PACKAGES, ROOT, differences, source_files

NAMES = ["supernet/vit.py", "prance_env/weights/digits/model.safetensors", "train/py.typed", "tools/soak.py"]
PACKED = [*NAMES[:3], "prance_env-1.dist-info/METADATA"]


@pytest.mark.parametrize(
    ("packed", "lines"),
    [
        (PACKED, []),
        (PACKED[1:], ["missing from the wheel: supernet/vit.py"]),
        ([*PACKED, "tools/soak.py"], ["does not belong into the wheel: tools/soak.py"]),
        (
            [*PACKED[:2], "train/old.py"],
            ["missing from the wheel: train/py.typed", "does not belong into the wheel: train/old.py"],
        ),
    ],
)
def test_every_difference_is_named(packed: list[str], lines: list[str], tmp_path: Path) -> None:
    with ZipFile(tmp_path / "some.whl", "w") as archive:
        for name in packed:
            archive.writestr(name, "")
    assert differences(NAMES, tmp_path / "some.whl") == lines


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="asks git")
def test_the_source_files_are_those_of_the_repository_without_what_it_ignores() -> None:
    names = source_files(ROOT)
    assert {name.split("/")[0] for name in names} > {*PACKAGES}
    assert "prance_env/weights/digits/model.safetensors" in names
    assert not [name for name in names if "__pycache__" in name]
