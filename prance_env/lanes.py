"""N lanes of episodes that may stand at different decisions, with one random generator each.

What the Gymnasium and the Stable-Baselines3 faces have in common: settings, seeding, drawing images, stepping, infos.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from gymnasium.utils import seeding
from numpy.typing import NDArray
from torch import Tensor

from supernet.arrays import Bools, Floats, Ints
from supernet.runtime.graphs import copies
from supernet.tiled_state import TiledState

from .arrays import to_host
from .device_episodes import DeviceEpisodes, Observing
from .episodes import Episodes
from .rewards.costs import LatencyCost
from .settings import EnvSettings
from .spaces import decode_actions


class Lanes:
    """State of N episodes. A call either succeeds or raises and changes nothing.

    Args:
        settings: What the environment is made with.
        num_lanes: N.

    Attributes:
        generators: The random generator of every lane; None until it is seeded or first drawn from.
        reward: How decisions are scored.
        parts: The lanes that are equally far, and their episodes as one batch; together they are all lanes.
    """

    def __init__(self, settings: EnvSettings, num_lanes: int) -> None:
        self.settings = settings
        self.engine = settings.engine()
        self.num_lanes = num_lanes
        self.generators: list[np.random.Generator | None] = [None] * num_lanes
        self.parts: list[tuple[Ints, Episodes]] = []
        self._drawn_from: dict[np.random.Generator, Any] | None = None
        self.reward = settings.reward_config
        table = self.reward.table
        self._latency = None if table is None else LatencyCost(table, self.engine.config.space)

    @contextmanager
    def undone_on_error(self) -> Iterator[None]:
        """Restores episodes and generators if the block raises; inside of another such block, that one does."""
        if self._drawn_from is not None:
            yield
            return
        parts, generators = self.parts, list(self.generators)
        drawn_from = self._drawn_from = {}
        try:
            yield
        except BaseException:
            self.parts, self.generators = parts, generators
            for generator, state in drawn_from.items():
                generator.bit_generator.state = state
            raise
        finally:
            self._drawn_from = None

    def start(
        self,
        lanes: Ints,
        index: Ints | None = None,
        macs_weight: Floats | None = None,
        seeds: Sequence[int | None] | None = None,
    ) -> None:
        """Begins new episodes.

        Args:
            lanes: (L,) lanes, ascending.
            index: (L,) images; None draws them from the lanes' generators.
            macs_weight: (L,) prices, if the environment is cost-conditioned; None draws them after the images.
            seeds: (L,) seeds for new generators, as `gymnasium.Env.reset(seed=)` takes; None goes on with the old ones.

        Raises:
            IndexError: If an image does not exist.
            gymnasium.error.Error: If a seed is negative.
        """
        with self.undone_on_error():
            if seeds is not None:
                self.generators = list(self.generators)
                for lane, seed in zip(lanes.tolist(), seeds, strict=True):
                    if seed is not None:
                        self.generators[lane] = seeding.np_random(seed)[0]
            conditioning, total = self.settings.conditioning, len(self.engine.dataset)
            images = np.empty(len(lanes), dtype=np.int64) if index is None else index
            prices = np.empty(len(lanes)) if macs_weight is None else macs_weight
            for row, lane in enumerate(lanes.tolist()):
                if index is None:
                    images[row] = self._generator(lane).integers(total)
                if conditioning is not None and macs_weight is None:
                    prices[row] = conditioning.draw(self._generator(lane))
            coming = partial(self._coming, lanes) if index is None else None
            fresh = self.dressed(self.engine.start(images, coming), None if conditioning is None else prices)
            parts: list[tuple[Ints, Episodes]] = []
            for members, episodes in self.parts if len(lanes) < self.num_lanes else ():
                stay = np.flatnonzero(~np.isin(members, lanes))
                if len(stay):
                    parts.append((members[stay], episodes[stay]))
            self.parts = [*parts, (lanes, fresh)]
            ahead = lanes[: self.engine.lookahead]
            if len(ahead):
                self.engine.prefetch(self._coming(ahead, len(ahead)))

    def _coming(self, lanes: Ints, count: int) -> Ints:
        """At least so many images that the lanes will draw next, while their generators stay where they are."""
        conditioning, total, drawn = self.settings.conditioning, len(self.engine.dataset), []
        for lane in lanes[:count].tolist():
            generator = self._generator(lane)
            before = generator.bit_generator.state
            for _ in range(-(-count // len(lanes))):
                drawn.append(generator.integers(total))
                if conditioning is not None:
                    conditioning.draw(generator)
            generator.bit_generator.state = before
        return np.array(drawn, dtype=np.int64)

    def _generator(self, lane: int) -> np.random.Generator:
        generator = self.generators[lane]
        if generator is None:
            generator = self.generators[lane] = seeding.np_random()[0]
        # Noted when it is first drawn from, since most steps draw nothing.
        if self._drawn_from is not None and generator not in self._drawn_from:
            self._drawn_from[generator] = generator.bit_generator.state
        return generator

    def dressed(self, episodes: Episodes, macs_weight: Floats | None) -> Episodes:
        """New episodes with their prices and, if there is a latency table, their times."""
        episodes = replace(episodes, macs_weight=macs_weight)
        if self._latency is None:
            return episodes
        spent = self._latency.begin(len(episodes))
        return replace(episodes, latency_spent_ms=spent, latency_ms=np.full(len(episodes), self._latency.full))

    def step(self, actions: NDArray[np.floating] | Tensor) -> None:
        """Takes one decision in every lane whose episode is not over; the actions (N, A) of the others are ignored.

        Raises:
            ValueError: If an action holds NaN; not of a tensor on a GPU, see `InferenceEngine.step`.
        """
        unit, observing = self._unit(actions), Observing(self.settings.observation, self.settings.conditioning)
        self.parts = [
            (
                members,
                episodes
                if self._over(episodes)
                else self.engine.step(episodes, _chosen(unit, members), self.reward, observing),
            )
            for members, episodes in self.parts
        ]

    def _unit(self, actions: NDArray[np.floating] | Tensor) -> Floats | Tensor:
        """Actions (N, A) in [0, 1], where they lie."""
        if isinstance(actions, Tensor) and self._together:
            return decode_actions(actions, self.settings.normalize_actions)
        array = actions.double().cpu().numpy() if isinstance(actions, Tensor) else actions
        if any(self._over(episodes) for _, episodes in self.parts):
            array = np.where(self.terminated()[:, None], 0, array)
        return decode_actions(array, self.settings.normalize_actions)

    @property
    def _together(self) -> bool:
        """Whether all lanes are equally far, and so one batch in their order."""
        return len(self.parts) == 1

    def observations(self) -> Tensor:
        """(N, O) float32 on the device of the supernet, a fresh tensor that autograd can save."""
        settings = self.settings
        values = [self.engine.observe(e, settings.observation, settings.conditioning) for _, e in self.parts]
        with torch.inference_mode(False):  # whatever the caller is in
            if self._together:
                return values[0].clone()
            order = np.argsort(np.concatenate([members for members, _ in self.parts]))
            return torch.cat(values)[torch.from_numpy(order).to(values[0].device)]

    def rewards(self) -> Floats | Tensor:
        """(N,) rewards of the last decisions; a tensor if that is where they are."""
        _, first = self.parts[0]
        if isinstance(first, DeviceEpisodes) and self._together:
            with torch.inference_mode(False):
                return first.numbers["reward"].clone()
        return self._gather([e.reward for _, e in self.parts])

    def terminated(self) -> Bools:
        """(N,) whether every decision of the episode has been taken."""
        out = np.empty(self.num_lanes, dtype=np.bool_)
        for members, episodes in self.parts:
            out[members] = self._over(episodes)
        return out

    def infos(self) -> dict[str, Any]:
        """One array with N rows per key, or a tensor if that is where it is; always the same keys, shapes and types.

        They are the caller's, who may write into them.
        """
        _, first = self.parts[0]
        if isinstance(first, DeviceEpisodes) and self._together:
            return _owned(_info(first, self.engine.full_macs))
        rows = [_info(e, self.engine.full_macs) for _, e in self.parts]
        if any(isinstance(e.state, TiledState) for _, e in self.parts):
            rows = to_host(rows)
        return {key: self._gather([r[key] for r in rows]) for key in rows[0]}

    def lane(self, lane: int) -> Episodes:
        """The episode of one lane, as a batch of one."""
        for members, episodes in self.parts:
            if lane in members:
                return episodes[np.flatnonzero(members == lane)]
        raise IndexError(f"lane={lane} has no episode; lanes are 0..{self.num_lanes - 1}.")

    def _over(self, episodes: Episodes) -> bool:
        return episodes.decision == self.engine.config.space.num_decisions

    def _gather(self, values: Sequence[NDArray[Any]]) -> NDArray[Any]:
        if self._together:
            return values[0].copy()
        out = np.empty((self.num_lanes, *values[0].shape[1:]), dtype=values[0].dtype)
        for (members, _), value in zip(self.parts, values, strict=True):
            out[members] = value
        return out


def _info(episodes: Episodes, full_macs: int) -> dict[str, Any]:
    numbers: dict[str, Any] = episodes.numbers if isinstance(episodes, DeviceEpisodes) else vars(episodes)
    state, macs = episodes.state, numbers["macs"]
    info = {
        "index": episodes.index,
        "label": episodes.label,
        "decision": np.full(len(episodes), episodes.decision),
        "embed_dim": numbers["embed_dim"],
        "mlp_ratio": numbers["mlp_ratio"],
        "keep_rate": numbers["keep_rate"],
        "num_tokens": state.batch.lengths if isinstance(state, TiledState) else state.num_tokens,
        "macs": macs,
        # Integers of a device would be divided in float32.
        "macs_fraction": (macs.double() if isinstance(macs, Tensor) else macs) / full_macs,
        "reward_accuracy": numbers["reward_accuracy"],
        "reward_macs": numbers["reward_macs"],
        "reward_tokens": numbers["reward_tokens"],
        "prediction": numbers["prediction"],
        "is_success": numbers["prediction"] == numbers["label"],
    }
    optional = {"macs_weight": episodes.macs_weight, "latency_ms": episodes.latency_ms}
    return info | {key: value for key, value in optional.items() if value is not None}


def _owned(values: dict[str, Any]) -> dict[str, Any]:
    """Copies that one may write into."""
    with torch.inference_mode(False):
        tensors = copies({key: value for key, value in values.items() if isinstance(value, Tensor)})
    return {key: tensors[key] if key in tensors else value.copy() for key, value in values.items()}


def _chosen(unit: Floats | Tensor, members: Ints) -> Floats | Tensor:
    return unit if isinstance(unit, Tensor) else unit[members]
