"""What an observation is made of: parts with a name, a size and a range, and named combinations of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from supernet import InferenceState, Supernet, SupernetConfig
from supernet.arrays import Ints, constant, sent
from supernet.extension import Registry
from supernet.layers import set_width
from supernet.runtime.pooling import by_width
from supernet.runtime.tile_head import normed
from supernet.runtime.tiled import TileBatch
from supernet.tiled_state import TiledState

LOG_NORM_BOUND = 5.0
# Far beyond what trained networks give; it is there so that the Box is finite.
KEY_MEAN_BOUND = 100.0


def largest_entropy(num_classes: int) -> float:
    """Of a classifier, in nats; one class has an entropy of 0, of which nothing is a share."""
    return math.log(max(num_classes, 2))


class Seen:
    """What an agent can be shown of B inferences; every property is computed when it is first asked for.

    Args:
        net: The supernet.
        state: The inferences so far.
        full_macs: MACs of the full network.
        price: (B,) price of computation in [0, 1], an array or a tensor on the state's device; None: not conditioned.
    """

    def __init__(
        self, net: Supernet, state: InferenceState, full_macs: int, price: NDArray[np.float64] | Tensor | None = None
    ) -> None:
        self.net, self.state, self.full_macs, self.price = net, state, full_macs, price

    @cached_property
    def numbers(self) -> dict[str, Tensor]:
        """Float32 (B, size) on the device of the state, in one copy.

        `patches_left`, `macs_spent`, `macs_weight` (B, 1), `embed_dim` (one-hot width of the last block) and `decision`
        (one-hot coming decision, zero after the last).
        """
        config, space, state = self.net.config, self.net.space, self.state
        batch, widths = len(state), len(space.embed_dims)
        decision = state.group - space.first_decided
        if isinstance(state, TiledState):
            return self._numbers_on_device(state, decision)
        numbers = np.zeros((batch, 3 + widths + space.num_decisions), dtype=np.float32)
        numbers[:, 0] = (state.num_tokens - config.num_prefix_tokens) / config.num_patches
        # What a token mode itself costs may come on top of the full network's.
        numbers[:, 1] = np.minimum(state.macs / self.full_macs, 1)
        numbers[:, 2] = 0 if self.price is None else self.price
        numbers[:, 3 : 3 + widths] = state.embed_dim[:, None] == constant(space.embed_dims, state.embed_dim)
        if decision < space.num_decisions:
            numbers[:, 3 + widths + decision] = 1
        sizes = (1, 1, 1, widths, space.num_decisions)
        parts = sent(numbers, state.tokens.device).split_with_sizes(sizes, dim=1)
        return dict(zip(("patches_left", "macs_spent", "macs_weight", "embed_dim", "decision"), parts, strict=True))

    def _numbers_on_device(self, state: TiledState, decision: int) -> dict[str, Tensor]:
        config, space, device = self.net.config, self.net.space, state.patch_token.device
        left = (state.batch.lengths - config.num_prefix_tokens) / config.num_patches
        price = torch.zeros(len(state), device=device) if self.price is None else torch.as_tensor(self.price)
        coming = torch.zeros(len(state), space.num_decisions, device=device)
        coming[:, decision : decision + 1] = 1
        return {
            "patches_left": left[:, None].float(),
            "macs_spent": (state.spent.double() / self.full_macs)[:, None].float().clamp(max=1),
            "macs_weight": price[:, None].to(device, torch.float32, non_blocking=True),
            "embed_dim": (state.widths[:, None] == constant(space.embed_dims, state.widths)).float(),
            "decision": coming,
        }

    @cached_property
    def class_token(self) -> tuple[Tensor, Tensor]:
        """(B, D) class token, layer-normed over its active width and zero-padded, and (B, 1) clipped logarithm of its
        root mean square."""
        token, width = self.net.pooled(self.state)
        token = token.float()
        if isinstance(width, Tensor):
            mean_square = token.square().sum(1, keepdim=True) / width[:, None]
            log_norm = mean_square.clamp_min(1e-12).sqrt().log()
            return normed(TileBatch.of_rows(token, width), None), log_norm.clamp(-LOG_NORM_BOUND, LOG_NORM_BOUND)
        full = self.net.config.embed_dim

        def looked_at(rows: Tensor, width: int) -> Tensor:
            log_norm = rows.square().mean(1, keepdim=True).clamp_min(1e-12).sqrt().log()
            return torch.cat([set_width(F.layer_norm(rows, (width,)), full), log_norm], dim=1)

        seen = by_width(token, width, looked_at)
        return seen[:, :full], seen[:, full:].clamp(-LOG_NORM_BOUND, LOG_NORM_BOUND)

    @cached_property
    def confidence(self) -> tuple[Tensor, Tensor]:
        """(B, 1) maximum probability, and (B, 1) entropy relative to the largest possible, of the classifier applied to
        the class token."""
        p = self.net.forward_head(self.state).float().softmax(-1)
        entropy = torch.special.entr(p).sum(1, keepdim=True) / largest_entropy(self.net.config.num_classes)
        return p.amax(1, keepdim=True).clamp(0, 1), entropy.clamp(0, 1)

    @cached_property
    def key_mean(self) -> Tensor:
        """(B, num_tokens) mean key of every token in the last block, clipped and zero-padded.

        Raises:
            ValueError: If mean keys are not kept, because no part of the observation is "key_mean".
        """
        state = self.state
        if (state.row_means if isinstance(state, TiledState) else state.key_mean) is None:
            raise ValueError(
                "seen.key_mean is there only if the observation has the part of this name; pass "
                'register_observation(..., beside=("key_mean",)), with other parts if you like.'
            )
        if isinstance(state, TiledState):
            return state.padded_means().clamp(-KEY_MEAN_BOUND, KEY_MEAN_BOUND)
        return state.padded_key_mean(self.net.config.num_tokens).clamp(-KEY_MEAN_BOUND, KEY_MEAN_BOUND)


@dataclass(frozen=True)
class ObservationPart:
    """One named part of the observation vector.

    Attributes:
        name: As in `observation_layout` and in the Dict of `prance_env.wrappers.DictObservation`.
        values: What to show: a function of `Seen` that gives (B, size) numbers on its device.
        size: How many numbers an image has, for a supernet.
        low: Smallest value, for a supernet; finite.
        high: Largest value, for a supernet; finite.
    """

    name: str
    values: Callable[[Seen], Tensor]
    size: Callable[[SupernetConfig], int] = lambda config: 1
    low: Callable[[SupernetConfig], float] = lambda config: 0.0
    high: Callable[[SupernetConfig], float] = lambda config: 1.0


def _class_token_bound(config: SupernetConfig) -> float:
    return math.sqrt(config.embed_dim)  # a layer-normed vector of D entries cannot have one above sqrt(D - 1)


Values = Callable[[Seen], Tensor]
PRICE = ObservationPart("macs_weight", lambda seen: seen.numbers["macs_weight"])
_CLASS_TOKEN = (
    ObservationPart(
        "class_token",
        lambda seen: seen.class_token[0],
        lambda config: config.embed_dim,
        lambda config: -_class_token_bound(config),
        _class_token_bound,
    ),
    ObservationPart(
        "log_norm",
        lambda seen: seen.class_token[1],
        low=lambda config: -LOG_NORM_BOUND,
        high=lambda config: LOG_NORM_BOUND,
    ),
)
_CONFIDENCE = (
    ObservationPart("max_prob", lambda seen: seen.confidence[0]),
    ObservationPart("entropy", lambda seen: seen.confidence[1]),
)
_DECISION = ObservationPart(
    "decision", lambda seen: seen.numbers["decision"], lambda config: config.space.num_decisions
)
_COUNTERS = (
    ObservationPart("embed_dim", lambda seen: seen.numbers["embed_dim"], lambda config: len(config.space.embed_dims)),
    _DECISION,
    ObservationPart("patches_left", lambda seen: seen.numbers["patches_left"]),
    ObservationPart("macs_spent", lambda seen: seen.numbers["macs_spent"]),
)
_KEY_MEAN = ObservationPart(
    "key_mean",
    lambda seen: seen.key_mean,
    lambda config: config.num_tokens,
    lambda config: -KEY_MEAN_BOUND,
    lambda config: KEY_MEAN_BOUND,
)
PARTS = {part.name: part for part in (*_CLASS_TOKEN, *_CONFIDENCE, *_COUNTERS, _KEY_MEAN)}

OBSERVATIONS: Registry[tuple[ObservationPart, ...]] = Registry("observation", "register_observation", "observation")
OBSERVATIONS.add("cls", (*_CLASS_TOKEN, *_CONFIDENCE, *_COUNTERS))
OBSERVATIONS.add("cls_only", (*_CLASS_TOKEN, *_COUNTERS))
OBSERVATIONS.add("constant", (_DECISION,))
OBSERVATIONS.add("key_mean", (_KEY_MEAN,))


def is_known(part: ObservationPart) -> bool:
    """Whether a part is one of this package, which asks nothing of a device, and not a user's."""
    return part is PARTS.get(part.name) or part is PRICE


def values_of(part: ObservationPart, seen: Seen) -> Tensor:
    """What a part shows: (B, size).

    Raises:
        ValueError: If a part of a user gives something else.
    """
    values = part.values(seen)
    if not is_known(part):
        expected = len(seen.state), part.size(seen.net.config)
        if not isinstance(values, Tensor) or values.shape != expected:
            what = f"a tensor of shape {tuple(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
            raise ValueError(
                f"The observation {part.name!r} gave {what}; expected a tensor of shape {expected}, one row an image. "
                "Mend its function, or say with size= how many numbers an image has."
            )
    return values


def check_own_parts(observation: str, values: Tensor, config: SupernetConfig, index: Ints) -> None:
    """Finds whose fault it is that an observation is not finite.

    Args:
        observation: Its name.
        values: (B, O) numbers.
        config: The supernet.
        index: (B,) images.

    Raises:
        ValueError: If parts of users hold numbers that are not finite, and those of this package do not.
    """
    sizes = [part.size(config) for part in OBSERVATIONS[observation]]
    rows = values[:, : sum(sizes)].isfinite().logical_not().split(sizes, dim=1)
    wrong = [(part, bad.any(1)) for part, bad in zip(OBSERVATIONS[observation], rows, strict=True) if bad.any()]
    if wrong and not any(is_known(part) for part, _ in wrong):
        part, images = wrong[0]
        raise ValueError(
            f"The observation {part.name!r} is not finite for image {index[int(images.int().argmax())]}, whose "
            "tokens are finite. Mend its function; 0 / 0 and the logarithm of 0 are usual causes."
        )


def register_observation(
    name: str,
    values: Values | Sequence[str | ObservationPart] | None = None,
    *,
    size: int | Callable[[SupernetConfig], int] = 1,
    low: float = 0.0,
    high: float = 1.0,
    beside: Sequence[str | ObservationPart] = ("decision",),
) -> Callable[[Values], Values]:
    """Makes `observation=name` known: your numbers after parts that this package has. A decorator or a function.

        @register_observation("norms", size=2, low=-10, high=10, beside=("class_token", "decision"))
        def norms(seen):
            return ...  # (B, 2)

        register_observation("lean", ("max_prob", "entropy", "decision"))  # only parts that are there

    Processes that are spawned have to register it as well: do so in a module that they import, or in a plug-in
    (`supernet.extension`).

    Args:
        name: The name.
        values: Function of `Seen` that gives (B, size) numbers; or parts that make up the whole observation, names of
            `PARTS` or your own; None: what is returned is used as a decorator of the function.
        size: Numbers an image, or a function of the supernet's configuration.
        low: Their smallest value; what is below is clipped.
        high: Their largest value; what is above is clipped.
        beside: Names of `PARTS`, or parts of yours, that come before the function's numbers; may be empty. A function
            that reads `seen.key_mean` needs "key_mean" among them.

    Returns:
        A decorator that registers its function.

    Raises:
        ValueError: If the name is taken, a part is unknown or named twice, there is none, or the range is empty or not
            finite.
    """
    whole = None if values is None or callable(values) else values
    known = _known_parts(name, beside if whole is None else whole)
    if whole is not None:
        if not known:
            raise ValueError(f"observation {name!r} has no parts; pass at least one of {list(PARTS)}, or a function.")
        OBSERVATIONS.add(name, known)
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"low={low} and high={high} must be finite, and low below high.")

    def register(function: Values) -> Values:
        mine = ObservationPart(
            name,
            lambda seen: function(seen).clamp(low, high),
            size if callable(size) else lambda config: size,
            lambda config: low,
            lambda config: high,
        )
        OBSERVATIONS.add(name, (*known, mine))
        return function

    if callable(values):
        register(values)
    return register


def _known_parts(name: str, given: Sequence[str | ObservationPart]) -> tuple[ObservationPart, ...]:
    """The parts that names stand for.

    Raises:
        ValueError: If one is unknown, or two have one name.
    """
    if unknown := [p for p in given if isinstance(p, str) and p not in PARTS]:
        raise ValueError(f"observation {name!r}: {unknown} are no parts of an observation; there are {list(PARTS)}.")
    parts = tuple(PARTS[p] if isinstance(p, str) else p for p in given)
    names = [part.name for part in parts]
    if len({*names, name}) <= len(names):
        raise ValueError(f"observation {name!r}: its parts {names} must have names of their own.")
    return parts


def list_observations() -> list[str]:
    """Names that the argument `observation` knows."""
    return OBSERVATIONS.names()
