"""Files that are whole or not there: writing without halves, reading and checking weights without running anything."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import re
import secrets
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

WEIGHTS = "model.safetensors"
"""Name of the weights in a folder that this package writes."""

TEMPORARY = ".tmp"
"""Suffix of what is being written."""

WRAPPER = re.compile(r"^(module\.|_orig_mod\.)+")
"""What DataParallel and torch.compile put before the names of weights."""

OURS, CHECKSUM = "prance", "sha256"
"""Under these names the header of a file of weights says what they are, so that one flipped bit is noticed."""

LISTED = 8
"""So many problems are listed in an error, the others counted."""


def write_atomically(path: Path, write: Callable[[str], object]) -> None:
    """Calls `write(temporary name)` beside `path`, flushes that to the disk, and renames.

    Whatever kills the process or the machine, and however full the disk is, `path` is the old file or the new one.

    Args:
        path: The file; its folder is made if there is none.
        write: Writes what is wanted to the name that it is given.
    """
    temporary = temporary_name(path)
    if not path.parent.is_dir():
        path.parent.mkdir(parents=True, exist_ok=True)
    # What is made here has the permissions that the user's umask leaves, whoever opens it later.
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        write(str(temporary))
        flush(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    flush(path.parent)


def temporary_name(path: Path) -> Path:
    """A hidden name beside `path` that tells which process of which machine it belongs to."""
    return path.with_name(f".{path.name}.{_machine()}-{os.getpid()}.{secrets.token_hex(4)}{TEMPORARY}")


def remove_leftovers(folder: Path, alone: bool = False) -> None:
    """Removes what killed processes were writing to a folder, as `temporary_name` calls it.

    Args:
        folder: May be missing.
        alone: Whether no other machine writes to it; else what another one has left may be in use.
    """
    for path in folder.glob(f".*{TEMPORARY}"):
        machine, _, writer = path.name.split(".")[-3].rpartition("-")
        if writer.isdigit() and not _is_alive(int(writer)) and (alone or machine == _machine()):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _machine() -> str:
    return platform.node().replace(".", "-")


def _is_alive(pid: int) -> bool:
    if pid == os.getpid():
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # somebody else's
    return True


def flush(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    if os.name == "nt" and path.is_dir():
        return  # Windows opens no folders
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Writes a text file atomically."""
    write_atomically(path, lambda name: Path(name).write_text(text))


def state_of(path: str | Path) -> Any:
    """Differs whenever a file, or anything in a folder, has been written again, added or removed since.

    Files are told apart by size, times and inode, without being read; that takes about 2 microseconds each.

    Args:
        path: A file or a folder; what does not exist has a state as well.

    Raises:
        OSError: If a folder cannot be read.
    """
    path = Path(path)
    return _state_of_folder(str(path), parents_of(path)) if path.is_dir() else _stat(path)


def _state_of_folder(folder: str, above: frozenset[tuple[int, int]]) -> tuple[Any, ...]:
    inside = above | {folder_id(folder)}
    with os.scandir(folder) as entries:
        found = sorted(entries, key=lambda e: e.name)
    entered = [e.is_dir() and folder_id(e.path) not in inside for e in found]
    return tuple(
        (e.name, _state_of_folder(e.path, inside) if deeper else _stat(e))
        for e, deeper in zip(found, entered, strict=True)
    )


def folder_id(folder: str | Path) -> tuple[int, int]:
    """What tells a folder from others, whatever links lead to it."""
    found = os.stat(folder)
    return found.st_dev, found.st_ino


def parents_of(folder: str | Path) -> frozenset[tuple[int, int]]:
    """`folder_id` of all folders that a folder is in; a link back to one of them would be followed for ever."""
    return frozenset(map(folder_id, Path(folder).resolve().parents))


def digest_of(paths: Iterable[str], folder: str = "") -> str:
    """Differs whenever files have been written again, or are others; the same in a copy that keeps times.

    Unlike `state_of` it is to outlive the process: names, sizes and times of writing count.

    Args:
        paths: Files, and folders of which every file counts.
        folder: What names are told without, so that it may be moved.

    Raises:
        OSError: If there is no such file.
    """
    digest = hashlib.sha256()
    for path in paths:
        inside = sorted(str(p) for p in Path(path).rglob("*") if p.is_file()) if os.path.isdir(path) else [path]
        for file in inside:
            stat = os.stat(file)
            digest.update(os.fsencode(f"{file.removeprefix(folder)} {stat.st_size} {stat.st_mtime_ns}\n"))
    return digest.hexdigest()


def _stat(entry: Path | os.DirEntry[str]) -> tuple[int, ...] | None:
    try:
        found = entry.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino


def read_safetensors(
    path: Path, what: str = "weights", kind: str = "a safetensors file"
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and header of a safetensors file, whatever its name.

    Args:
        path: The file.
        what: What is looked for there, for the message if nothing is.
        kind: What kind of file it should be, for the message if it is another.

    Returns:
        The tensors by name, on the CPU, and the texts that the file's header holds.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged or of another kind.
    """
    if not path.is_file():
        raise FileNotFoundError(f"No {what} at {path}.")
    try:
        with safe_open(path, framework="pt") as f:
            tensors = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118
            texts = f.metadata() or {}
        if OURS in texts:
            texts |= json.loads(texts.pop(OURS))
        checksum = texts.pop(CHECKSUM, None)
        # Those of version 0.1 are of the tensors alone; they are hashed only if they have to be.
        if checksum is not None and all(checksum != checksum_of(tensors, counted) for counted in (texts, {})):
            raise ValueError("its checksum is that of other weights")
        return tensors, texts
    except (SafetensorError, OSError, TypeError, ValueError) as e:
        raise ValueError(f"{path} is damaged or not {kind} ({e}); download or save it again.") from e


def write_tensors(tensors: Mapping[str, Tensor], path: str | Path, texts: Mapping[str, str] | None = None) -> None:
    """Writes a safetensors file with a checksum in its header, which `read_safetensors` compares.

    Args:
        tensors: By name, contiguous, on the CPU.
        path: The file.
        texts: More for the header.
    """
    header = {**(texts or {}), CHECKSUM: checksum_of(tensors, texts or {})}
    # Since 0.8 the library leaves files that are the user's alone, whatever the umask; these keep what it gives them.
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o666))
    mode = os.stat(path).st_mode
    # One text only: safetensors writes several in any order, and equal weights are to be equal files.
    save_file(dict(tensors), path, {OURS: json.dumps(header)})
    os.chmod(path, mode)


def checksum_of(tensors: Mapping[str, Tensor], texts: Mapping[str, str] | None = None) -> str:
    """SHA-256 of the bytes of all tensors, in the order of their names, and of texts beside them if there are any."""
    digest = hashlib.sha256(json.dumps(dict(sorted(texts.items()))).encode() if texts else b"")
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def shapes_in(path: Path) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor in a safetensors file, by its header alone.

    Raises:
        ValueError: If it is damaged.
    """
    try:
        with safe_open(path, framework="pt") as f:
            return {name: tuple(f.get_slice(name).get_shape()) for name in f.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as e:
        raise ValueError(f"{path} is damaged or not a safetensors file ({e}); download or save it again.") from e


def read_weights(path: Path, what: str = "weights") -> Any:
    """What a file of weights holds, by its ending: safetensors, or what `torch.save` wrote.

    A torch file is read with `weights_only=True`: it may hold tensors, plain containers and an `argparse.Namespace`
    (training scripts keep their arguments beside the weights, and it runs nothing).

    Args:
        path: The file.
        what: What is looked for there, for the message if nothing is.

    Returns:
        For safetensors the tensors by name, on the CPU; for a torch file whatever was saved.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged or holds more than tensors.
    """
    if path.suffix == ".safetensors":
        return read_safetensors(path, what)[0]
    if not path.is_file():
        raise FileNotFoundError(f"No {what} at {path}.")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:  # the unpickler answers broken input with exceptions of any kind
        reason = (str(e).splitlines() or [type(e).__name__])[0]
        raise ValueError(
            f"{path} is damaged, or a pickle that holds more than tensors, which could run anything and is not loaded: "
            f"it does not hold weights alone ({reason}). Save the state dict with torch.save(model.state_dict(), path)"
            ", or as safetensors."
        ) from e


def weights_by_name(content: Any, first: tuple[str, ...] = ()) -> dict[str, Tensor]:
    """Weights by name in what a training script has saved.

    Unwraps what stands around them ("model", "state_dict") and what wrappers put before their names.

    Args:
        content: What the file held, or the weights.
        first: More keys under which weights may be, which go before the others.

    Raises:
        ValueError: If there are none.
    """
    for key in (*first, "model", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content:
        raise ValueError(f"Expected weights by name, got {type(content).__name__}.")
    for name, value in content.items():
        if isinstance(value, Mapping | list | tuple) or value is None:
            raise ValueError(
                f"Expected weights by name, but {name!r} is a {type(value).__name__}; save the state dict alone, or "
                "under 'model' or 'state_dict'."
            )
    return {WRAPPER.sub("", str(k)): torch.as_tensor(v) for k, v in content.items() if not isinstance(v, str)}


def check_tensors(
    found: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    source: str,
    dtypes: Mapping[str, torch.dtype] | None = None,
    owner: str = "network",
) -> None:
    """Compares weights with what is expected.

    Args:
        found: The weights by name.
        shapes: Expected shape of every one.
        source: Where they come from, for the message.
        dtypes: Expected precision of every one; None: any.
        owner: What they are for, for the message.

    Raises:
        ValueError: If anything is wrong, with what `problems_of` says.
    """
    if problems := problems_of(found, shapes, dtypes):
        more = f"; and {len(problems) - LISTED} more" if len(problems) > LISTED else ""
        raise ValueError(f"{source} does not fit this {owner}: {'; '.join(problems[:LISTED])}{more}.")


def check_shapes(found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]], source: str) -> None:
    """As `check_tensors`, of shapes alone.

    Raises:
        ValueError: If names or shapes differ.
    """
    check_tensors({k: torch.empty(shape, device="meta") for k, shape in found.items()}, expected, source)


def check_kinds(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], source: str) -> None:
    """Refuses whole or complex numbers where weights are real, and the reverse.

    Raises:
        ValueError: If there are any.
    """
    kinds = {k: (found[k].dtype, v.is_floating_point()) for k, v in expected.items()}
    if wrong := [f"{k} is {dtype}" for k, (dtype, real) in kinds.items() if dtype.is_floating_point != real]:
        raise ValueError(f"{source} holds other kinds of numbers than weights are: {'; '.join(wrong[:LISTED])}.")


def problems_of(
    found: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], dtypes: Mapping[str, torch.dtype] | None = None
) -> list[str]:
    """What is wrong with weights: names missing or unexpected, no tensor, wrong shape or precision, NaN or inf.

    Args:
        found: The weights by name.
        shapes: Expected shape of every one.
        dtypes: Expected precision of every one; None: any.
    """
    problems = [f"missing {k}" for k in shapes if k not in found]
    problems += [f"unexpected {k}" for k in found if k not in shapes]
    problems += [f"{k} is a {type(v).__name__}, not a tensor" for k, v in found.items() if not isinstance(v, Tensor)]
    tensors = {k: v for k, v in found.items() if isinstance(v, Tensor)}
    for k, shape in shapes.items():
        if k not in tensors:
            continue
        own = tensors[k]
        if dtypes is not None and (tuple(own.shape), own.dtype) != (shape, dtypes[k]):
            problems.append(f"{k} is {own.dtype} {tuple(own.shape)}, not {dtypes[k]} {shape}")
        elif tuple(own.shape) != shape:
            problems.append(f"{k} has the shape {tuple(own.shape)} instead of {shape}")
    return problems + [
        f"{k} holds NaN or inf"
        for k, v in tensors.items()
        if v.is_floating_point() and not v.is_meta and not v.isfinite().all()
    ]
