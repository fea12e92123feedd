"""The one implementation of the environment: batches of episodes on a device.

`PranceEnv`, `PranceVectorEnv` and `PranceVecEnv` only translate between this and the interfaces of Gymnasium and
Stable-Baselines3.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from supernet import GroupChoice, InferenceState, Supernet, SupernetConfig
from supernet.arrays import Floats, Ints, sent
from supernet.runtime.choice import runs_tiles
from supernet.runtime.graphs import Recorder
from supernet.runtime.memory import said_if_too_large

from .cache import PrefixCache
from .device_episodes import DeviceEpisodes, Observing, begun_on_device, decide_on_device
from .episodes import Episodes
from .images.source import ImageDataset, ImageSource, check_fits
from .observations import OBSERVATIONS, check_own_parts, is_known
from .rewards.config import RewardConfig, accuracy_term, terms
from .rewards.costs import LatencyCost, MacsCost
from .rewards.outcome import Outcome, call_reward_function
from .rewards.prices import CostConditioning
from .spaces import observe

CACHE_BATCH = 256
CACHE_MB = 1024.0
STEADY_ROWS = 16
AHEAD, AHEAD_MACS = 16, 200_000_000
"""Images that are computed at a time where any are, if there are so many coming, and most MACs that this may take."""
Coming = Callable[[int], Ints]
REWARDED = ("reward", "reward_accuracy", "reward_macs", "reward_tokens", "value")


class InferenceEngine:
    """Runs episodes of one frozen supernet over one data set.

    What no action can change, the output of the patch embedding and the first group and the verdict of the full
    network, is computed once per image and kept, as far as the budget goes.

    Args:
        net: The supernet, frozen.
        dataset: The images.
        cache_mb: MiB for what is kept of images; beyond it, it is computed anew.
        cache_dir: Folder for what is kept, shared by processes; None keeps it in memory, as does, with a warning, a
            folder that cannot be written.
        key_mean: Whether the observation "key_mean" can be asked for; it is then kept with the prefixes.

    Raises:
        ValueError: If images or labels do not fit the supernet.
    """

    def __init__(
        self,
        net: Supernet,
        dataset: ImageSource,
        cache_mb: float = CACHE_MB,
        cache_dir: str | Path | None = None,
        key_mean: bool = False,
    ) -> None:
        check_fits(dataset, net.config)
        self.net, self.dataset, self.key_mean = net, dataset, key_mean
        self.labels: Ints = dataset.labels.numpy()
        self.full_macs = int(net.macs().item())
        self._macs = MacsCost(net, self.full_macs)
        self.cache = PrefixCache(net, dataset, cache_mb, cache_dir, key_mean)
        self._recorder = Recorder()
        # What is decoded takes longer than such a network, and may be broken.
        in_memory = isinstance(dataset, ImageDataset)
        self._ahead = min(AHEAD, AHEAD_MACS // self.full_macs) if in_memory else 0
        self._full_prediction, self._full_prob = self.cache.prediction, self.cache.prob

    @property
    def config(self) -> SupernetConfig:
        """Configuration of the supernet."""
        return self.net.config

    @torch.inference_mode()
    def start(self, index: Ints, coming: Coming | None = None) -> Episodes:
        """Begins one episode per entry of `index`.

        A broken image is replaced by the next good one if the data set says so; `Episodes.index` tells which.

        Args:
            index: (B,) images.
            coming: Gives so many images that are likely to be started next. Where one has to be computed, these are as
                well, if there are few and the network is small, so that they cost little together.

        Raises:
            IndexError: If an entry is not an image of the data set.
            RuntimeError: If a GPU has not the memory for so many images.
            OSError: If an image is broken and the data set says that this is an error.
        """
        if len(index) and (index.min() < 0 or index.max() >= len(self.dataset)):
            bad = index[(index < 0) | (index >= len(self.dataset))]
            raise IndexError(
                f"index={bad[0]} is not an image of this data set; allowed are 0..{len(self.dataset) - 1}."
            )
        with self._memory(len(index)), self._own_precision():
            index, rows = self._prefixes(index, coming)
        c, space, batch = self.config, self.config.space, len(index)
        key_mean = rows[..., c.embed_dim].float() if self.key_mean else None
        state = self.net.begun(rows[..., : c.embed_dim], key_mean)
        zeros = np.zeros(batch)
        return Episodes(
            index=index,
            label=self.labels[index],
            state=state,
            decision=0,
            embed_dim=np.full((batch, space.depth), c.embed_dim, dtype=np.int64),
            mlp_ratio=np.full((batch, space.depth), space.mlp_ratios[-1]),
            keep_rate=np.ones((batch, space.num_decisions, *((space.num_rates,) if space.num_rates > 1 else ()))),
            macs=np.full(batch, self.full_macs, dtype=np.int64),
            prediction=self._full_prediction[index],
            prob=self._full_prob[index],
            reward=zeros,
            reward_accuracy=zeros,
            reward_macs=zeros,
            reward_tokens=zeros,
            value=zeros,
        )

    @torch.inference_mode()
    def step(
        self,
        episodes: Episodes,
        actions: Floats | Tensor,
        reward: RewardConfig,
        observing: Observing | None = None,
    ) -> Episodes:
        """Takes one decision in every episode.

        On a GPU, where groups run by tiles and rewards are made of MACs, nothing waits for the device until one of the
        numbers is asked for. There, an action that holds NaN gives a reward of NaN.

        Args:
            episodes: Unchanged.
            actions: (B, A) in [0, 1], an array or a tensor.
            reward: How to score it.
            observing: What `observe` will be asked afterwards, if that is known: on a GPU it is made with the step.

        Returns:
            The episodes one group later.
        """
        with self._memory(len(episodes)), self._own_precision():
            if self._on_device(reward):
                return self._step_on_device(episodes, actions, reward, observing)
            values = actions.double().cpu().numpy() if isinstance(actions, Tensor) else actions
            return self._step_on_host(episodes.host, values, reward)

    def _step_on_host(self, episodes: Episodes, actions: Floats, reward: RewardConfig) -> Episodes:
        space, decision, batch = self.config.space, episodes.decision, len(episodes)
        group = episodes.state.group
        choice = GroupChoice.from_actions(space, torch.from_numpy(actions))
        state = self.net.run_group(episodes.state, group, choice, known=True)
        paid = reward.mode != "terminal" or decision == space.num_decisions - 1
        macs, prediction, prob = self._to_go(state, episodes.label, paid)

        blocks = space.blocks(group)
        embed_dim, mlp_ratio, keep_rate = (
            episodes.embed_dim.copy(),
            episodes.mlp_ratio.copy(),
            episodes.keep_rate.copy(),
        )
        embed_dim[:, blocks.start : blocks.stop] = choice.embed_dim.numpy()
        mlp_ratio[:, blocks.start : blocks.stop] = choice.mlp_ratio.numpy()
        keep_rate[:, decision] = choice.keep_rate.numpy()
        latency_spent_ms, latency_ms, full_latency_ms = self._latency(episodes, choice, state, reward)
        following = replace(
            episodes,
            state=state,
            decision=decision + 1,
            embed_dim=embed_dim,
            mlp_ratio=mlp_ratio,
            keep_rate=keep_rate,
            macs=macs,
            prediction=prediction,
            prob=prob,
            latency_spent_ms=latency_spent_ms,
            latency_ms=latency_ms,
        )
        if not paid:
            zeros: Any = np.zeros(batch)
            return replace(following, **dict.fromkeys(REWARDED, zeros))
        return replace(following, **self._rewards(following, reward, full_latency_ms))

    def _memory(self, batch: int) -> AbstractContextManager[None]:
        weights = self.net.pos_embed
        return said_if_too_large(self.config, weights.dtype, weights.device, batch)

    def _own_precision(self) -> AbstractContextManager[Any]:
        """Around what is computed here: the precision of the weights, also inside a caller's autocast."""
        device = self.net.pos_embed.device.type
        return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()

    def _on_device(self, reward: RewardConfig) -> bool:
        """Whether steps are computed on the device as a whole."""
        weights = self.net.pos_embed
        plain = reward.function is None and reward.latency_table is None
        return plain and runs_tiles(self.config, weights.device, weights.dtype)

    def _step_on_device(
        self, episodes: Episodes, actions: Floats | Tensor, reward: RewardConfig, observing: Observing | None
    ) -> Episodes:
        if not isinstance(episodes, DeviceEpisodes):
            index = episodes.index
            episodes = begun_on_device(episodes, self.config, self._full_prediction[index], self._full_prob[index])
        device = self.net.pos_embed.device
        unit = actions if isinstance(actions, Tensor) else sent(actions, device)
        unit = unit.to(device, torch.float64, non_blocking=True)
        if observing is not None and not self._seen_with_steps(observing.observation):
            observing = None
        return decide_on_device(self.net, self.full_macs, episodes, unit, reward, self._recorder, observing)

    def _rewards(self, episodes: Episodes, reward: RewardConfig, full_latency_ms: float | None) -> dict[str, Any]:
        """`REWARDED` after a decision; `episodes.value` is still that of the one before."""
        full_prediction, full_prob = self._full_prediction[episodes.index], self._full_prob[episodes.index]
        accuracy = accuracy_term(
            reward.accuracy, episodes.success, full_prediction == episodes.label, episodes.prob, full_prob
        )
        cost: tuple[Any, Any] = (episodes.macs, self.full_macs)
        if reward.cost == "latency":
            cost = (episodes.latency_ms, full_latency_ms)
        price = reward.macs_weight if episodes.macs_weight is None else episodes.macs_weight
        value, *parts = terms(reward, accuracy, episodes.keep_rate, episodes.decision, *cost, price)
        if reward.function is not None:
            value = call_reward_function(reward.function, self._outcome(episodes, reward, accuracy, full_latency_ms))
        gained = value - episodes.value if reward.mode == "potential" else value
        _check_finite("reward", gained, episodes)
        return dict(zip(REWARDED, (gained, *parts, value), strict=True))

    def _outcome(
        self, episodes: Episodes, reward: RewardConfig, accuracy: Floats, full_latency_ms: float | None
    ) -> Outcome:
        """What is known after a decision, as reward functions get it."""
        batch, unknown = len(episodes), np.full(len(episodes), np.nan)
        return Outcome(
            index=episodes.index,
            label=episodes.label,
            decision=np.full(batch, episodes.decision),
            prediction=episodes.prediction,
            prob=episodes.prob,
            full_prediction=self._full_prediction[episodes.index],
            full_prob=self._full_prob[episodes.index],
            accuracy=accuracy,
            macs=episodes.macs,
            full_macs=np.full(batch, self.full_macs),
            latency_ms=unknown if episodes.latency_ms is None else episodes.latency_ms,
            full_latency_ms=unknown if full_latency_ms is None else np.full(batch, full_latency_ms),
            embed_dim=episodes.embed_dim,
            mlp_ratio=episodes.mlp_ratio,
            keep_rate=episodes.keep_rate,
            num_tokens=episodes.state.num_tokens,
            macs_weight=np.full(batch, float(reward.macs_weight))
            if episodes.macs_weight is None
            else episodes.macs_weight,
        )

    def observe(
        self, episodes: Episodes, observation: str, cost_conditioning: CostConditioning | None = None
    ) -> Tensor:
        """(B, O) float32 observations on the device, see `prance_env.spaces.observe`.

        Args:
            episodes: The episodes.
            observation: A name that `prance_env.observations.list_observations` has.
            cost_conditioning: Range of the price that is observed; the episodes must have their `macs_weight`.

        Raises:
            ValueError: If "key_mean" is asked for, but the engine was not made for it; on a CPU, if a number is not
                finite.
        """
        observing = Observing(observation, cost_conditioning)
        made = episodes.seen if isinstance(episodes, DeviceEpisodes) else None
        if made is not None and made[0] == observing.stands_for:
            return made[1]
        if not self._can_show(observation):
            raise ValueError(
                f"observation={observation!r} needs an engine made for it: InferenceEngine(..., key_mean=True)."
            )
        price = observing.price(episodes)
        with torch.inference_mode(), self._own_precision():
            seen = observe(self.net, episodes.state, observation, self.full_macs, price)
            # A device is not waited for.
            if seen.device.type == "cpu" and not isinstance(episodes, DeviceEpisodes):
                total = seen.sum(1).numpy()
                if not np.isfinite(total).all() and episodes.state.tokens.isfinite().all():
                    check_own_parts(observation, seen, self.config, episodes.index)
                _check_finite("observation", total, episodes)
            return seen

    def _seen_with_steps(self, observation: str) -> bool:
        """Whether it asks nothing of a device, which what is not of this package may do and a CUDA graph cannot."""
        return self._can_show(observation) and all(is_known(part) for part in OBSERVATIONS[observation])

    def _can_show(self, observation: str) -> bool:
        return self.key_mean or "key_mean" not in (part.name for part in OBSERVATIONS[observation])

    def _latency(
        self, episodes: Episodes, choice: GroupChoice, state: InferenceState, reward: RewardConfig
    ) -> tuple[Floats | None, Floats | None, float | None]:
        """Milliseconds after a decision: spent, finished at full size, of the full network; None without a table."""
        if reward.table is None:
            return None, None, None
        cost = LatencyCost(reward.table, self.config.space)
        before = cost.begin(len(episodes)) if episodes.latency_spent_ms is None else episodes.latency_spent_ms
        spent = cost.spent(before, choice, episodes.state, state)
        return spent, cost.finished(spent, state), cost.full

    def _to_go(self, state: InferenceState, label: Ints, predict: bool) -> tuple[Ints, Ints, Floats]:
        """MACs, prediction and probability of the label if the network is finished at full size."""
        macs = self._macs.finished(state.macs, state)
        if not predict:
            return macs, np.full(len(state), -1, dtype=np.int64), np.zeros(len(state))
        return macs, *_verdict(self.net.finish(state), label)

    @property
    def lookahead(self) -> int:
        """How many images it is worthwhile to name to `prefetch`; 0 if none."""
        return 0 if self.cache.held.all() else self.dataset.lookahead

    def prefetch(self, index: Ints) -> None:
        """Has images decoded in the background that will be started soon."""
        self.dataset.prefetch(np.unique(index[~self.cache.recall(index)]))

    def _prefixes(self, index: Ints, coming: Coming | None) -> tuple[Ints, Tensor]:
        """Images that stand for `index` ((B,), the same ones unless broken), and what the cache keeps of them."""
        index = self.dataset.shown(index)
        held = self.cache.recall(index)
        if held.all():
            return index, self.cache.read(index)
        device, dtype = self.net.pos_embed.device, self.net.pos_embed.dtype
        prefix = torch.empty(len(index), *self.cache.shape, device=device, dtype=dtype)
        if held.any():
            prefix[torch.from_numpy(held).to(device)] = self.cache.read(index[held])
        missing = np.unique(index[~held])
        if coming is not None and len(missing) < self._ahead:
            more = coming(self._ahead - len(missing))
            more = more[(more < self.cache.store.capacity) & ~self.cache.held[more]]
            missing = np.union1d(missing, more)
        shown = index.copy()
        for begin in range(0, len(missing), CACHE_BATCH):
            # The images after these are decoded while the network is busy with these.
            self.dataset.prefetch(missing[begin : begin + 2 * CACHE_BATCH])
            part = missing[begin : begin + CACHE_BATCH]
            lanes = np.flatnonzero(np.isin(index, part))
            rows, tokens = self._compute(part)
            shown[lanes] = rows[np.searchsorted(part, index[lanes])]
            at = torch.from_numpy(np.searchsorted(part, index[lanes])).to(device)
            prefix[torch.from_numpy(lanes).to(device)] = tokens[at]
        return shown, prefix

    def _compute(self, part: Ints) -> tuple[Ints, Tensor]:
        """Fetches images, computes what is kept of them and keeps it: as `_prefixes`."""
        # A lone image takes other kernels and differs in the last bits, as does a classifier with few rows. Both are
        # given copies, so that what is kept does not depend on which images were asked for together.
        part = np.resize(part, max(len(part), 2))
        device = self.net.pos_embed.device
        images = self.dataset.fetch(part)
        shown = self.dataset.shown(part)
        if device.type == "cuda":
            images = images.pin_memory()
        state = self.net.begin(images.to(device, non_blocking=True), key_mean=self.key_mean)
        rows = state.tokens.view(len(part), self.config.num_tokens, -1)
        if state.key_mean is not None:
            rows = torch.cat([rows, state.key_mean.view(len(part), -1, 1).to(rows.dtype)], dim=2)
        known = self.cache.known[shown]
        prediction, prob = self._full_prediction[shown], self._full_prob[shown]
        if not known.all():
            end = self.net.run_to_end(state)[np.resize(np.arange(len(part)), max(len(part), STEADY_ROWS))]
            fresh = _verdict(self.net.forward_head(end)[: len(part)], self.labels[shown])
            prediction, prob = np.where(known, prediction, fresh[0]), np.where(known, prob, fresh[1])
        self.cache.write(shown, rows, prediction, prob)
        return shown, rows


def _check_finite(what: str, values: Floats, episodes: Episodes) -> None:
    if not np.isfinite(values).all():
        lane = int(np.flatnonzero(~np.isfinite(values))[0])
        raise ValueError(
            f"The {what} of image {episodes.index[lane]} after {episodes.decision} decisions is not finite: numbers of "
            "the supernet overflow. Pass dtype='float32', and look at its weights and at the image."
        )


def _verdict(logits: Tensor, label: Ints) -> tuple[Ints, Floats]:
    """(B,) class predicted and probability of the label."""
    probs = logits.float().softmax(-1).cpu().numpy()
    return probs.argmax(1), probs[np.arange(len(label)), label].astype(np.float64)
