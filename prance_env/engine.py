"""The one implementation of the environment: batches of episodes on a device.

`PranceEnv`, `PranceVectorEnv` and `PranceVecEnv` only translate between this and the interfaces of Gymnasium and
Stable-Baselines3.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from supernet import GroupChoice, InferenceState, Supernet, SupernetConfig, freeze, from_pretrained, list_supernets
from supernet.checkpoint import CONFIG
from supernet.macs import remaining_macs

from .conditioning import CostConditioning
from .datasets import ImageDataset, load_dataset
from .latency import load_latency_table
from .outcome import Outcome
from .reward import Bools, Floats, RewardConfig, accuracy_term, score
from .spaces import observe

Ints = NDArray[np.int64]
BUNDLED = {"digits": Path(__file__).parent / "weights" / "digits"}
CACHE_BATCH = 256


@dataclass(frozen=True, eq=False)
class Episodes:
    """B episodes that are equally far, as a value; index it by lane with `episodes[lanes]`.

    Attributes:
        index: (B,) image of the data set.
        label: (B,) its class.
        state: The inference so far.
        embed_dim: (B, depth) widths chosen so far, full where undecided.
        mlp_ratio: (B, depth) likewise.
        keep_rate: (B, num_decisions) likewise.
        macs: (B,) of the inference if finished at full size from here.
        prediction: (B,) class it then predicts; -1 where the reward did not need it.
        prob: (B,) probability it then gives the label; 0 where the reward did not need it.
        reward: (B,) of the last decision, 0 at the start.
        reward_accuracy: (B,) its accuracy term.
        reward_macs: (B,) its MACs term, negative.
        reward_tokens: (B,) its token term, negative.
        value: (B,) R_t of the last decision, 0 at the start.
        macs_weight: (B,) price of the full network in each episode; None: the reward's.
        latency_spent_ms: (B,) milliseconds so far by the latency table; None without one.
        latency_ms: (B,) those of the inference if finished at full size from here; None without a table.
    """

    index: Ints
    label: Ints
    state: InferenceState
    embed_dim: Ints
    mlp_ratio: Floats
    keep_rate: Floats
    macs: Ints
    prediction: Ints
    prob: Floats
    reward: Floats
    reward_accuracy: Floats
    reward_macs: Floats
    reward_tokens: Floats
    value: Floats
    macs_weight: Floats | None = None
    latency_spent_ms: Floats | None = None
    latency_ms: Floats | None = None

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, lanes: Ints) -> Episodes:
        picked: dict[str, Any] = {k: None if v is None else v[lanes] for k, v in vars(self).items()}
        return Episodes(**picked)

    @property
    def decision(self) -> int:
        """The coming decision, 0-based."""
        return self.state.group - 1

    @property
    def success(self) -> Bools:
        """(B,) whether the prediction is the label."""
        return self.prediction == self.label


class InferenceEngine:
    """Runs episodes of one frozen supernet over one data set.

    What no action can change, the output of the patch embedding and the first group and the verdict of the full
    network, is computed once per image and kept.

    Args:
        net: The supernet, frozen.
        dataset: The images.
    """

    def __init__(self, net: Supernet, dataset: ImageDataset) -> None:
        c = net.config
        expected = (c.in_chans, c.img_size, c.img_size)
        if tuple(dataset.images.shape[1:]) != expected:
            raise ValueError(f"The images are {tuple(dataset.images.shape[1:])}, but the supernet takes {expected}.")
        self.net, self.dataset = net, dataset
        self.labels: Ints = dataset.labels.numpy()
        self.full_macs = int(net.macs().item())
        self._prefix_macs = self.full_macs - int(remaining_macs(c, 1, np.array([c.num_patches + 1]))[0])
        self._known = np.zeros(len(dataset), dtype=bool)
        device, dtype = net.cls_token.device, net.cls_token.dtype
        self._prefix = torch.empty(len(dataset), c.num_patches + 1, c.embed_dim, device=device, dtype=dtype)
        self._full_prediction = np.zeros(len(dataset), dtype=np.int64)
        self._full_prob = np.zeros(len(dataset))

    @property
    def config(self) -> SupernetConfig:
        """Configuration of the supernet."""
        return self.net.config

    @torch.inference_mode()
    def start(self, index: Ints) -> Episodes:
        """Begins one episode per entry of `index`.

        Raises:
            IndexError: If an entry is not an image of the data set.
        """
        if len(index) and (index.min() < 0 or index.max() >= len(self.dataset)):
            bad = index[(index < 0) | (index >= len(self.dataset))]
            raise IndexError(
                f"index={bad[0]} is not an image of this data set; allowed are 0..{len(self.dataset) - 1}."
            )
        self._ensure_known(index)
        c, space, batch = self.config, self.config.space, len(index)
        n = c.num_patches + 1
        device = self._prefix.device
        state = InferenceState(
            group=1,
            tokens=self._prefix[torch.from_numpy(index).to(device)].view(batch * n, -1),
            num_tokens=np.full(batch, n, dtype=np.int64),
            source=torch.arange(-1, n - 1, device=device).repeat(batch),
            embed_dim=np.full(batch, c.embed_dim, dtype=np.int64),
            macs=np.full(batch, self._prefix_macs, dtype=np.int64),
        )
        zeros = np.zeros(batch)
        return Episodes(
            index=index,
            label=self.labels[index],
            state=state,
            embed_dim=np.full((batch, space.depth), c.embed_dim, dtype=np.int64),
            mlp_ratio=np.full((batch, space.depth), space.mlp_ratios[-1]),
            keep_rate=np.ones((batch, space.num_decisions)),
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
    def step(self, episodes: Episodes, actions: Floats, reward: RewardConfig) -> Episodes:
        """Takes one decision in every episode.

        Args:
            episodes: Unchanged.
            actions: (B, A) in [0, 1].
            reward: How to score it.

        Returns:
            The episodes one group later.
        """
        space, decision, batch = self.config.space, episodes.decision, len(episodes)
        choice = GroupChoice.from_actions(space, torch.from_numpy(actions))
        state = self.net.run_group(episodes.state, decision + 1, choice)
        paid = reward.mode != "terminal" or decision == space.num_decisions - 1
        macs, prediction, prob = self._to_go(state, episodes.label, paid)

        blocks = space.blocks(decision + 1)
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
            embed_dim=embed_dim,
            mlp_ratio=mlp_ratio,
            keep_rate=keep_rate,
            macs=macs,
            prediction=prediction,
            prob=prob,
            latency_spent_ms=latency_spent_ms,
            latency_ms=latency_ms,
        )
        zeros = np.zeros(batch)
        if not paid:
            return replace(
                following, reward=zeros, reward_accuracy=zeros, reward_macs=zeros, reward_tokens=zeros, value=zeros
            )
        full_prediction, full_prob = self._full_prediction[episodes.index], self._full_prob[episodes.index]
        unknown = np.full(batch, np.nan)
        outcome = Outcome(
            index=episodes.index,
            label=episodes.label,
            decision=np.full(batch, decision + 1),
            prediction=prediction,
            prob=prob,
            full_prediction=full_prediction,
            full_prob=full_prob,
            accuracy=accuracy_term(
                reward.accuracy, following.success, full_prediction == episodes.label, prob, full_prob
            ),
            macs=macs,
            full_macs=np.full(batch, self.full_macs),
            latency_ms=unknown if latency_ms is None else latency_ms,
            full_latency_ms=unknown if full_latency_ms is None else np.full(batch, full_latency_ms),
            embed_dim=embed_dim,
            mlp_ratio=mlp_ratio,
            keep_rate=keep_rate,
            num_tokens=state.num_tokens,
            macs_weight=zeros + reward.macs_weight if episodes.macs_weight is None else episodes.macs_weight,
        )
        terms = score(reward, outcome)
        return replace(
            following,
            reward=terms.value - episodes.value if reward.mode == "potential" else terms.value,
            reward_accuracy=terms.accuracy,
            reward_macs=terms.macs,
            reward_tokens=terms.tokens,
            value=terms.value,
        )

    def observe(
        self, episodes: Episodes, observation: str, cost_conditioning: CostConditioning | None = None
    ) -> Tensor:
        """(B, O) float32 observations on the device, see `prance_env.spaces.observe`.

        Args:
            episodes: The episodes.
            observation: One of `prance_env.spaces.OBSERVATIONS`.
            cost_conditioning: Range of the price that is observed; the episodes must have their `macs_weight`.
        """
        price = None
        if cost_conditioning is not None:
            assert episodes.macs_weight is not None, "conditioned episodes need their macs_weight"
            price = cost_conditioning.observe(episodes.macs_weight)
        with torch.inference_mode():
            return observe(self.net, episodes.state, observation, self.full_macs, price)

    def _latency(
        self, episodes: Episodes, choice: GroupChoice, state: InferenceState, reward: RewardConfig
    ) -> tuple[Floats | None, Floats | None, float | None]:
        """Milliseconds after a decision: spent, finished at full size, and of the full network."""
        if reward.latency_table is None:
            return None, None, None
        table, space, group = load_latency_table(reward.latency_table), self.config.space, episodes.state.group
        before = table.prefix_ms if episodes.latency_spent_ms is None else episodes.latency_spent_ms
        spent = before + table.group(
            group,
            choice.embed_dim.numpy(),
            choice.mlp_ratio.numpy(),
            episodes.state.num_tokens,
            state.num_tokens,
        )
        return spent, spent + table.rest(space, group + 1, state.num_tokens), table.full_ms(space)

    def _to_go(self, state: InferenceState, label: Ints, predict: bool) -> tuple[Ints, Ints, Floats]:
        """MACs, prediction and probability of the label if the network is finished at full size."""
        macs = self.net.macs_to_go(state)
        if not predict:
            return macs, np.full(len(state), -1, dtype=np.int64), np.zeros(len(state))
        probs = self.net.finish(state).float().softmax(-1)
        at_label = probs.gather(1, torch.from_numpy(label).to(probs.device)[:, None])[:, 0]
        packed = torch.stack([probs.argmax(-1).float(), at_label]).cpu().numpy()
        return macs, packed[0].astype(np.int64), packed[1].astype(np.float64)

    def _ensure_known(self, index: Ints) -> None:
        missing = np.unique(index[~self._known[index]])
        for begin in range(0, len(missing), CACHE_BATCH):
            part = missing[begin : begin + CACHE_BATCH]
            # A lone image takes other kernels and differs in the last bits. It is computed twice over, so that what is
            # kept does not depend on which images were asked for together.
            part = np.resize(part, max(len(part), 2))
            images = self.dataset.images[torch.from_numpy(part)].to(self._prefix.device)
            state = self.net.begin(images)
            self._prefix[torch.from_numpy(part).to(self._prefix.device)] = state.tokens.view(
                len(part), *self._prefix.shape[1:]
            )
            _, prediction, prob = self._to_go(state, self.labels[part], True)
            self._full_prediction[part], self._full_prob[part] = prediction, prob
            self._known[part] = True


@lru_cache(maxsize=8)
def shared_engine(supernet: str, checkpoint: str | None, dataset: str, split: str, device: str) -> InferenceEngine:
    """The engine for these arguments; environments of one process share it, and with it weights and caches.

    Raises:
        ValueError: If a name is unknown or something does not fit.
        FileNotFoundError: If the checkpoint is missing.
    """
    net = freeze(from_pretrained(checkpoint_folder(supernet, checkpoint)).to(torch.device(device)))
    return InferenceEngine(net, load_dataset(dataset, split))


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
