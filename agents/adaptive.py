"""Network and agent together: from pixels to logits, with a size of its own for every image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prance_env.rewards.prices import CostConditioning
from prance_env.settings import EnvSettings
from prance_env.spaces import decode_actions, observe
from supernet import GroupChoice, SubnetConfig, Supernet
from supernet.arrays import Ints

from .fitting import Interface, fitted
from .protocol import Agent, ask


@dataclass(frozen=True, eq=False)
class Prediction:
    """What an adaptive network says about B images.

    Attributes:
        logits: (B, num_classes), on the device of the network.
        subnet: What was chosen for every image; groups that no decision precedes are at full size.
        macs: (B,) multiply-accumulates of every image, without those of the agent.
        patches: (B, num_decisions) patches left after every decision.
    """

    logits: Tensor
    subnet: SubnetConfig
    macs: Ints
    patches: Ints

    def __len__(self) -> int:
        return len(self.macs)


class AdaptiveViT:
    """A supernet with an agent that chooses, while an image is classified, how wide and how long it goes on.

    Nothing is cached or looked up: this is what is deployed, and it takes images that no environment has seen.

        model = AdaptiveViT.from_settings(EnvSettings.from_id("Prance-Digits-v0"), agent)
        prediction = model(images)  # (B, C, H, W) uint8, or floats that are normalised already
        prediction.logits.argmax(1), prediction.macs

    Args:
        net: The supernet, frozen.
        agent: Whatever has SB3's `predict`; it is asked for deterministic actions.
        observation: What the agent is shown, a name that `prance_env.list_observations` has.
        normalize_actions: Whether the agent's actions are those of Box(-1, 1) instead of Box(0, 1).
        conditioning: Range of the prices that a cost-conditioned agent was trained for; None: one price.

    Raises:
        ValueError: If the agent is for other observations, actions or wrappers, see `agents.fitting.fitted`.
    """

    def __init__(
        self,
        net: Supernet,
        agent: Agent,
        observation: str = "cls",
        normalize_actions: bool = True,
        conditioning: CostConditioning | None = None,
    ) -> None:
        self.net, self.observation = net, observation
        self.agent = fitted(agent, Interface(net.config, observation, normalize_actions, conditioning))
        self.normalize_actions, self.conditioning = normalize_actions, conditioning
        self.full_macs = int(net.macs().item())

    @classmethod
    def from_settings(cls, settings: EnvSettings, agent: Agent) -> AdaptiveViT:
        """The supernet of an environment with an agent for that environment.

        Args:
            settings: Of the environment that the agent was trained in, or of one with the same spaces.
            agent: The agent.

        Raises:
            ValueError: If the agent is for other observations, actions or wrappers.
        """
        net = settings.engine().net
        return cls(net, agent, settings.observation, settings.normalize_actions, settings.conditioning)

    @torch.inference_mode()
    def __call__(self, images: Tensor, macs_weight: float | None = None) -> Prediction:
        """Classifies images.

        Args:
            images: (B, in_chans, img_size, img_size): uint8, or floats that are normalised already.
            macs_weight: Price of computation for a cost-conditioned agent: the higher, the less it computes; None takes
                the fixed one of its settings.

        Raises:
            ValueError: If the images do not fit, the agent needs a price and has none, the price lies outside the range
                that it was trained for, or the agent knows no prices.
        """
        net, space = self.net, self.net.space
        state = net.begin(images.to(net.pos_embed.device), key_mean=self.observation == "key_mean")
        price, memory, chosen, patches = self._price(macs_weight, len(images)), None, [], []
        for group in range(space.first_decided, len(space.groups)):
            seen = observe(net, state, self.observation, self.full_macs, price).cpu().numpy()
            actions, memory = ask(self.agent, seen, memory, space.action_size)
            unit = torch.from_numpy(decode_actions(actions, self.normalize_actions))
            state = net.run_group(state, group, GroupChoice.from_actions(space, unit))
            chosen.append(unit)
            patches.append(state.num_tokens - net.config.num_prefix_tokens)
        subnet = SubnetConfig.from_actions(space, torch.stack(chosen, dim=1))
        return Prediction(net.forward_head(state), subnet, net.macs_to_go(state), np.stack(patches, axis=1))

    def _price(self, macs_weight: float | None, batch: int) -> Any:
        """(B,) what a cost-conditioned agent observes of its price; None for other agents."""
        if self.conditioning is None:
            if macs_weight is not None:
                raise ValueError(f"macs_weight={macs_weight} was given, but the agent was trained for one price only.")
            return None
        price = self.conditioning.fixed if macs_weight is None else macs_weight
        if price is None:
            low, high = self.conditioning.low, self.conditioning.high
            raise ValueError(f"The agent was trained for a range of prices; pass macs_weight= in [{low}, {high}].")
        return self.conditioning.observe(np.full(batch, self.conditioning.check(price, ())))
