"""What an environment takes: the one list of its arguments.

A new argument is two edits: a field of `EnvSettings` with its default and its description, and its name and type in
`EnvArguments`. The faces, pickling, the key under which engines are shared, the page of the environment and the options
of every command derive from them.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property, lru_cache
from typing import Any

import gymnasium as gym
import torch
from typing_extensions import TypedDict, Unpack

from supernet import Supernet, SupernetConfig, freeze, from_pretrained
from supernet.checkpoint import CONFIG
from supernet.files import WEIGHTS, state_of
from supernet.forked_lock import ForkedLock
from supernet.reading import check_fields, make_plain

from .engine import CACHE_MB, InferenceEngine
from .images.config import DatasetConfig, absolute_path
from .images.loading import ON_ERROR, check_dataset, dataset_state, list_datasets, load_dataset
from .naming import check_bare, check_names, spec_of
from .rewards.config import RewardConfig
from .rewards.prices import CostConditioning
from .spaces import action_space, observation_layout, observation_space
from .supernets import (
    check_complete,
    checked_device,
    checked_dtype,
    checkpoint_folder,
    resolved_config,
    usable_device,
    warn_if_slow,
)

IMPORTED_IN = os.getpid()
RENDER_MODES = ["rgb_array", "ansi"]
MOST_WORKERS = 1024
# What no engine depends on: environments that differ in nothing else share one.
_OF_THE_FACE: dict[str, Any] = {"engine": False}
# Threads that want the same engine wait for the first of them.
_opening = ForkedLock()
_shared: weakref.WeakSet[SharedEngine] = weakref.WeakSet()


class EnvArguments(TypedDict, total=False):
    """The arguments of an environment for type checkers and editors; what they mean is said in `EnvSettings`."""

    supernet: str
    checkpoint: str | None
    dataset: str | dict[str, Any] | DatasetConfig | None
    split: str
    reward: dict[str, Any] | RewardConfig | None
    observation: str
    normalize_actions: bool
    device: str
    render_mode: str | None
    cost_conditioning: Sequence[float] | None
    cache_mb: float
    cache_dir: str | None
    num_workers: int
    on_error: str
    token_mode: str | None
    dtype: str
    decide_first_group: bool | None


@dataclass(frozen=True, kw_only=True)
class EnvSettings:
    """The arguments of an environment, plain data, checked; `PranceEnv` says what an environment is.

    Paths may be `pathlib.Path`, and numbers NumPy's. Paths are made absolute, so that they mean the same when the
    process has moved on to another folder. Weights and images are those that the files hold when an environment is
    first reset, or an evaluation begins; a checkpoint whose configuration has changed by then is an error.

    Raises:
        ValueError: If an argument is out of range, or weights or images have to be passed and are not.
        FileNotFoundError: If the checkpoint or the latency table is missing.
        ModuleNotFoundError: If a package that the data set needs is missing.
    """

    supernet: str = "digits"
    """Name of a registered supernet."""
    checkpoint: str | None = None
    """Folder with its weights (`save_pretrained`); None takes the bundled ones, which "digits" has."""
    dataset: str | dict[str, Any] | DatasetConfig | None = "digits"
    """Where the images come from: "digits"; a folder `<split>/<class>/*.jpg`, or `<class>/*.jpg` for every split; a
    name of `timm.data.create_dataset` ("torch/...", "hfds/...", "wds/...", ...); a name given to `register_dataset`; or
    a `prance_env.images.config.DatasetConfig`, or a dict with its fields. None is an error that says what to pass: the
    default of the ids of PRANCE's supernets."""
    split: str = "train"
    """"train", "val" or "test"; timm's readers also take names of their own."""
    reward: dict[str, Any] | RewardConfig | None = field(default=None, metadata=_OF_THE_FACE)
    """A `RewardConfig`, or its fields as a dict, or "preset" and changes to it; None gives the defaults."""
    observation: str = field(default="cls", metadata=_OF_THE_FACE)
    """"cls", "cls_only", "constant", "key_mean", or a name given to `register_observation`."""
    normalize_actions: bool = field(default=True, metadata=_OF_THE_FACE)
    """Whether the action space is Box(-1, 1) instead of Box(0, 1)."""
    device: str = "cpu"
    """Torch device of the supernet: cpu, cuda, cuda:1, ..."""
    render_mode: str | None = field(default=None, metadata=_OF_THE_FACE)
    """None, "rgb_array" or "ansi"."""
    cost_conditioning: Sequence[float] | None = field(default=None, metadata=_OF_THE_FACE)
    """(low, high): range of the `macs_weight` that is drawn for every episode; (low, high, fixed): every episode has
    the third, observed in that range, as for evaluation. None: the reward's, not observed."""
    cache_mb: float = CACHE_MB
    """MiB for what no action can change, the output of the first group; of memory on the device, or of disk. Beyond it,
    it is computed anew when an image is drawn."""
    cache_dir: str | None = None
    """Folder for that cache, so that it outlives the process and others share it; None keeps it in memory."""
    num_workers: int = 0
    """Processes that decode image files while the network runs; 0 decodes in this one."""
    on_error: str = "raise"
    """What to do about an image that cannot be decoded: "raise", or "skip" it for the next good one."""
    token_mode: str | None = None
    """How patches leave: "prune", "prune_fused", "merge", "prune_merge", "tome", "semantic_frozen", what a supernet was
    trained for ("semantic" and its kin), by thresholds "prune_mass" and "merge_above" (see `supernet.tokens`), or a
    name given to `register_token_mode`; None: as the checkpoint says. "prune_merge" has two keep rates."""
    dtype: str = "float32"
    """Precision of the supernet: "float32", "bfloat16" or "float16". Observations are float32 all the same."""
    decide_first_group: bool | None = None
    """Whether a decision precedes the first group, too, which is one more an episode; it needs groups of equally many
    blocks. None: as the checkpoint says, usually not."""

    def __post_init__(self) -> None:
        for name in ("dataset", "reward"):  # our own dataclasses are what a dict of their fields is
            if isinstance(value := getattr(self, name), DatasetConfig | RewardConfig):
                object.__setattr__(self, name, asdict(value))
        make_plain(self)
        _ = checked_device(self.device), self.conditioning, self.dataset is None or self.dataset_config
        check_fields(self)
        check_complete(self.supernet, self.checkpoint, self.dataset)
        self._make_paths_absolute()
        config, reward = self.config(), self.reward_config  # which check what they are made of
        check_dataset(self.dataset_config, self.split)
        if self.cache_mb < 0:
            raise ValueError(f"cache_mb={self.cache_mb!r} must be a number of MiB >= 0; 0 keeps verdicts only.")
        if not 0 <= self.num_workers <= MOST_WORKERS:
            raise ValueError(
                f"num_workers={self.num_workers!r} must lie in 0..{MOST_WORKERS}; 0 decodes in this process."
            )
        if self.on_error not in ON_ERROR:
            raise ValueError(f"on_error={self.on_error!r} is unknown; choose one of {ON_ERROR}.")
        checked_dtype(self.dtype)
        if reward.table is not None:
            reward.table.check(config)
        checked_device(self.device)
        if self.render_mode is not None and self.render_mode not in RENDER_MODES:
            raise ValueError(f"render_mode={self.render_mode!r} is unknown; choose None or one of {RENDER_MODES}.")
        self.layout()

    def _make_paths_absolute(self) -> None:
        changes: dict[str, Any] = {k: getattr(self, k) for k in ("checkpoint", "cache_dir")}
        changes = {k: absolute_path(v) for k, v in changes.items() if v is not None}
        dataset = self.dataset_config.absolute(list_datasets())
        given = self.dataset
        changes["dataset"] = {k: getattr(dataset, k) for k in given} if isinstance(given, dict) else dataset.name
        if isinstance(self.reward, Mapping) and isinstance(table := self.reward.get("latency_table"), str):
            changes["reward"] = {**self.reward, "latency_table": absolute_path(table)}
        for name, value in changes.items():
            object.__setattr__(self, name, value)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # Dataclasses would hash every field, which dicts cannot be.
        cls.__hash__ = EnvSettings.__hash__  # type: ignore[method-assign]

    def __hash__(self) -> int:
        return hash((self.supernet, self.checkpoint, self.split, self.device))

    @classmethod
    def from_arguments(cls, arguments: Mapping[str, Any]) -> EnvSettings:
        """From the keyword arguments of an environment.

        Raises:
            TypeError: If there is no such argument; the message names it and the nearest known one.
        """
        check_names(arguments, [f.name for f in fields(cls) if f.init])
        return cls(**arguments)

    @classmethod
    def from_id(cls, env_id: str = "Prance-Digits-v0", **arguments: Unpack[EnvArguments]) -> EnvSettings:
        """The settings of a registered environment, for evaluation.

        Args:
            env_id: A registered id of this package, with or without "prance_env:" in front.
            **arguments: What differs from the id's own arguments; `dataset=None` takes that of the id.

        Raises:
            ValueError: If the id is not one of this package's, has a time limit or wrappers, needs a checkpoint or a
                data set that is not given, or an argument is out of range.
            TypeError: If there is no such argument.
            FileNotFoundError: If the checkpoint or the latency table is missing.
            ModuleNotFoundError: If a package that the data set needs is missing.
        """
        kwargs = cls.check_id(env_id)
        given = {k: v for k, v in arguments.items() if not (k == "dataset" and v is None)}
        return cls.from_arguments({**kwargs, **given})

    @staticmethod
    def check_id(env_id: str) -> dict[str, Any]:
        """The arguments that an id stands for.

        Raises:
            ValueError: If it is not one of this package's, or has a time limit or wrappers, which are no settings.
        """
        try:
            spec = spec_of(env_id)
        except gym.error.Error as e:
            raise ValueError(f"Environment id {env_id!r} is unknown ({e}); `prance list` shows the known ones.") from e
        if "supernet" not in spec.kwargs:
            raise ValueError(f"{env_id!r} is not an environment of prance_env; `prance list` shows the known ones.")
        check_bare(spec)
        return spec.kwargs

    @property
    def reward_config(self) -> RewardConfig:
        """What `reward` says; a latency table is read anew."""
        return RewardConfig.from_dict(self.reward, self.config())

    @cached_property
    def conditioning(self) -> CostConditioning | None:
        """What `cost_conditioning` says; None if there is one price for all episodes."""
        return CostConditioning.from_plain(self.cost_conditioning)

    @property
    def dataset_config(self) -> DatasetConfig:
        """What `dataset` says."""
        assert self.dataset is not None, "check_complete has said so"
        return DatasetConfig.from_value(self.dataset)

    def config(self) -> SupernetConfig:
        """Configuration of the supernet, with what these settings change of it; as it was when they were made."""
        return self._config

    @cached_property
    def _config(self) -> SupernetConfig:
        return resolved_config(self.supernet, self.checkpoint, self.token_mode, self.decide_first_group)

    def spaces(self) -> tuple[gym.spaces.Box, gym.spaces.Box]:
        """Observation and action space."""
        config, conditioned = self.config(), self.conditioning is not None
        return (
            observation_space(config, self.observation, conditioned),
            action_space(config.space, self.normalize_actions),
        )

    def layout(self) -> dict[str, slice]:
        """Name and slice of every part of the observation, in order."""
        return observation_layout(self.config(), self.observation, self.conditioning is not None)

    def engine(self) -> InferenceEngine:
        """The engine, which all environments of a process share whose settings differ in nothing that it depends on.

        It is opened again if files of the checkpoint or of the data set have changed since.

        Raises:
            ValueError: If the checkpoint has got another configuration since these settings were made.
        """
        if os.getpid() != IMPORTED_IN:
            # A forked child would wait for ever for the OpenMP threads that its parent had.
            torch.set_num_threads(1)
        with _opening.here:
            engine = shared_engine(self.engine_settings()).current()
        if engine.config != self.config():
            raise ValueError(
                f"checkpoint={self.checkpoint!r} was written again with another configuration since this environment "
                "was made, so that its spaces may be others; make the environment (or EnvSettings) again."
            )
        return engine

    def network(self) -> Supernet:
        """The supernet with its weights, frozen; a new one at every call.

        Raises:
            ValueError: If the weights do not fit.
            FileNotFoundError: If they are missing.
        """
        device = usable_device(self.device)
        # It is shared, also by those who will want gradients, whatever its first user does.
        with torch.inference_mode(False):
            net = freeze(from_pretrained(checkpoint_folder(self.supernet, self.checkpoint)))
            net.run_by(self.config())
            warn_if_slow(device, checked_dtype(self.dtype))
            return net.to(device, checked_dtype(self.dtype))

    def engine_settings(self) -> EnvSettings:
        """These settings with everything at its default that the engine does not depend on, and names resolved.

        What the checkpoint says anyway is the same engine, and so are two ways of naming one data set.
        """
        space = self.config().space
        same: dict[str, Any] = {f.name: f.default for f in fields(self) if not f.metadata.get("engine", True)}
        # Mean keys have to be kept beside the prefixes for an observation to show them.
        same["observation"] = "key_mean" if "key_mean" in self.layout() else "cls"
        same |= {"token_mode": space.token_mode, "decide_first_group": space.decide_first_group}
        return replace(self, **same, dataset=asdict(self.dataset_config))


class SharedEngine:
    """One engine, with its weights and caches, for as long as its files and what its names stand for stay as they are.

    Args:
        settings: What `EnvSettings.engine_settings` gave.
    """

    def __init__(self, settings: EnvSettings) -> None:
        self._settings = settings
        self._opened: tuple[Any, InferenceEngine] | None = None
        _shared.add(self)

    def current(self) -> InferenceEngine:
        """The engine; opened now if it has not been, or files or the meaning of names have changed.

        Raises:
            ValueError: If a name is unknown or something does not fit.
            ModuleNotFoundError: If a package that the data set needs is missing.
            OSError: If the checkpoint is missing, or a folder cannot be read.
        """
        state = self._state()
        if self._opened is None or self._opened[0] != state:
            self._opened = None  # before another one needs the memory
            self._opened = state, self._open()
        return self._opened[1]

    def close(self) -> None:
        """Ends its decoding processes, and lets go of the engine."""
        opened, self._opened = self._opened, None
        if opened is not None:
            # Sources of files have workers; to import their class would pull in what others do not need.
            getattr(opened[1].dataset, "end_workers", lambda: None)()

    def _state(self) -> Any:
        """Differs whenever the network or images may differ: also if names of its parts have got another meaning."""
        s = self._settings
        folder = checkpoint_folder(s.supernet, s.checkpoint)
        network = state_of(folder / CONFIG), state_of(folder / WEIGHTS), s.config().stands_for
        return network, dataset_state(s.dataset_config, s.split)

    def _open(self) -> InferenceEngine:
        s = replace(self._settings)  # which reads the checkpoint's configuration again
        net = s.network()
        source = load_dataset(s.dataset_config, s.split, s.config(), s.num_workers, s.on_error, s.cache_dir)
        return InferenceEngine(net, source, s.cache_mb, s.cache_dir, key_mean=s.observation == "key_mean")


@lru_cache(maxsize=8)
def shared_engine(settings: EnvSettings) -> SharedEngine:
    """The engine for what `EnvSettings.engine_settings` gave."""
    return SharedEngine(settings)


def close_engines() -> None:
    """Ends the processes that decode images, and lets go of weights and caches that are kept for later environments.

    The engines of the last eight kinds of environments stay after `close()`, so that the next one of their kind opens
    nothing. An environment that is still open goes on with what it has, and starts new processes if it needs them.
    """
    with _opening.here:
        for engine in list(_shared):
            engine.close()
        shared_engine.cache_clear()
