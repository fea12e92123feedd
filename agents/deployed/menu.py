"""A menu of choices: a policy's many, clustered into a few for each decision, for one image at a time.

Of one image, much of what an adaptive network saves is spent on finding out what to compute. With a menu every group of
blocks is a plain module that was made before, on views of the supernet's weights, and the policy only says which entry
comes next: the one that is nearest to what it would choose freely.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.cluster.vq import kmeans2
from torch import Tensor, nn

from prance_env.observations import LOG_NORM_BOUND, OBSERVATIONS, is_known, largest_entropy
from prance_env.spaces import decode_actions
from supernet import GroupChoice, SearchSpace, SubnetConfig, Supernet
from supernet.arrays import Floats
from supernet.extract import extract_ends, extract_group
from supernet.macs import group_macs, head_macs, stem_macs
from supernet.plan import plan_group
from supernet.static_group import StaticGroup
from supernet.static_vit import StaticEnds

from ..fitting import Interface
from .budgets import Calibration, prices_of
from .networks import NetworkPolicy
from .pictures import check_images
from .prediction import Prediction

RATE_WEIGHT = 2.0
"""How much a difference of keep rates counts beside one of widths: it changes all that follows."""
RESTARTS, ITERATIONS = 4, 30
SHOWN = (
    *("class_token", "log_norm", "max_prob", "entropy", "embed_dim", "decision"),
    *("patches_left", "macs_spent", "macs_weight"),
)
"""Parts of observations that a menu can show its policy."""
Entries = list[NDArray[np.float64]]


def entries_of(chosen: Floats, space: SearchSpace, count: int, seed: int = 0) -> Entries:
    """A menu for every decision.

    Args:
        chosen: (N, T, A) actions in [0, 1] that a policy chose for images.
        space: The search space.
        count: Entries for each decision, at most.
        seed: Fixes the clustering (k-means++, the best of several runs).

    Returns:
        For every decision (K, A) actions of the search space, without repetition.

    Raises:
        ValueError: If `count` is below 1, or there are no choices.
    """
    if count < 1 or not len(chosen):
        raise ValueError(f"A menu of {count} entries from {len(chosen)} images: both must be at least 1.")
    weight, menus = weights_of(space), []
    for decision in range(space.num_decisions):
        points = chosen[:, decision] * weight
        # Rounded only to be compared: a keep rate that is a little higher keeps one more patch.
        _, first = np.unique(points.round(6), axis=0, return_index=True)
        if len(first) <= count:
            menus.append(np.unique(nearest_choice(chosen[first, decision], space), axis=0))
            continue
        runs = [
            kmeans2(points, count, minit="++", seed=seed + i, iter=ITERATIONS, missing="warn") for i in range(RESTARTS)
        ]
        centres, _ = min(runs, key=lambda run: float(((points - run[0][run[1]]) ** 2).sum()))
        menus.append(np.unique(nearest_choice((centres / weight).clip(0, 1), space), axis=0))
    return menus


def weights_of(space: SearchSpace) -> Floats:
    """(A,) what differences of the entries of an action count."""
    weight = np.ones(space.action_size)
    weight[2 * space.blocks_per_decision :] = RATE_WEIGHT
    return weight


def nearest_choice(unit: Floats, space: SearchSpace) -> Floats:
    """(K, A) actions in [0, 1], rounded where sizes are."""
    n, rounded = space.blocks_per_decision, unit.copy()
    for part, count in ((slice(0, n), len(space.mlp_ratios)), (slice(n, 2 * n), len(space.embed_dims))):
        steps = max(count - 1, 1)
        rounded[:, part] = np.round(unit[:, part] * steps) / steps
    return rounded


class Decider(nn.Module):
    """One decision: from the tokens of an image to the number of an entry.

    Args:
        ends: At full width; its classifier tells how sure the network is already.
        policy: The policy.
        interface: What it sees, and may say.
        decision: Which one, 0-based.
        entries: (K, A) of its menu, in [0, 1].
        full_macs: MACs of the full network.
    """

    def __init__(
        self,
        ends: StaticEnds,
        policy: NetworkPolicy,
        interface: Interface,
        decision: int,
        entries: Floats,
        full_macs: int,
    ) -> None:
        super().__init__()
        self.ends, self.policy, self.interface, self.full_macs = ends, policy, interface, full_macs
        self.parts = [part.name for part in OBSERVATIONS[interface.observation]]
        self.parts += [] if interface.conditioning is None else ["macs_weight"]
        space = interface.config.space
        self.register_buffer("entries", torch.from_numpy(entries), persistent=False)
        self.register_buffer("weight", torch.from_numpy(weights_of(space)), persistent=False)
        coming = F.one_hot(torch.tensor([decision]), space.num_decisions).float()
        self.register_buffer("coming", coming, persistent=False)

    def forward(self, x: Tensor, size: Tensor | None, width: Tensor, spent: Tensor, price: Tensor) -> Tensor:
        """The entry that is nearest to what the policy chooses.

        Args:
            x: (1, N, C) tokens at full width.
            size: (1, N) patches that each stands for; None: one each.
            width: (1, W) float32, one-hot width of the last block.
            spent: (1,) int64 MACs so far.
            price: (1,) price of computation in [0, 1], as it is observed; not looked at by agents that know none.

        Returns:
            () int64.
        """
        actions = self.policy(self.seen(x, size, width, spent, price))
        unit = cast(Tensor, decode_actions(actions, self.interface.normalize_actions))
        return self.nearest(unit)[0]

    def nearest(self, unit: Tensor) -> Tensor:
        """(B,) numbers of the entries nearest to (B, A) float64 actions in [0, 1]."""
        off = (unit[:, None] - cast(Tensor, self.entries)) * cast(Tensor, self.weight)
        return off.square().sum(-1).argmin(1)

    def seen(self, x: Tensor, size: Tensor | None, width: Tensor, spent: Tensor, price: Tensor) -> Tensor:
        """(1, O) what `prance_env.spaces.observe` shows; arguments are those of `forward`."""
        config = self.interface.config
        token = (x[:, 0] if config.global_pool == "token" else self.ends._mean(x, size)).float()
        probability = self.ends.forward_head(x, size).float().softmax(-1)
        entropy = torch.special.entr(probability).sum(1, keepdim=True) / largest_entropy(config.num_classes)
        left = torch.full((1, 1), x.shape[1] - config.num_prefix_tokens, dtype=torch.float32) / config.num_patches
        values = {
            "class_token": F.layer_norm(token, (config.embed_dim,)),
            "log_norm": token.square().mean(1, keepdim=True).clamp_min(1e-12).sqrt().log(),
            "max_prob": probability.amax(1, keepdim=True).clamp(0, 1),
            "entropy": entropy.clamp(0, 1),
            "embed_dim": width,
            "decision": cast(Tensor, self.coming),
            "patches_left": left.to(x.device),
            "macs_spent": (spent.double() / self.full_macs).float().clamp(max=1)[:, None],
            "macs_weight": price.float()[:, None],
        }
        values["log_norm"] = values["log_norm"].clamp(-LOG_NORM_BOUND, LOG_NORM_BOUND)
        return torch.cat([values[name] for name in self.parts], dim=1)


class Menu(nn.Module):
    """An adaptive network for one image at a time, which chooses from a menu.

    Its weights are views of the supernet's; by the authors' rules those of norms are copies.

    Args:
        net: The supernet, on one device in one precision for as long as the menu is used.
        policy: The policy, a plain network.
        interface: What it sees, and may say.
        entries: For every decision (K, A) actions in [0, 1].
        names: Of the classes.
        calibration: What the menu spends at which price; None: not measured.

    Attributes:
        left: For every decision (K, N + 1) int64: tokens left by an entry, of so many.
        spent: For every decision (K, N + 1) int64: MACs of an entry on so many tokens.

    Raises:
        ValueError: If the policy sees what a menu cannot show, or entries are thresholds.
    """

    def __init__(
        self,
        net: Supernet,
        policy: NetworkPolicy,
        interface: Interface,
        entries: Entries,
        names: tuple[str, ...] = (),
        calibration: Calibration | None = None,
    ) -> None:
        super().__init__()
        config, space = net.config, net.space
        shown = OBSERVATIONS[interface.observation]
        if unknown := [part.name for part in shown if part.name not in SHOWN or not is_known(part)]:
            raise ValueError(
                f"observation={interface.observation!r} shows {unknown}, which a menu does not compute; it shows "
                f"{[*SHOWN]} of this package. Use the model without a menu."
            )
        self.config, self.interface, self.entries = config, interface, entries
        self.names, self.calibration, self.full_macs = names, calibration, int(net.macs().item())
        choices = [GroupChoice.from_actions(space, torch.from_numpy(e)) for e in entries]
        groups = range(space.first_decided, len(space.groups))
        self.ends = extract_ends(net, config.embed_dim)
        self.first: StaticGroup | None = None
        if not space.decide_first_group:
            self.first = extract_group(net, 0, GroupChoice.full(space, 0, 1))
        self.groups = nn.ModuleList(
            nn.ModuleList(extract_group(net, g, choice[i : i + 1]) for i in range(len(choice.embed_dim)))
            for g, choice in zip(groups, choices, strict=True)
        )
        self.heads = nn.ModuleDict(
            {str(w): extract_ends(net, w) for w in choices[-1].embed_dim[:, -1].unique().tolist()}
        )
        self.deciders = nn.ModuleList(
            Decider(self.ends, policy, interface, t, e, self.full_macs) for t, e in enumerate(entries)
        )
        tables = [_tables(config, g, choice) for g, choice in zip(groups, choices, strict=True)]
        self.left, self.spent = [left for left, _ in tables], [spent for _, spent in tables]
        self.widths = [_one_hot(space, c.embed_dim[:, -1]).to(net.pos_embed.device) for c in choices]
        self.last_widths = choices[-1].embed_dim[:, -1].tolist()
        self.eval().to(net.pos_embed.device)

    @torch.inference_mode()
    def forward(self, images: Tensor, budget: Any = None) -> Prediction:
        """Classifies images one after the other; arguments and errors are those of `AdaptiveViT`."""
        check_images(images)
        prices = prices_of(budget, self.interface.conditioning, self.calibration, len(images))
        if not len(images):
            self.ends.normalised(images, least=1)  # which says what is taken
        seen = torch.zeros(len(images), dtype=torch.float64)
        if prices is not None:
            assert self.interface.conditioning is not None
            seen = torch.from_numpy(self.interface.conditioning.observe(prices))
        device = self.ends.pos_embed.device
        images, seen = images.to(device), seen.to(device)
        answers = [self._one(images[i : i + 1], seen[i : i + 1]) for i in range(len(images))]
        logits, picked, patches, macs = zip(*answers, strict=True)
        actions = np.stack([[e[k] for e, k in zip(self.entries, ks, strict=True)] for ks in picked])
        subnet = SubnetConfig.from_actions(self.config.space, torch.from_numpy(actions))
        return Prediction(
            torch.cat(logits), subnet, np.array(macs), np.array(patches), self.full_macs, self.names, np.array(picked)
        )

    def _one(self, image: Tensor, price: Tensor) -> tuple[Tensor, list[int], list[int], int]:
        """Logits of one image, the entries picked, patches left and MACs."""
        ends, config = self.ends, self.config
        x, size = ends.tokens_of(ends.normalised(image)), None
        if self.first is not None:
            x, size = self.first(x, size)
        macs, width = self.begun_macs(), _one_hot(config.space, torch.tensor([config.embed_dim])).to(x.device)
        picked, patches = [], []
        for t, (decider, groups) in enumerate(zip(self.deciders, self.groups, strict=True)):
            k = int(decider(x, size, width, torch.tensor([macs], device=x.device), price))
            macs += int(self.spent[t][k, x.shape[1]])
            x, size = cast(Any, groups)[k](x, size)
            width = self.widths[t][k : k + 1]
            picked.append(k)
            patches.append(x.shape[1] - config.num_prefix_tokens)
        last = self.last_widths[k]
        macs += int(head_macs(config, np.array([last]), np.array([x.shape[1]]))[0])
        head = self.heads[str(last)]
        return cast(StaticEnds, head).forward_head(x, size), picked, patches, macs

    def begun_macs(self) -> int:
        """MACs before the first decision."""
        if self.first is None:
            return stem_macs(self.config)
        full = np.array([self.config.num_tokens])
        plan = plan_group(self.config, 0, GroupChoice.full(self.config.space, 0, 1), full)
        return stem_macs(self.config) + int(group_macs(self.config, plan)[0])

    def nearest(self, decision: int, unit: Tensor) -> Tensor:
        """(B, A) actions of the menu that are nearest to (B, A) float64 ones in [0, 1]."""
        decider = cast(Decider, self.deciders[decision])
        entries = cast(Tensor, decider.entries)
        return entries[decider.nearest(unit.to(entries.device))]


def _one_hot(space: SearchSpace, widths: Tensor) -> Tensor:
    """(B, W) float32: which of the widths."""
    return (widths[:, None] == torch.tensor(space.embed_dims)).float()


def _tables(config: Any, group: int, choice: GroupChoice) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(K, N + 1) tokens left by every entry of a group of 0 to N tokens, and its MACs."""
    most = config.num_tokens
    tokens = np.arange(config.num_prefix_tokens + 1, most + 1)
    left, spent = (np.zeros((len(choice.embed_dim), most + 1), dtype=np.int64) for _ in range(2))
    for k in range(len(left)):
        every = choice[[k] * len(tokens)]
        plan = plan_group(config, group, every, tokens, np.full(len(tokens), config.embed_dim))
        left[k, tokens], spent[k, tokens] = plan.num_left, group_macs(config, plan)
    return left, spent


@dataclass(frozen=True, eq=False)
class MenuPlan:
    """What is kept of a menu with a model.

    Attributes:
        entries: For every decision (K, A) actions in [0, 1].
        calibration: What the menu spends at which price; None: not measured.
    """

    entries: Entries
    calibration: Calibration | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "entries": [e.tolist() for e in self.entries],
            "spent": None if self.calibration is None else self.calibration.to_dict(),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], space: SearchSpace) -> MenuPlan:
        """Inverse of `to_dict`.

        Raises:
            ValueError: If the entries are not of the search space.
        """
        entries = [np.array(e, dtype=np.float64) for e in data["entries"]]
        shapes = [e.shape[1:] for e in entries]
        if shapes != [(space.action_size,)] * space.num_decisions or not all(
            ((e >= 0) & (e <= 1)).all() for e in entries
        ):
            raise ValueError(f"a menu of entries of the shapes {shapes}")
        return cls(entries, None if data["spent"] is None else Calibration.from_dict(data["spent"]))
