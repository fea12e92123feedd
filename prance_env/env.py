"""One image at a time: the Gymnasium environment."""

from __future__ import annotations

from typing import Any, ClassVar, cast

import gymnasium as gym
import numpy as np
from gymnasium.error import ResetNeeded
from gymnasium.utils import EzPickle
from numpy.typing import NDArray
from typing_extensions import Unpack

from .arrays import to_host
from .checks import check_action_shape, check_options
from .described import takes_settings
from .lanes import Lanes
from .rendering import render_ansi, render_episode
from .settings import RENDER_MODES, EnvArguments, EnvSettings
from .snapshot import restore_snapshot, take_snapshot


@takes_settings
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
    | n .. 2n-1 | `embed_dim` of each block: choice number round(a (k - 1)) |
    | 2n | `keep_rate` = min_keep_rate + (1 - min_keep_rate) a: ceil(`keep_rate` * patches) go on, at least one |
    | 2n + 1 | only with `token_mode="prune_merge"`: a second rate, of merging, for the patches that pruning leaves |

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

    ## Snapshots
    `state = env.unwrapped.state_dict()` holds generators, images, prices and tokens as plain data and CPU tensors, for
    `torch.save` and `torch.load(weights_only=True)`. `observation, info = env.unwrapped.load_state_dict(state)` goes on
    from there, in this or another process, bit for bit on the same machine and device. The wrappers of `gym.make`
    refuse to step before one `env.reset()`: in a new environment call it before `load_state_dict`, whatever it draws,
    or go on with `env.unwrapped`. The native batch and `PranceVecEnv` have both methods as well (the latter's
    `load_state_dict` returns nothing, and the sums of the monitor that `make_sb3_env` puts around it go along). A state
    of other weights, images, another reward or number of lanes is refused.

    ## Info
    Always the same keys: `index, label, decision, embed_dim, mlp_ratio, keep_rate, num_tokens, macs,
    macs_fraction, reward_accuracy, reward_macs, reward_tokens, prediction, is_success`; with cost conditioning also
    `macs_weight`, and with a latency table `latency_ms`. Sizes, `macs` (multiply-accumulates), `latency_ms` and
    `prediction` are those of the inference finished at full size from here.

    ## Ids
    `Prance-Digits-v0` has everything it needs. `Prance-Tiny-v0`, `Prance-Small-v0` and `Prance-Base-v0` are PRANCE's
    supernets and need `checkpoint` and `dataset`. `prance list` shows them all.

    ## Version History
    * v0: first version.

    Args:
        **arguments: The fields of `prance_env.EnvSettings`, where each is described.

    Raises:
        TypeError: If there is no such argument.
        ValueError: If an argument is out of range.
        FileNotFoundError: If the checkpoint or the latency table is missing.
        ModuleNotFoundError: If a package that the data set needs is missing.
    """

    metadata: dict[str, Any] = {"render_modes": RENDER_MODES, "render_fps": 2}  # noqa: RUF012

    settings_class: ClassVar[type[EnvSettings]] = EnvSettings

    def __init__(self, **arguments: Unpack[EnvArguments]) -> None:
        self.settings = self.settings_class.from_arguments(arguments)
        EzPickle.__init__(self, **{name: getattr(self.settings, name) for name in arguments})
        observation_space, action_space = self.settings.spaces()
        self.observation_space, self.action_space = cast(Any, observation_space), cast(Any, action_space)
        self.render_mode = self.settings.render_mode
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
            with lanes.undone_on_error():
                lanes.start(
                    np.zeros(1, dtype=np.int64),
                    None if index is None else index.reshape(1),
                    None if macs_weight is None else macs_weight.reshape(1),
                )
                returned = self._returned(lanes)
        except BaseException:
            self._np_random, self._np_random_seed = before
            lanes.generators = [before[0]]
            raise
        self._lanes = lanes
        return returned

    def step(self, action: NDArray[np.float32]) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Takes one decision.

        Raises:
            gymnasium.error.ResetNeeded: Before the first reset and after the end of an episode.
            ValueError: If the action has another shape or holds NaN, or a reward function returns something else than
                finite numbers. The episode is then as before.
        """
        lanes = self._lanes
        if lanes is None or lanes.terminated()[0]:
            raise ResetNeeded("The episode has not begun or is over; call reset() before step().")
        action = check_action_shape(action, self.action_space.shape or ())
        with lanes.undone_on_error():
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
        """Drops the reference to the engine, which stays for later ones (`close_engines`); may be called twice."""
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
        with lanes.undone_on_error():
            restore_snapshot(lanes, None, state)
            returned = self._returned(lanes)
        if lanes.generators[0] is not None:
            self.np_random = lanes.generators[0]
        self._lanes = lanes
        return returned

    @staticmethod
    def _returned(lanes: Lanes) -> tuple[NDArray[np.float32], dict[str, Any]]:
        observations, infos = to_host((lanes.observations(), lanes.infos()))
        return observations[0], {k: v[0] if v.ndim > 1 else v.item() for k, v in infos.items()}
