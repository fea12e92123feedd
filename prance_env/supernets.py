"""From the arguments of an environment to its supernet: folders of weights, configurations, precisions."""

from __future__ import annotations

import platform
import warnings
from pathlib import Path

import torch

from supernet import SupernetConfig, list_supernets, list_token_modes
from supernet.checkpoint import CONFIG, load_config
from supernet.config import with_space

from .registration import BRING_YOUR_OWN

BUNDLED = {"digits": Path(__file__).parent / "weights" / "digits"}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def resolved_config(
    supernet: str, checkpoint: str | None, token_mode: str | None = None, decide_first_group: bool | None = None
) -> SupernetConfig:
    """Configuration of the checkpoint with what the environment's arguments change of it.

    Args:
        supernet: Name of a registered supernet.
        checkpoint: Folder with its weights; None takes the bundled ones.
        token_mode: How patches leave; None: as the checkpoint says.
        decide_first_group: Whether a decision precedes the first group; None: as the checkpoint says.

    Raises:
        ValueError: If the supernet or the token mode is unknown, or the first group cannot be decided.
        FileNotFoundError: If there is no checkpoint.
    """
    config = load_config(checkpoint_folder(supernet, checkpoint))
    if token_mode is not None:
        if token_mode not in (allowed := token_modes(config)):
            whose = "" if config.prance_embed_dim is None else " to a supernet that runs by the authors' rules"
            raise ValueError(f"token_mode={token_mode!r} is unknown{whose}; choose None or one of {allowed}.")
        config = with_space(config, token_mode=token_mode)
    if decide_first_group is not None:
        groups = config.space.groups
        if decide_first_group and len(set(groups)) > 1:
            raise ValueError(
                f"decide_first_group=True needs groups of equally many blocks, as one action shape serves every "
                f"decision, but this supernet has groups={groups}; leave it out."
            )
        config = with_space(config, decide_first_group=decide_first_group)
    return config


def check_complete(supernet: str, checkpoint: str | None, dataset: object) -> None:
    """Checks that there are weights and images.

    Raises:
        ValueError: If one of them has to be passed and is not; the message has an example.
    """
    missing = []
    if checkpoint is None and supernet in list_supernets() and supernet not in BUNDLED:
        missing.append("checkpoint='FOLDER' (its weights, written by save_pretrained or `prance import`)")
    if dataset is None:
        missing.append("dataset='FOLDER' (images as <split>/<class>/*.jpg, or another name; see docs/images.md)")
    if missing:
        env_id = {name: i for i, name in BRING_YOUR_OWN.items()}.get(supernet, "Prance-Digits-v0")
        raise ValueError(
            f"supernet={supernet!r} needs what is not in the package; pass {' and '.join(missing)}. Bundled are the "
            f"weights of {sorted(BUNDLED)}. For example: "
            f"gym.make({env_id!r}, checkpoint='runs/{supernet}', dataset='/data/imagenet', split='val')"
        )


def token_modes(config: SupernetConfig) -> list[str]:
    """Names of the token modes that a supernet can run with."""
    return list_token_modes(authors=config.prance_embed_dim is not None)


def checked_dtype(dtype: str) -> torch.dtype:
    """The precision of that name.

    Raises:
        ValueError: If it is not a key of `DTYPES`.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r} is unknown; choose one of {list(DTYPES)}.")
    return DTYPES[dtype]


def checked_device(device: str | torch.device) -> torch.device:
    """A device by name, whether it is there or not.

    Raises:
        ValueError: If torch knows no such device, or nothing is computed on it.
    """
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError, ValueError) as e:
        raise ValueError(f"device={device!r} is unknown; pass one such as 'cpu' or 'cuda:0'.") from e
    if found.type == "meta":
        raise ValueError("device='meta' has shapes and no numbers; pass one that computes, such as 'cpu' or 'cuda:0'.")
    return found


def usable_device(device: str | torch.device) -> torch.device:
    """A device by name that is there.

    Raises:
        ValueError: If it is not, or torch knows no such device.
    """
    found = checked_device(device)
    try:
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, ImportError) as e:
        reason = str(e).strip().partition("\n")[0].rstrip(".")
        raise ValueError(f"device={str(device)!r} cannot be used here ({reason}); pass 'cpu'.") from e
    return found


def warn_if_slow(device: torch.device, dtype: torch.dtype) -> None:
    """Warns of a precision that the device only imitates."""
    # Private, but the only way in which torch tells; where it does not, or on other processors, nothing is said.
    known = [getattr(torch.cpu, f"_is_{kind}_supported", None) for kind in ("avx512_bf16", "amx_tile")]
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    if device.type == "cpu" and dtype == torch.bfloat16 and x86 and all(known) and not any(f() for f in known if f):
        warnings.warn(
            "dtype='bfloat16' on a CPU that has no instructions for it: about seven times slower than 'float32', which "
            "takes twice the memory.",
            stacklevel=2,
        )


def checkpoint_folder(supernet: str, checkpoint: str | None) -> Path:
    """Folder of the weights: `checkpoint`, or the bundled one of `supernet`.

    Raises:
        ValueError: If `supernet` is unknown, or has no bundled weights and `checkpoint` is None.
        FileNotFoundError: If the folder holds no supernet.
    """
    if supernet not in list_supernets():
        raise ValueError(f"supernet={supernet!r} is unknown; registered are {list_supernets()}.")
    if checkpoint is None and supernet not in BUNDLED:
        raise ValueError(
            f"supernet={supernet!r} has no bundled weights; pass checkpoint='FOLDER' written by save_pretrained. "
            f"Bundled are {sorted(BUNDLED)}."
        )
    folder = BUNDLED[supernet] if checkpoint is None else Path(checkpoint)
    if not (folder / CONFIG).is_file():
        raise FileNotFoundError(
            f"checkpoint={str(folder)!r} holds no {CONFIG}; pass a folder written by save_pretrained."
        )
    return folder
