"""One image at a time: the Gymnasium environment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import gymnasium as gym
import numpy as np
from gymnasium.error import ResetNeeded
from gymnasium.utils import EzPickle
from numpy.typing import NDArray

from .arrays import as_array, to_host
from .engine import CACHE_MB, Ints
from .lanes import EnvSettings, Lanes
from .rendering import render_ansi, render_episode
from .rewards.config import Floats
from .snapshot import restore_snapshot, take_snapshot

RENDER_MODES = ["rgb_array", "ansi"]


class PranceEnv(gym.Env[NDArray[np.float32], NDArray[np.float32]], EzPickle):
    """Classify one image with a network whose size you choose while it runs.

    ## Description
    The blocks of a frozen elastic ViT are run group by group. Before every group but the first (or, with
    `decide_first_group`, before every group), the agent sees what the
    class token knows so far and chooses how wide the next blocks are and how many patches go on (PRANCE, arXiv
    2407.05010).

    ## Action Space
    `Box(-1, 1, (2n + 1,), float32)` for n blocks per group; a = (action + 1) / 2. `normalize_actions=False` gives the
    paper's `Box(0, 1)`. What is out of range is clipped; NaN raises.

    | entries | meaning |
    |---|---|
    | 0 .. n-1 | `mlp_ratio` of each block: choice number round(a (k - 1)) |
    | n .. 2n-1 | `embed_dim` of each block, likewise |
    | 2n | `keep_rate` = min_keep_rate + (1 - min_keep_rate) a: patches kept / patches present; at least one stays |
    | 2n + 1 | only with `token_mode="prune_merge"`: likewise, patches left by merging / patches left by pruning |

    ## Observation Space
    Flat float32 `Box` with finite bounds. `observation="cls"`, for full width D, k widths and T decisions:

    | slice | name | range |
    |---|---|---|
    | D | class token, layer-normed over its active width, zero-padded | [-sqrt(D), sqrt(D)] |
    | 1 | logarithm of its root mean square | [-5, 5] |
    | 1 | maximum probability of the classifier applied to it | [0, 1] |
    | 1 | entropy of the same, relative to the maximum | [0, 1] |
    | k | width of the last block, one-hot | {0, 1} |
    | T | coming decision, one-hot | {0, 1} |
    | 1 | patches left / patches of the image | [0, 1] |
    | 1 | MACs spent / MACs of the full network | [0, 1] |

    `"cls_only"` leaves out what the classifier says, `"constant"` all but the decision (a control: the best such
    agent is a static subnet). With `cost_conditioning` one more entry is the last: the logarithm of the price of
    computation, 0 at `low` and 1 at `high`. `prance_env.observation_layout` gives the slices, and
    `prance_env.wrappers.DictObservation` takes the vector apart.

    `"key_mean"` is what PRANCE's authors show their selector, one number a token: the mean of its key over heads and
    channels in the last block, in the present order of the tokens, clipped to [-100, 100]. Zeros stand in for tokens
    that have left, and for all of them before the first block.

    ## Rewards
    Result-to-Go: after every decision the rest of the network is run at full size, and the reward is
    `accuracy - macs_weight * MACs / MACs_full - token_weight * keep_rate`; the three terms are `reward_accuracy`,
    `reward_macs` and `reward_tokens` in the info. `RewardConfig` has the other modes, the paper's constants
    (`reward={"preset": "paper"}`), measured milliseconds instead of MACs (`{"cost": "latency", "latency_table": FILE}`;
    `reward_macs` is then the term of the milliseconds) and functions of yours (`{"function": "package.module:name"}`).

    With `cost_conditioning=(low, high)` every episode has a `macs_weight` of its own, drawn log-uniformly and observed;
    that of the reward is not used.

    ## Starting State
    A random image of the split, after the patch embedding and the first group, which always run at full size; with
    `decide_first_group` after the patch embedding.
    `reset(options={"index": i})` chooses the image, and `{"macs_weight": w}` the price of a conditioned episode.

    ## Episode End
    `terminated` after the last decision; never truncated.

    ## Info
    Always the same keys: `index, label, decision, embed_dim, mlp_ratio, num_tokens, macs, macs_fraction,
    reward_accuracy, reward_macs, reward_tokens, prediction, is_success`; with cost conditioning also `macs_weight`, and
    with a latency table `latency_ms`. Sizes, `macs` (multiply-accumulates), `latency_ms` and `prediction` are those of
    the inference finished at full size from here.

    ## Ids
    `Prance-Digits-v0` has everything it needs. `Prance-Tiny-v0`, `Prance-Small-v0` and `Prance-Base-v0` are PRANCE's
    supernets and need `checkpoint` and `dataset`. `prance list` shows them all.

    ## Version History
    * v0: first version.

    Args:
        supernet: Name of a registered supernet.
        checkpoint: Folder with its weights (`save_pretrained`); None takes the bundled ones, which "digits" has.
        dataset: Where the images come from: "digits"; a folder `<split>/<class>/*.jpg`, or `<class>/*.jpg` for every
            split; a name of `timm.data.create_dataset` ("torch/...", "hfds/...", "wds/...", ...); a name given to
            `register_dataset`; or a dict with the fields of `prance_env.images.config.DatasetConfig`. None is an error
            that says what to pass: the default of the ids of PRANCE's supernets.
        split: "train", "val" or "test"; timm's readers also take names of their own.
        reward: Fields of `RewardConfig`, as a dict, or "preset" and changes to it; None gives the defaults.
        observation: "cls", "cls_only", "constant" or "key_mean".
        normalize_actions: Whether the action space is Box(-1, 1) instead of Box(0, 1).
        device: Torch device of the supernet.
        render_mode: None, "rgb_array" or "ansi".
        cost_conditioning: (low, high): range of the `macs_weight` that is drawn for every episode; (low, high, fixed):
            every episode has the third, observed in that range, as for evaluation. None: the reward's, not observed.
        cache_mb: MiB for what no action can change, the output of the first group; of memory on the device, or of disk.
            Beyond it, it is computed anew when an image is drawn.
        cache_dir: Folder for that cache, so that it outlives the process and others share it; None keeps it in memory.
        num_workers: Processes that decode image files while the network runs; 0 decodes in this one.
        on_error: What to do about an image that cannot be decoded: "raise", or "skip" it for the next good one.
        token_mode: How patches leave: "prune", "prune_fused", "merge", "prune_merge" or "tome" (see
            `supernet.tokens.modes`); None: as the checkpoint says. "prune_merge" has two keep rates.
        dtype: Precision of the supernet: "float32", "bfloat16" or "float16". Observations are float32 all the same.
        decide_first_group: Whether a decision precedes the first group, too, which is one more an episode; it needs
            groups of equally many blocks. None: as the checkpoint says, usually not.

    Raises:
        ValueError: If an argument is unknown or out of range.
        FileNotFoundError: If the checkpoint or the latency table is missing.
        ModuleNotFoundError: If a package that the data set needs is missing.
    """

    metadata: dict[str, Any] = {"render_modes": RENDER_MODES, "render_fps": 2}  # noqa: RUF012

    def __init__(
        self,
        supernet: str = "digits",
        checkpoint: str | None = None,
        dataset: str | dict[str, Any] | None = "digits",
        split: str = "train",
        reward: dict[str, Any] | None = None,
        observation: str = "cls",
        normalize_actions: bool = True,
        device: str = "cpu",
        render_mode: str | None = None,
        cost_conditioning: Sequence[float] | None = None,
        cache_mb: float = CACHE_MB,
        cache_dir: str | None = None,
        num_workers: int = 0,
        on_error: str = "raise",
        token_mode: str | None = None,
        dtype: str = "float32",
        decide_first_group: bool | None = None,
    ) -> None:
        EzPickle.__init__(
            self,
            supernet,
            checkpoint,
            dataset,
            split,
            reward,
            observation,
            normalize_actions,
            device,
            render_mode,
            cost_conditioning,
            cache_mb,
            cache_dir,
            num_workers,
            on_error,
            token_mode,
            dtype,
            decide_first_group,
        )
        check_render_mode(render_mode)
        self.settings = EnvSettings.from_arguments(
            supernet,
            checkpoint,
            dataset,
            split,
            reward,
            observation,
            normalize_actions,
            device,
            cost_conditioning,
            cache_mb=cache_mb,
            cache_dir=cache_dir,
            num_workers=num_workers,
            on_error=on_error,
            token_mode=token_mode,
            dtype=dtype,
            decide_first_group=decide_first_group,
        )
        observation_space, action_space = self.settings.spaces()
        self.observation_space, self.action_space = cast(Any, observation_space), cast(Any, action_space)
        self.render_mode = render_mode
        self._lanes: Lanes | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Begins an episode.

        Args:
            seed: Seeds the choice of images, now and later.
            options: May hold "index", the image to classify, and, if the environment is cost-conditioned,
                "macs_weight", the price of this episode. What is not given is drawn.

        Raises:
            ValueError: If an option is unknown, has another shape or lies out of range.
            IndexError: If the image does not exist.
            gymnasium.error.Error: If the seed is negative or no integer.
        """
        index, macs_weight = check_options(options, self.settings, ())
        lanes = Lanes(self.settings, 1) if self._lanes is None else self._lanes
        before = self._np_random, self._np_random_seed
        try:
            super().reset(seed=seed)
            lanes.generators = [self.np_random]
            lanes.start(
                np.zeros(1, dtype=np.int64),
                None if index is None else index.reshape(1),
                None if macs_weight is None else macs_weight.reshape(1),
            )
        except BaseException:
            self._np_random, self._np_random_seed = before
            lanes.generators = [before[0]]
            raise
        self._lanes = lanes
        return self._returned(lanes)

    def step(self, action: NDArray[np.float32]) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Takes one decision.

        Raises:
            gymnasium.error.ResetNeeded: Before the first reset and after the end of an episode.
            ValueError: If the action has another shape or holds NaN, or a reward function returns something else than
                finite numbers. The episode is then as before.
        """
        lanes = self._lanes
        if lanes is None or bool(lanes.terminated()[0]):
            raise ResetNeeded("The episode has not begun or is over; call reset() before step().")
        action = check_action_shape(action, self.action_space.shape or ())
        lanes.step(action[None])
        reward, terminated = float(lanes.rewards()[0]), bool(lanes.terminated()[0])
        observation, info = self._returned(lanes)
        return observation, reward, terminated, False, info

    def render(self) -> Any:
        """The frame that `render_mode` asks for: uint8 (H, W, 3), or a line of text."""
        if self.render_mode is None:
            gym.logger.warn("render() needs a render_mode; pass render_mode='rgb_array' to gym.make.")
            return None
        if self._lanes is None:
            raise ResetNeeded("Call reset() before render().")
        render = render_episode if self.render_mode == "rgb_array" else render_ansi
        return render(self._lanes.engine, self._lanes.lane(0))

    def close(self) -> None:
        """Drops the reference to the engine; may be called twice."""
        self._lanes = None

    def state_dict(self) -> dict[str, Any]:
        """Everything that coming results depend on; see `PranceVectorEnv.state_dict`.

        Raises:
            gymnasium.error.ResetNeeded: Before the first reset.
        """
        if self._lanes is None:
            raise ResetNeeded("Call reset() before state_dict().")
        return take_snapshot(self._lanes, None)

    def load_state_dict(self, state: dict[str, Any]) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Goes on where `state_dict` was called, in this or another process.

        Returns:
            The current observation and info, as `reset` would.

        Raises:
            ValueError: If the state is another environment's or damaged; nothing has changed then.
        """
        lanes = Lanes(self.settings, 1) if self._lanes is None else self._lanes
        restore_snapshot(lanes, None, state)
        if lanes.generators[0] is not None:
            self.np_random = lanes.generators[0]
        self._lanes = lanes
        return self._returned(lanes)

    @staticmethod
    def _returned(lanes: Lanes) -> tuple[NDArray[np.float32], dict[str, Any]]:
        observations, infos = to_host((lanes.observations(), lanes.infos()))
        return observations[0], {k: v[0] if v.ndim > 1 else v[0].item() for k, v in infos.items()}


def check_render_mode(render_mode: str | None) -> None:
    """Raises ValueError unless the mode is None or in `RENDER_MODES`."""
    if render_mode is not None and render_mode not in RENDER_MODES:
        raise ValueError(f"render_mode={render_mode!r} is unknown; choose None or one of {RENDER_MODES}.")


def check_options(
    options: dict[str, Any] | None, settings: EnvSettings, shape: tuple[int, ...], other: tuple[str, ...] = ()
) -> tuple[Ints | None, Floats | None]:
    """The images and the prices that `reset(options=)` asks for, None where it does not.

    Args:
        options: As given by the user.
        settings: Of the environment.
        shape: Of both.
        other: Further keys that are allowed.

    Raises:
        ValueError: If there is an unknown key, or a value has another shape or lies out of range.
    """
    conditioning = settings.cost_conditioning
    allowed = ["index", *(["macs_weight"] if conditioning else []), *other]
    if options is not None and not isinstance(options, dict):
        raise ValueError(f"options={options!r} must be None or a dict with keys among {allowed}.")
    options = options or {}
    if unknown := [key for key in options if key not in allowed]:
        hint = " (macs_weight needs an environment with cost_conditioning)" if "macs_weight" in unknown else ""
        raise ValueError(f"options has the unknown keys {unknown}; allowed are {allowed}{hint}.")
    index, price = options.get("index"), options.get("macs_weight")
    return (
        None if index is None else check_index(index, shape),
        None if price is None or conditioning is None else conditioning.check(price, shape),
    )


def check_index(index: Any, shape: tuple[int, ...]) -> Ints:
    """`options["index"]` as an array.

    Raises:
        ValueError: If its shape is not `shape` or it holds no whole numbers.
    """
    array = as_array(index)
    if array.shape != shape or not np.issubdtype(array.dtype, np.integer) or array.dtype == np.uint64:
        raise ValueError(
            f"options['index']={index!r} has the shape {array.shape} and type {array.dtype}; "
            f"expected whole numbers of shape {shape}."
        )
    return array.astype(np.int64)


def check_action_shape(action: Any, shape: tuple[int, ...]) -> NDArray[np.floating]:
    """The action, an array or a tensor on any device, as an array.

    Raises:
        ValueError: If its shape is not `shape` or it holds no real numbers.
    """
    array = as_array(action)
    numbers = np.issubdtype(array.dtype, np.floating) or np.issubdtype(array.dtype, np.integer)
    if array.shape != shape or not numbers:
        raise ValueError(f"The action is {array.dtype} of shape {array.shape}; expected numbers of shape {shape}.")
    return array
