"""SB3 models as files, with what off-policy algorithms need to go on: their replay buffer."""

from __future__ import annotations

import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from supernet.archives import check_archive

BUFFER, PLACE = "replay_buffer", "place.pt"
ARRAYS = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")


def save_model(model: BaseAlgorithm, path: Path) -> None:
    """SB3's own zip file, under exactly this name."""
    with path.open("wb") as f:
        model.save(f)


def save_checkpoint(model: BaseAlgorithm, path: Path, place: dict[str, Any] | None = None) -> None:
    """SB3's zip file, which also holds what its `load` ignores: the place, and off-policy algorithms' transitions.

    They are in the same file so that a killed process never leaves a model with the transitions of another moment.

    Args:
        model: The model.
        path: The file.
        place: Where its training stands, plain data and tensors such as `agents.sb3.place.place_of` gives.
    """
    save_model(model, path)
    if place is not None:
        written = BytesIO()
        torch.save(place, written)
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(PLACE, written.getvalue())
    if not isinstance(model, OffPolicyAlgorithm):
        return
    buffer = _plain_buffer(model)
    filled = buffer.size()
    state = {name: getattr(buffer, name)[:filled] for name in ARRAYS}
    state["place"] = np.array([buffer.pos, buffer.full])
    with zipfile.ZipFile(path, "a") as archive:
        for name, array in state.items():
            with archive.open(f"{BUFFER}/{name}.npy", "w", force_zip64=True) as f:
                np.lib.format.write_array(f, np.ascontiguousarray(array), allow_pickle=False)


def load_checkpoint(
    cls: type[BaseAlgorithm], path: Path, env: VecEnv, tensorboard_log: str | None = None
) -> BaseAlgorithm:
    """A model to go on with on the CPU, as `save_checkpoint` wrote it; SB3's part of it is pickled.

    Args:
        cls: Class of the algorithm.
        path: The file.
        env: Environments as it was trained in.
        tensorboard_log: Folder for TensorBoard's events; None: that of the training, wherever the file lies now.

    Raises:
        ValueError: If the file is damaged, or holds no transitions, or those of other environments, and the algorithm
            needs them.
    """
    check_archive(path)
    # The file names the folder in which the training began, which may have moved since.
    logged: dict[str, Any] = {} if tensorboard_log is None else {"tensorboard_log": tensorboard_log}
    model = cls.load(path, env=env, device="cpu", **logged)
    if not isinstance(model, OffPolicyAlgorithm):
        return model
    buffer = _plain_buffer(model)
    with zipfile.ZipFile(path) as archive:
        if f"{BUFFER}/place.npy" not in archive.namelist():
            raise ValueError(f"{path} holds no transitions: it is a model to use, not a checkpoint to go on with.")
        state = {name: _read(archive, name) for name in (*ARRAYS, "place")}
    pos, full = state["place"].tolist()
    filled = buffer.buffer_size if full else pos
    for name in ARRAYS:
        array = getattr(buffer, name)
        if state[name].shape != (filled, *array.shape[1:]):
            raise ValueError(f"{path}: {name} has shape {state[name].shape}, not {(filled, *array.shape[1:])}.")
        array[:filled] = state[name]
    buffer.pos, buffer.full = pos, bool(full)
    return model


def read_place(path: Path) -> dict[str, Any] | None:
    """What `save_checkpoint` was given as the place; None if nothing, as before version 0.2."""
    with zipfile.ZipFile(path) as archive:
        if PLACE not in archive.namelist():
            return None
        return torch.load(BytesIO(archive.read(PLACE)), weights_only=True)


def _read(archive: zipfile.ZipFile, name: str) -> np.ndarray[Any, Any]:
    with archive.open(f"{BUFFER}/{name}.npy") as f:
        return np.lib.format.read_array(f, allow_pickle=False)


def _plain_buffer(model: OffPolicyAlgorithm) -> ReplayBuffer:
    buffer = model.replay_buffer
    if buffer is None or not all(hasattr(buffer, name) for name in ARRAYS) or buffer.optimize_memory_usage:
        raise ValueError(
            f"{type(buffer).__name__} cannot be saved; leave replay_buffer_class and its kwargs as they are."
        )
    return buffer
