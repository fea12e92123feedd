"""What a run folder of `prance train agent` says about the environment that its agent is for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from agents.deployed.files import described
from agents.deployed.runs import moved_dataset
from prance_env.images.config import NUMERIC, DatasetConfig
from prance_env.settings import EnvArguments, EnvSettings

from .folder import CONFIG, read_config
from .trust import check_local, check_own_or_local, say_so

PARTS = ("model", "last", "policy")
"""Names, without suffixes, of agents in a run folder."""
REQUIRED = ("env", "split", "checkpoint")
# What an evaluation depends on, and its rows with it; the rest is a matter of the machine.
DEFAULTS: dict[str, Any] = {
    "env": "Prance-Digits-v0",
    "split": "test",
    "checkpoint": None,
    "dataset": None,
    "token_mode": None,
    "dtype": "float32",
    "decide_first_group": None,
    "on_error": None,
}
OF_THE_MACHINE = ("cache_dir", "cache_mb", "device", "num_workers")
"""Arguments of an environment that may change when a run goes on; on a device of another kind not bit for bit."""
# Noted only if they were chosen; what is not is as the environment's id says.
SELDOM = ("decide_first_group", "on_error")


def noted_settings(chosen: Mapping[str, Any]) -> dict[str, Any]:
    """What `settings.json` says of an evaluation on the settings `chosen`, which have the keys of `DEFAULTS`."""
    return {k: v for k, v in chosen.items() if k not in SELDOM or v is not None}


def of_the_machine(environment: EnvArguments) -> dict[str, Any]:
    """Those arguments of an environment that no result depends on: device, cache, workers."""
    return {k: v for k, v in environment.items() if k not in DEFAULTS}


def run_of(name: str) -> Path | None:
    """The run folder of `prance train agent` that an agent's name means, or that holds the file or folder it means;
    None if it is no part of one."""
    path = Path(name)
    folders = [path, path.parent] if path.stem in PARTS and path.exists() else [path]
    return next((folder for folder in folders if (folder / CONFIG).is_file()), None)


def trained_settings(name: str) -> dict[str, Any]:
    """The settings of the run that an agent is of; empty for other agents."""
    run = run_of(name)
    return {} if run is None else read_config(run)


def deployed_interface(name: str) -> dict[str, Any]:
    """What a folder of `AdaptiveViT.save_pretrained` says of its agent's environment; empty for other agents."""
    found = described(name).get("interface")
    return found if isinstance(found, dict) else {}


def env_of_run(run: Path, split: str, dataset: str | dict[str, Any] | None = None) -> EnvSettings:
    """The environment that an agent in a run folder was trained in, on another split and on the CPU.

    Args:
        run: Of `prance train agent`, or an agent in one.
        split: Images.
        dataset: Where they lie now, or all of a data set; see `agents.deployed.runs.moved_dataset`.

    Raises:
        ValueError: If it is somebody else's run, whose images would have to be fetched.
    """
    run = run_of(str(run)) or run
    noted = trained_settings(str(run))
    if dataset is None:
        check_own_or_local(noted.get("dataset"), run / CONFIG)
    moved = {"dataset": moved_dataset(run, noted.get("dataset"), dataset)}
    return environment_of(str(run), {**DEFAULTS, **noted, **moved}, split)


def environment_of(
    name: str, noted: dict[str, Any], split: str, environment: EnvArguments | None = None
) -> EnvSettings:
    """The environment as an agent saw it in training, on the images of `noted`, which has the keys of `DEFAULTS`."""
    arguments = of_the_machine(environment or {}) | noted_settings({k: noted[k] for k in DEFAULTS if k != "env"})
    arguments |= {"split": split, "cost_conditioning": price_range(name)}
    deployed = deployed_interface(name)
    arguments["observation"] = (deployed or trained_settings(name)).get("observation", "cls")
    arguments |= {"normalize_actions": deployed["normalize_actions"]} if deployed else {}
    return EnvSettings.from_id(noted["env"], **arguments)


def shared_settings(names: Sequence[str], keys: Sequence[str]) -> dict[str, Any]:
    """Those of the settings `keys` that the trained agents among `names` noted, in which they must agree.

    Raises:
        ValueError: If they do not, or the images would have to be fetched.
    """
    configs = {name: trained for name in names if (trained := trained_settings(name))}
    shared: dict[str, Any] = {}
    for key in keys:
        found = {name: trained[key] for name, trained in configs.items() if trained.get(key) is not None}
        if not found:
            continue
        if key == "dataset":
            for name, value in found.items():
                check_local(value, Path(name) / CONFIG, say_so(value))
        values = {name: trained.get(key, DEFAULTS[key]) for name, trained in configs.items()}
        first, shared[key] = next(iter(found.items()))
        if any(value != shared[key] for value in values.values()):
            flag = key.replace("_", "-")
            raise ValueError(
                f"The agents were trained with different values of {key}, {values}; name one with --{flag}."
            )
        if key == "dataset":
            shared[key] = moved_dataset(run_of(first) or Path(first), shared[key], None)
    return shared


def settings_for(names: Sequence[str], chosen: Mapping[str, Any]) -> dict[str, Any]:
    """What agents are judged or shown on, with the keys of `DEFAULTS`: what is chosen and not None, else what the
    trained agents among `names` noted, see `shared_settings`, else what saved models say of their supernet, see
    `saved_choices`, else the defaults. A data set that is a text says where images lie: how they are prepared, and what
    their labels are, is as the trained agents noted.

    Raises:
        ValueError: If these noted different things.
    """
    given = {k: v for k, v in chosen.items() if k in DEFAULTS and v is not None}
    if "dataset" in given:
        given["dataset"] = _moved(names, given["dataset"])
    found = {**DEFAULTS, **shared_settings(names, [key for key in DEFAULTS if key not in given]), **given}
    return found | {k: v for k, v in saved_choices(names).items() if found[k] is None}


def saved_choices(names: Sequence[str]) -> dict[str, Any]:
    """The arguments of an environment that say under which choices the first of the models that
    `AdaptiveViT.save_pretrained` wrote runs; the weights are the same under others. Empty if there is none among
    `names`, or a trained agent, for which None means what its checkpoint says.
    """
    saved = next(filter(deployed_interface, names), None)
    supernet = None if saved is None or any(map(trained_settings, names)) else described(saved).get("supernet")
    space = supernet.get("space") if isinstance(supernet, dict) else None
    keys = ("token_mode", "decide_first_group")
    return {key: space[key] for key in keys if key in space} if isinstance(space, dict) else {}


def _moved(names: Sequence[str], place: Any) -> Any:
    """The data set of the trained agents among `names`, whose images lie at `place`."""
    runs = {name: run for name in names if (run := run_of(name)) is not None}
    found = {name: moved_dataset(run, read_config(run).get("dataset"), place) for name, run in runs.items()}
    configs = {name: DatasetConfig.from_value(value) for name, value in found.items()}
    # Runs that have noted the same classes have files of their own of them.
    said = [(replace(c, class_map=None), c.class_map == NUMERIC, c.read_class_map()) for c in configs.values()]
    if any(other != said[0] for other in said):
        raise ValueError(
            f"The agents were trained on images of different preparation or with different labels, {found}; say how "
            "these are to be prepared: --dataset '{\"name\": ...}' (docs/images.md)."
        )
    return next(iter(found.values()), place)


def price_range(name: str) -> tuple[float, float] | None:
    """The prices that an agent was trained for, None if for one only."""
    if (deployed := deployed_interface(name)) and deployed["prices"] is not None:
        return (deployed["prices"][0], deployed["prices"][1])
    price = trained_settings(name).get("macs_weight")
    return (price[0], price[1]) if isinstance(price, list) else None
