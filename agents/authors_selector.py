"""The selector that PRANCE's authors released, as an agent (arXiv 2407.05010; ChildTang/PRANCE, commit e7c4e5d).

Its observation is "key_mean": one number per token, the mean of its key over heads and head dimension, in the present
order of the tokens and zero-padded. Its mean action lies in [0, 1].
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from supernet.files import problems_of, read_safetensors, read_weights, write_atomically, write_tensors

from .prance_ppo.policy import GaussianPolicy
from .protocol import BatchAgent

ACTOR, CRITIC = ("fc1", "fc2", "fc_mu"), ("fc1", "fc2", "fc3")
WIDTHS_PER_ACTION = 6  # an mlp_ratio and an embed_dim for each of the three blocks of a group
NAME, SETTINGS = "PranceSelector", ("num_rates", "normalize_actions", "std", "seed")


def exploration_std(step: int, total_steps: int = 8000) -> float:
    """The authors' standard deviation of actions after `step` updates, as a fraction of the range: 0.3 down to 0.05."""
    return min(max(0.3 * (1 - step / total_steps), 0.05), 0.3)


class PranceSelector(BatchAgent):
    """An agent with the authors' actor, and their critic if it is known.

    Args:
        actor: Tensors `fc1`, `fc2`, `fc_mu`, `.weight` and `.bias` each.
        critic: Tensors `fc1`, `fc2`, `fc3` of the critic; None: there is none.
        num_rates: Token rates that an action ends with: 1, or 2 for prune-then-merge.
        normalize_actions: Whether the environment's action space is Box(-1, 1) instead of the paper's Box(0, 1).
        std: Of actions that are not deterministic, as a fraction of the range; see `exploration_std`.
        seed: Fixes the actions that are drawn.

    Raises:
        ValueError: If keys are missing or unknown, or shapes do not fit; all of them are listed.
    """

    def __init__(
        self,
        actor: Mapping[str, Tensor],
        critic: Mapping[str, Tensor] | None = None,
        num_rates: int = 1,
        normalize_actions: bool = False,
        std: float = 0.05,
        seed: int = 0,
    ) -> None:
        if num_rates not in (1, 2):
            raise ValueError(f"num_rates={num_rates!r} must be 1, or 2 for prune-then-merge.")
        if not 0 < std <= 1:
            raise ValueError(f"std={std!r} must lie in (0, 1]; exploration_std(step) gives the authors'.")
        outputs = WIDTHS_PER_ACTION + num_rates
        problems, inputs = _problems("actor", actor, ACTOR, outputs)
        if critic is not None:
            problems += _problems("critic", critic, CRITIC, 1, inputs)[0]
        if problems:
            raise ValueError(
                f"These are not the weights of a selector with {num_rates} token rate(s): {'; '.join(problems)}."
            )
        self.num_rates, self.normalize_actions, self.std, self.seed = num_rates, normalize_actions, std, seed
        self.observation_size = inputs
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (inputs,), np.float32)
        self.action_space = gym.spaces.Box(-1.0 if normalize_actions else 0.0, 1.0, (outputs,), np.float32)
        hidden = (actor["fc1.weight"].shape[0], actor["fc2.weight"].shape[0])
        self.has_critic = critic is not None
        # What others draw does not depend on whether a selector was loaded.
        with torch.random.fork_rng(devices=[]):
            self.policy = GaussianPolicy(inputs, self.action_space, hidden, "relu", std)
        _fill(self.policy.actor, actor, ACTOR)
        if critic is not None:
            _fill(self.policy.critic, critic, CRITIC)
        self._generator = torch.Generator().manual_seed(seed)

    def actions(self, observations: NDArray[np.float32], deterministic: bool) -> NDArray[np.float32]:
        """Actions (B, A) of the environment's Box for observations (B, O), the "key_mean" of as many tokens."""
        return self.policy.act(observations, None if deterministic else self._generator)

    def value(self, observation: NDArray[np.float32]) -> NDArray[np.float32]:
        """(B,) what the authors' critic expects.

        Raises:
            ValueError: If the selector was loaded without a critic.
        """
        if not self.has_critic:
            raise ValueError("This selector has no critic; load it with {'actor': ..., 'critic': ...}.")
        with torch.no_grad():
            return self.policy.value(torch.as_tensor(observation, dtype=torch.float32)).numpy()

    def copy_to(self, policy: GaussianPolicy) -> None:
        """Copies these weights into the policy of a `PrancePPO`, for fine-tuning; without a critic, the actor's only.

        Raises:
            ValueError: If it has other layers.
        """
        for name in ("actor", "critic") if self.has_critic else ("actor",):
            source, target = getattr(self.policy, name), getattr(policy, name)
            shapes = [[tuple(v.shape) for v in net.state_dict().values()] for net in (source, target)]
            if shapes[0] != shapes[1] or any(isinstance(layer, nn.Tanh) for layer in target):
                hidden, sizes = (
                    tuple(s[0] for s in shapes[0][:-2:2]),
                    (self.observation_space.shape, self.action_space.shape),
                )
                raise ValueError(
                    f"The {name} of the selector has the weights {shapes[0]} and ReLU between them, the policy's is "
                    f"{target}; make it with PrancePPOConfig.paper(hidden={hidden}) for observations {sizes[0]} and "
                    f"actions {sizes[1]}."
                )
            target.load_state_dict(source.state_dict())

    def save(self, path: str | Path) -> None:
        """Writes a safetensors file, atomically."""
        tensors = dict(_named("actor", self.policy.actor, ACTOR))
        if self.has_critic:
            tensors |= _named("critic", self.policy.critic, CRITIC)
        settings = {k: getattr(self, k) for k in SETTINGS}
        write_atomically(Path(path), lambda name: write_tensors(tensors, name, {NAME: json.dumps(settings)}))

    @staticmethod
    def load(path: str | Path) -> PranceSelector:
        """Loads what `save` wrote.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is damaged or not a selector's.
        """
        try:
            tensors, header = read_safetensors(Path(path), f"{NAME}'s file")
            settings, parts = json.loads(header[NAME]), _split(tensors)
            return PranceSelector(parts["actor"], parts.get("critic"), **{k: settings[k] for k in SETTINGS})
        except (KeyError, TypeError, ValueError) as e:
            raise ValueError(f"{path} is not a {NAME}'s file ({e!r}); save the agent again.") from e


def load_prance_selector(
    source: str | Path | Mapping[str, Any],
    num_rates: int = 1,
    normalize_actions: bool = False,
    std: float = 0.05,
    seed: int = 0,
) -> PranceSelector:
    """The authors' actor as an agent.

    Args:
        source: The actor's state dict; `{"actor": ..., "critic": ...}`; or a file that `torch.save` or safetensors made
            of either. Only tensors are read from it: a file with other pickled objects is refused.
        num_rates: Keep rates per decision of the supernet.
        normalize_actions: Whether the environment's action space is Box(-1, 1).
        std: Standard deviation of actions that are drawn.
        seed: Fixes the actions that are drawn.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged or holds other objects, or the weights are not a selector's.
    """
    state: Any = read_weights(Path(source), "file of the authors' actor") if isinstance(source, str | Path) else source
    if not isinstance(state, Mapping):
        raise ValueError(
            f"{source} holds a {type(state).__name__}; expected a dict of tensors, or one of actor and critic."
        )
    parts: Mapping[str, Any] = state if {"actor", "critic"} & set(state) else _split(state)
    if "actor" not in parts or set(parts) - {"actor", "critic"}:
        raise ValueError(
            f"The selector's weights have the parts {sorted(parts)}; expected 'actor', and 'critic' if any."
        )
    return PranceSelector(parts["actor"], parts.get("critic"), num_rates, normalize_actions, std, seed)


def _split(state: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Keys with "actor." or "critic." in front to one dict each; keys with neither are the actor's."""
    parts: dict[str, dict[str, Any]] = {}
    for key, value in state.items():
        part, _, rest = str(key).partition(".")
        if part in ("actor", "critic"):
            parts.setdefault(part, {})[rest] = value
        else:
            parts.setdefault("actor", {})[str(key)] = value
    return parts


def _problems(
    part: str, state: Mapping[str, Any], layers: tuple[str, str, str], outputs: int, inputs: int | None = None
) -> tuple[list[str], int]:
    """What is wrong with the tensors of a network of three layers, and its number of inputs."""
    if not isinstance(state, Mapping):
        return [f"{part} is a {type(state).__name__}, not a dict of tensors"], 0
    keys = [f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")]
    found = {f"{part} {k}": v for k, v in state.items()}
    own = {f"{part} {k}": tuple(getattr(state.get(k), "shape", ())) for k in keys}
    if problems := problems_of(found, own):
        return problems, 0
    first, second = (state[f"{layer}.weight"] for layer in layers[:2])
    if first.ndim != 2 or second.ndim != 2:
        return [f"{part} weights have the shapes {tuple(first.shape)} and {tuple(second.shape)}, not matrices"], 0
    sizes = [first.shape[1] if inputs is None else inputs, first.shape[0], second.shape[0], outputs]
    shapes: dict[str, tuple[int, ...]] = {}
    for i, layer in enumerate(layers):
        shapes |= {f"{part} {layer}.weight": (sizes[i + 1], sizes[i]), f"{part} {layer}.bias": (sizes[i + 1],)}
    problems = problems_of(found, shapes)
    problems += [f"{k} holds whole numbers" for k, v in found.items() if not v.is_floating_point()]
    return problems, sizes[0]


def _linears(net: nn.Sequential) -> list[nn.Linear]:
    return [layer for layer in net if isinstance(layer, nn.Linear)]


def _named(part: str, net: nn.Sequential, names: tuple[str, ...]) -> dict[str, Tensor]:
    pairs = zip(names, _linears(net), strict=True)
    return {f"{part}.{n}.{k}": getattr(layer, k).detach() for n, layer in pairs for k in ("weight", "bias")}


@torch.no_grad()
def _fill(net: nn.Sequential, state: Mapping[str, Tensor], names: tuple[str, ...]) -> None:
    for name, layer in zip(names, _linears(net), strict=True):
        layer.weight.copy_(state[f"{name}.weight"])
        layer.bias.copy_(state[f"{name}.bias"])
