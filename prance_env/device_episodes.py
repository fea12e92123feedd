"""Episodes on a GPU: decisions, rewards and what infos hold as tensors, for who need not see them on the host."""

from __future__ import annotations

from collections.abc import Hashable
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from supernet import GroupChoice, Supernet, SupernetConfig
from supernet.arrays import Floats, Ints, sent
from supernet.runtime.choice import precision, records_graphs
from supernet.runtime.graphs import Recorder, standing_net
from supernet.tiled_state import TiledState, macs_on_device, run_tiled_group

from .arrays import sent_together, to_host
from .episodes import Episodes
from .observations import OBSERVATIONS
from .rewards.config import RewardConfig, accuracy_term, terms
from .rewards.prices import CostConditioning
from .spaces import observe

NUMBERS = (
    *("embed_dim", "mlp_ratio", "keep_rate", "macs", "prediction", "prob"),
    *("reward", "reward_accuracy", "reward_macs", "reward_tokens", "value"),
)
"""Fields of `Episodes` that a decision changes."""

GIVEN = ("label", "full_prediction", "full_prob", "weight")
"""What decisions are scored by: class, what the full network says, and the price where episodes have their own."""

READ = ("embed_dim", "mlp_ratio", "keep_rate", "value", *GIVEN)
"""What of all that a decision reads."""


class Observing(NamedTuple):
    """An observation: its name, and the range of the price that is observed, None for none."""

    observation: str
    conditioning: CostConditioning | None = None

    def price(self, episodes: Episodes) -> Floats | None:
        """(B,) price of computation as it is observed."""
        if self.conditioning is None:
            return None
        assert episodes.macs_weight is not None, "conditioned episodes need their macs_weight"
        return self.conditioning.observe(episodes.macs_weight)

    @property
    def stands_for(self) -> Hashable:
        """This, and the parts that its name stands for now: another observation may be registered under it."""
        return self, OBSERVATIONS[self.observation]


class DeviceEpisodes(Episodes):
    """B episodes that are equally far, as tensors; fetched in one copy when one of the fields is asked for.

    Args:
        index: (B,) image of the data set.
        label: (B,) its class.
        state: The inference so far.
        decision: Decisions taken so far.
        numbers: The fields `NUMBERS`, and what `GIVEN` names, on the device.
        macs_weight: (B,) price of the full network in each episode; None: the reward's.
        seen: What the observation stood for that came with the step, and (B, O) what it is; None: none did.
    """

    numbers: dict[str, Tensor]
    seen: tuple[Hashable, Tensor] | None

    def __init__(
        self,
        index: Ints,
        label: Ints,
        state: TiledState,
        decision: int,
        numbers: dict[str, Tensor],
        macs_weight: Floats | None,
        seen: tuple[Hashable, Tensor] | None = None,
    ) -> None:
        # Straight into the dictionary: the fields of the base class are frozen, and some are properties here.
        vars(self).update(index=index, label=label, state=state, decision=decision, numbers=numbers)
        vars(self).update(macs_weight=macs_weight, seen=seen)

    @cached_property
    def host(self) -> Episodes:
        """The same episodes, their numbers on the host."""
        fetched = to_host({name: self.numbers[name] for name in NUMBERS})
        return Episodes(
            index=self.index,
            label=self.label,
            state=self.state,
            decision=self.decision,
            macs_weight=self.macs_weight,
            **fetched,
        )

    def __getitem__(self, lanes: Ints) -> Episodes:
        return self.host[lanes]

    def __getattr__(self, name: str) -> Any:
        if name in NUMBERS:
            return getattr(self.host, name)
        raise AttributeError(name)


def begun_on_device(
    episodes: Episodes, config: SupernetConfig, full_prediction: Ints, full_prob: Floats
) -> DeviceEpisodes:
    """Episodes with their numbers on the device, and what decisions there are scored by.

    Args:
        episodes: The episodes.
        config: The supernet's.
        full_prediction: (B,) class that the full network predicts.
        full_prob: (B,) probability that it gives the label.
    """
    state = TiledState.of(episodes.state, config)
    device = state.patch_token.device
    given = dict(zip(GIVEN, (episodes.label, full_prediction, full_prob, episodes.macs_weight), strict=True))
    numbers = {name: np.asarray(getattr(episodes, name)) for name in NUMBERS}
    numbers |= {name: values for name, values in given.items() if values is not None}
    there = dict(zip(numbers, sent_together([*numbers.values()], device), strict=True))
    return DeviceEpisodes(episodes.index, episodes.label, state, episodes.decision, there, episodes.macs_weight)


def decide_on_device(
    net: Supernet,
    full_macs: int,
    episodes: DeviceEpisodes,
    unit: Tensor,
    reward: RewardConfig,
    recorder: Recorder,
    observing: Observing | None = None,
) -> DeviceEpisodes:
    """One decision in every episode.

    Args:
        net: The supernet.
        full_macs: MACs of the full network.
        episodes: Unchanged.
        unit: (B, A) float64 actions in [0, 1]; one that holds NaN gives a reward of NaN, and with terminal rewards so
            do those after it.
        reward: How to score it; not by a function or a table of latencies.
        recorder: Of the steps as CUDA graphs.
        observing: An observation to make with the step, of parts of this package, which ask nothing of a device.
    """
    state: Any = episodes.state
    group, most = state.group, state.batch.most

    def step(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        before = TiledState.of_tensors(group, most, inputs)
        after, numbers = _decided(net, full_macs, before, episodes.decision, inputs, reward)
        if observing is None:
            return after.tensors() | numbers
        seen = observe(net, after, observing.observation, full_macs, inputs.get("price"))
        return after.tensors() | numbers | {"seen": seen}

    read = {name: value for name, value in episodes.numbers.items() if name in READ}
    inputs = state.tensors() | read | {"unit": unit}
    price = None if observing is None else observing.price(episodes)
    if price is not None:
        inputs["price"] = sent(price, unit.device)
    shown = None if observing is None else observing.stands_for
    if records_graphs(unit.device):
        out = recorder.run((episodes.decision, reward, precision(), shown, standing_net(net)), step, inputs)
    else:
        out = step(inputs)
    numbers = {k: v for k, v in read.items() if k in GIVEN} | {k: out[k] for k in NUMBERS}
    after = TiledState.of_tensors(group + 1, most, out)
    made = None if shown is None else (shown, out["seen"])
    return DeviceEpisodes(
        episodes.index, episodes.label, after, episodes.decision + 1, numbers, episodes.macs_weight, made
    )


def _decided(
    net: Supernet,
    full_macs: int,
    state: TiledState,
    decision: int,
    before: dict[str, Tensor],
    reward: RewardConfig,
) -> tuple[TiledState, dict[str, Tensor]]:
    """The inferences after a decision, and what `NUMBERS` names."""
    space, unit, label = net.space, before["unit"], before["label"]
    choice = GroupChoice.decoded(space, unit.nan_to_num(0.0))
    after = run_tiled_group(net.config, net.blocks, state, choice)
    blocks, numbers = space.blocks(state.group), {}
    for name, values in (("embed_dim", choice.embed_dim), ("mlp_ratio", choice.mlp_ratio)):
        numbers[name] = _replaced(before[name], blocks.start, values)
    numbers["keep_rate"] = _replaced(before["keep_rate"], decision, choice.keep_rate[:, None])
    macs = numbers["macs"] = macs_on_device(net.config, after)
    if reward.mode == "terminal" and decision < space.num_decisions - 1:
        nothing = torch.zeros_like(before["value"])
        names = ("prob", "reward_accuracy", "reward_macs", "reward_tokens")
        # What is earned at the end comes of this decision, too, so that an action of NaN is to be seen there.
        marked = dict.fromkeys(("reward", "value"), torch.where(unit.isnan().any(1), float("nan"), before["value"]))
        return after, numbers | dict.fromkeys(names, nothing) | marked | {"prediction": torch.full_like(label, -1)}
    probs = net.finish(after).float().softmax(-1)
    prediction, prob = probs.argmax(-1), probs.gather(1, label[:, None])[:, 0].double()
    compared: Any = (prediction == label, before["full_prediction"] == label, prob, before["full_prob"])
    accuracy = accuracy_term(reward.accuracy, *compared)
    # Not as a number, with which whole MACs would become float32.
    weight = before["weight"] if "weight" in before else torch.full_like(before["value"], reward.macs_weight)
    scored: Any = (accuracy, numbers["keep_rate"], decision + 1, macs, full_macs, weight)
    value, *parts = (torch.as_tensor(term) for term in terms(reward, *scored))
    without = unit.isnan().any(1)
    if reward.mode == "terminal":
        without |= before["value"].isnan()
    value = torch.where(without, float("nan"), value)
    numbers |= dict(zip(("reward_accuracy", "reward_macs", "reward_tokens"), parts, strict=True))
    numbers |= {"prediction": prediction, "prob": prob, "value": value}
    numbers["reward"] = value - before["value"] if reward.mode == "potential" else value
    return after, numbers


def _replaced(values: Tensor, start: int, by: Tensor) -> Tensor:
    """(B, N, ...) with the columns (B, M, ...) from `start` on."""
    return torch.cat([values[:, :start], by, values[:, start + by.shape[1] :]], dim=1)
