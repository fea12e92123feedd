"""Builds the wheel that users install and compares what is in it with the four packages: `python -m tools.check_wheel`.

A folder without `__init__.py`, or data that `pyproject.toml` does not name, is missing from a wheel and nowhere else:
tests run in the source tree do not notice.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from zipfile import ZipFile

ROOT = Path(__file__).parent.parent
PACKAGES = ("supernet", "prance_env", "agents", "train")


def source_files(root: Path) -> list[str]:
    """What git knows, or would add, that still exists; relative to the root."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout.splitlines()
    return sorted(name for name in set(names) if (root / name).is_file())


def build_wheel(root: Path, names: list[str], folder: Path) -> Path:
    """Copies the source files into `folder`, as an older build beside them would be packed too, and builds a wheel.

    Args:
        root: Root of the repository.
        names: Source files, relative to the root.
        folder: An empty folder.

    Returns:
        Path of the wheel.

    Raises:
        RuntimeError: If pip fails; the message is pip's.
    """
    for name in names:
        (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / name, folder / "source" / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder)]
    done = subprocess.run([*command, str(folder / "source")], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"pip could not build the wheel:\n{done.stdout}{done.stderr}")
    (wheel,) = folder.glob("*.whl")
    return wheel


def differences(names: list[str], wheel: Path) -> list[str]:
    """Compares a wheel with the source files.

    Args:
        names: Source files, relative to the root.
        wheel: The wheel.

    Returns:
        A line for every file of the four packages that the wheel lacks, and for every file that it should not hold.
    """
    wanted = {name for name in names if name.split("/")[0] in PACKAGES}
    with ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if not name.split("/")[0].endswith(".dist-info")}
    lines = [f"missing from the wheel: {name}" for name in sorted(wanted - held)]
    return lines + [f"does not belong into the wheel: {name}" for name in sorted(held - wanted)]


def main() -> None:
    """Ends with an error that names every difference."""
    names = source_files(ROOT)
    with TemporaryDirectory(prefix="prance-wheel-") as folder:
        wheel = build_wheel(ROOT, names, Path(folder))
        if lines := differences(names, wheel):
            sys.exit("\n".join([f"{wheel.name} is not what the packages hold:", *lines]))
        print(f"{wheel.name} holds the packages {', '.join(PACKAGES)} and nothing else")


if __name__ == "__main__":
    main()
