"""Which part of the supernet runs for which image."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Interval
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import TypedDict

from .arrays import Floats, constant, namespace, whole
from .choices import allowed_values, check_keep_rate, check_rates_shape, rates_shape
from .config import SearchSpace
from .reading import STRICT, checked, parsed_json
from .tokens.modes import SLACK

# A keep rate of 0 would be an error; the smallest action of a space with min_keep_rate 0 keeps one patch.
SMALLEST_RATE = 1e-9
# Where choices are made and planned with, whatever torch's default device is.
HOST = torch.device("cpu")


class _Lists(TypedDict):
    """What the JSON text of subnets holds; keep rates are single ones or, in some token modes, several."""

    embed_dim: list[list[Annotated[int, Interval(ge=1, le=2**31)]]]
    mlp_ratio: list[list[float]]
    keep_rate: list[list[float]] | list[list[list[float]]]


_Lists.__pydantic_config__ = STRICT  # type: ignore[attr-defined]


def check_group(space: SearchSpace, group: int, next_group: int) -> None:
    """Checks that a group is the next one.

    Raises:
        ValueError: If it is not, or there is none.
    """
    if group != next_group or group >= len(space.groups):
        raise ValueError(f"group={group} cannot run: the state is before group {next_group} of {len(space.groups)}.")


def check_choice(choice: GroupChoice, space: SearchSpace, group: int, next_group: int, batch: int) -> None:
    """Checks that a group can run so.

    Args:
        choice: Sizes for every image.
        space: That they must be in.
        group: The group that is to run.
        next_group: The one that the images stand before.
        batch: How many images there are.

    Raises:
        ValueError: If the group is not the next one, the choice is for another number of images or blocks, or it is not
            in the search space.
        TypeError: If it is no GroupChoice, but whole subnets.
    """
    check_group(space, group, next_group)
    if not isinstance(choice, GroupChoice):
        raise TypeError(
            f"choice is a {type(choice).__name__}; pass a GroupChoice, the sizes of one group, such as "
            "subnet.group(net.space, group). Whole subnets (SubnetConfig) go to net(images, subnet) and "
            "net.finish(state, subnet)."
        )
    if tuple(choice.embed_dim.shape) != (batch, space.groups[group]):
        raise ValueError(
            f"The choice has the shape {tuple(choice.embed_dim.shape)}; group {group} of these images takes "
            f"({batch}, {space.groups[group]})."
        )
    choice.validate(space)
    if group < space.first_decided and bool((choice.keep_rate != 1).any()):
        raise ValueError(
            f"keep_rate={choice.keep_rate.min().item()} before group {group}, which no decision precedes: all "
            "patches stay there, keep_rate must be 1."
        )


def check_subnet(subnet: SubnetConfig, space: SearchSpace) -> None:
    """Checks that these are whole subnets of `space`.

    Raises:
        TypeError: If it is something else, such as the choice for one group.
        ValueError: As `SubnetConfig.validate`.
    """
    if not isinstance(subnet, SubnetConfig):
        raise TypeError(
            f"subnet is a {type(subnet).__name__}; pass a SubnetConfig, the sizes of all groups. The choice for one "
            "group (GroupChoice) goes to run_group(state, group, choice)."
        )
    subnet.validate(space)


@dataclass(frozen=True, eq=False)
class GroupChoice:
    """Sizes of one group of blocks for B images.

    Attributes:
        embed_dim: (B, blocks) int64, width of each block.
        mlp_ratio: (B, blocks) float64, hidden width of each MLP over `embed_dim`.
        keep_rate: (B,) float64 in (0, 1], patches kept / patches present before; (B, 2) for a token mode with two
            stages ("prune_merge"), the second relative to what the first left.
    """

    embed_dim: Tensor
    mlp_ratio: Tensor
    keep_rate: Tensor

    def __getitem__(self, index: Any) -> GroupChoice:
        return GroupChoice(self.embed_dim[index], self.mlp_ratio[index], self.keep_rate[index])

    @property
    def rates(self) -> NDArray[np.float64]:
        """(B, num_rates) keep rates, whether there is one or two."""
        return self.arrays[2]

    @property
    def tensors(self) -> tuple[Any, Any, Any]:
        """`embed_dim`, `mlp_ratio` and the keep rates (B, num_rates), as they are, for who plans on their device."""
        rates = self.keep_rate if self.keep_rate.ndim == 2 else self.keep_rate[:, None]
        return self.embed_dim, self.mlp_ratio, rates

    @property
    def arrays(self) -> tuple[Any, Any, Any]:
        """`tensors` as numpy arrays."""
        widths, ratios, rates = (size.cpu().numpy() for size in self.tensors)
        return widths, ratios, rates

    def validate(self, space: SearchSpace) -> None:
        """Checks that every choice belongs to `space`; a ratio that was rounded to float32 is the one it was.

        Raises:
            ValueError: With the value, its place (blocks counted within the group) and what is allowed.
        """
        if self.mlp_ratio.shape != self.embed_dim.shape:
            raise ValueError(
                f"mlp_ratio has the shape {tuple(self.mlp_ratio.shape)}; with embed_dim it must be one entry per image "
                f"and block, {tuple(self.embed_dim.shape)}."
            )
        allowed_values("embed_dim", self.embed_dim, space.embed_dims)
        object.__setattr__(self, "mlp_ratio", allowed_values("mlp_ratio", self.mlp_ratio, space.mlp_ratios))
        check_rates_shape(tuple(self.keep_rate.shape), space, (len(self.embed_dim),))
        check_keep_rate(self.keep_rate)

    @classmethod
    def full(cls, space: SearchSpace, group: int, batch_size: int, device: torch.device | None = None) -> GroupChoice:
        """Everything at its maximum; on the CPU, or on a device that is to plan for itself."""
        shape, device = (batch_size, space.groups[group]), device or HOST
        return cls(
            torch.full(shape, space.embed_dims[-1], device=device),
            torch.full(shape, space.mlp_ratios[-1], dtype=torch.float64, device=device),
            torch.ones(batch_size, *rates_shape(space), dtype=torch.float64, device=device),
        )

    @classmethod
    def from_actions(cls, space: SearchSpace, actions: Tensor) -> GroupChoice:
        """Decodes actions.

        Args:
            space: The search space.
            actions: (B, A) in [0, 1]: an mlp_ratio per block, an embed_dim per block, the keep rates.

        Returns:
            Indices are round(a * (k - 1)), half to even; a keep rate is min_keep_rate + (1 - min_keep_rate) * a.

        Raises:
            ValueError: If the shape is wrong or an entry lies outside [0, 1].
        """
        # numpy's calls cost a fraction of torch's, and this is asked at every decision.
        unit = torch.as_tensor(actions, device=HOST).detach().double().numpy()
        if unit.ndim != 2 or unit.shape[1] != space.action_size:
            raise ValueError(f"actions have the shape {unit.shape}; expected (B, {space.action_size}).")
        inside = (unit >= 0) & (unit <= 1)
        if not inside.all():
            raise ValueError(
                f"actions hold {unit[~inside].tolist()[:4]}; every entry must lie in [0, 1]: clip them first."
            )
        return cls.decoded(space, unit)

    @classmethod
    def decoded(cls, space: SearchSpace, actions: Tensor | Floats) -> GroupChoice:
        """`from_actions` for (B, A) float64 in [0, 1] that nobody checks; of a tensor on its device."""
        n, arrays = space.blocks_per_decision, namespace(actions)
        ratios, dims = constant(space.mlp_ratios, actions), constant(space.embed_dims, actions)
        rates = (space.min_keep_rate + (1 - space.min_keep_rate) * actions[:, 2 * n :]).clip(min=SMALLEST_RATE)
        sizes = (
            dims[whole(arrays.round(actions[:, n : 2 * n] * (len(dims) - 1)))],
            ratios[whole(arrays.round(actions[:, :n] * (len(ratios) - 1)))],
            rates.reshape(-1, *rates_shape(space)),
        )
        return cls(*(size if isinstance(size, Tensor) else torch.from_numpy(size) for size in sizes))


@dataclass(frozen=True, eq=False)
class SubnetConfig:
    """One choice of widths and keep rates for each of B images.

    Attributes:
        embed_dim: (B, depth) int64.
        mlp_ratio: (B, depth) float64.
        keep_rate: (B, num_decisions) float64 in (0, 1], patches kept / patches present before; (B, num_decisions, 2)
            for a token mode with two stages ("prune_merge"), the second relative to what the first left.

    Raises:
        ValueError: If shapes disagree or a number is not finite or out of range. Membership in a search space is
            checked by `validate`, which every network call does.
    """

    embed_dim: Tensor
    mlp_ratio: Tensor
    keep_rate: Tensor

    def __post_init__(self) -> None:
        embed_dim = torch.as_tensor(self.embed_dim, device=HOST)
        object.__setattr__(self, "mlp_ratio", torch.as_tensor(self.mlp_ratio, dtype=torch.float64, device=HOST))
        object.__setattr__(self, "keep_rate", torch.as_tensor(self.keep_rate, dtype=torch.float64, device=HOST))
        if embed_dim.is_floating_point() and not bool((embed_dim == embed_dim.round()).all()):
            raise ValueError(f"embed_dim holds {embed_dim.flatten().tolist()[:8]}; widths are whole numbers.")
        object.__setattr__(self, "embed_dim", embed_dim.long())
        shapes = tuple(tuple(getattr(self, n).shape) for n in ("embed_dim", "mlp_ratio", "keep_rate"))
        ranks = [len(s) for s in shapes]
        if ranks not in ([2, 2, 2], [2, 2, 3]) or shapes[0] != shapes[1] or shapes[0][0] != shapes[2][0]:
            raise ValueError(
                f"embed_dim {shapes[0]}, mlp_ratio {shapes[1]} and keep_rate {shapes[2]} must have the shapes "
                "(B, depth), (B, depth) and (B, num_decisions), or (B, num_decisions, 2) for two rates a decision."
            )
        check_keep_rate(self.keep_rate)

    def __len__(self) -> int:
        return self.embed_dim.shape[0]

    def __getitem__(self, index: Any) -> SubnetConfig:
        """The subnets of the images `index`; an int gives a batch of one."""
        if isinstance(index, int | np.integer):
            index = int(index)
            if not -len(self) <= index < len(self):
                raise IndexError(f"Image {index} of {len(self)} subnets.")
            index = slice(index, index + 1) if index != -1 else slice(index, None)
        return SubnetConfig(self.embed_dim[index], self.mlp_ratio[index], self.keep_rate[index])

    def expand(self, batch_size: int) -> SubnetConfig:
        """This one subnet for `batch_size` images.

        Raises:
            ValueError: If this is neither one subnet nor already `batch_size` of them.
        """
        if len(self) == batch_size:
            return self
        if len(self) != 1:
            raise ValueError(f"A batch of {batch_size} images got {len(self)} subnets; pass 1 or {batch_size}.")
        return self[[0] * batch_size]

    def validate(self, space: SearchSpace) -> None:
        """Checks that every choice belongs to `space`; a ratio that was rounded to float32 is the one it was.

        Raises:
            ValueError: With the value, its place and what is allowed.
        """
        if self.embed_dim.shape[1] != space.depth or self.keep_rate.shape[1] != space.num_decisions:
            raise ValueError(
                f"A subnet with {self.embed_dim.shape[1]} blocks and {self.keep_rate.shape[1]} keep rates does not fit "
                f"a supernet with {space.depth} blocks and {space.num_decisions} decisions."
            )
        check_rates_shape(tuple(self.keep_rate.shape), space, (len(self), space.num_decisions))
        allowed_values("embed_dim", self.embed_dim, space.embed_dims)
        object.__setattr__(self, "mlp_ratio", allowed_values("mlp_ratio", self.mlp_ratio, space.mlp_ratios))

    def group(self, space: SearchSpace, group: int) -> GroupChoice:
        """The choice for one group of blocks."""
        blocks = slice(space.blocks(group).start, space.blocks(group).stop)
        decision = group - space.first_decided
        keep = self.keep_rate[:, decision] if decision >= 0 else torch.ones_like(self.keep_rate[:, 0])
        return GroupChoice(self.embed_dim[:, blocks], self.mlp_ratio[:, blocks], keep)

    @classmethod
    def _from_choices(cls, space: SearchSpace, choices: list[GroupChoice]) -> SubnetConfig:
        keep_rate = torch.stack([c.keep_rate for c in choices], dim=1)
        if not space.decide_first_group:
            choices = [GroupChoice.full(space, 0, len(keep_rate)), *choices]
        return cls(
            torch.cat([c.embed_dim for c in choices], dim=1),
            torch.cat([c.mlp_ratio for c in choices], dim=1),
            keep_rate,
        )

    @classmethod
    def full(cls, space: SearchSpace, batch_size: int = 1) -> SubnetConfig:
        """Every choice at its maximum, every patch kept."""
        return cls.from_actions(space, torch.ones(batch_size, space.num_decisions, space.action_size, device=HOST))

    @classmethod
    def min(cls, space: SearchSpace, batch_size: int = 1) -> SubnetConfig:
        """Every choice at its minimum."""
        return cls.from_actions(space, torch.zeros(batch_size, space.num_decisions, space.action_size, device=HOST))

    @classmethod
    def random(cls, space: SearchSpace, batch_size: int = 1, generator: torch.Generator | None = None) -> SubnetConfig:
        """Every decided choice uniform and independent, keep rates uniform in [min_keep_rate, 1]."""
        shape = (batch_size, space.depth)
        dims = torch.tensor(space.embed_dims, device=HOST)
        ratios = torch.tensor(space.mlp_ratios, dtype=torch.float64, device=HOST)
        embed_dim = dims[torch.randint(len(dims), shape, generator=generator, device=HOST)]
        mlp_ratio = ratios[torch.randint(len(ratios), shape, generator=generator, device=HOST)]
        if not space.decide_first_group:
            embed_dim[:, : space.groups[0]], mlp_ratio[:, : space.groups[0]] = dims[-1], ratios[-1]
        rates = (batch_size, space.num_decisions, *rates_shape(space))
        uniform = torch.rand(rates, generator=generator, dtype=torch.float64, device=HOST)
        keep_rate = space.min_keep_rate + (1 - space.min_keep_rate) * uniform
        return cls(embed_dim, mlp_ratio, keep_rate.clamp(min=SMALLEST_RATE))

    @classmethod
    def from_actions(cls, space: SearchSpace, actions: Tensor) -> SubnetConfig:
        """Decodes whole episodes.

        Args:
            space: The search space.
            actions: (B, num_decisions, A) in [0, 1]; of each decision an mlp_ratio per block of the group, an embed_dim
                per block, and the keep rates.

        Raises:
            ValueError: If the shape is wrong or an entry lies outside [0, 1].
        """
        actions = torch.as_tensor(actions, device=HOST)
        if actions.ndim != 3 or tuple(actions.shape[1:]) != (space.num_decisions, space.action_size):
            raise ValueError(
                f"actions have the shape {tuple(actions.shape)}; "
                f"expected (B, {space.num_decisions}, {space.action_size})."
            )
        return cls._from_choices(space, [GroupChoice.from_actions(space, a) for a in actions.unbind(1)])

    def to_actions(self, space: SearchSpace) -> Tensor:
        """Inverse of `from_actions`: (B, num_decisions, A) float64 in [0, 1].

        Raises:
            ValueError: If this is not in the search space, a keep rate lies below `space.min_keep_rate`, or a group
                that is not decided is not at full size.
        """
        self.validate(space)
        if bool((self.keep_rate < space.min_keep_rate - SLACK).any()):
            raise ValueError(
                f"keep_rate={self.keep_rate.min().item()} has no action: the smallest is {space.min_keep_rate}."
            )
        if not space.decide_first_group:
            note = " (the first group is not decided)"
            allowed_values("embed_dim", self.embed_dim[:, : space.groups[0]], space.embed_dims[-1:], note)
            allowed_values("mlp_ratio", self.mlp_ratio[:, : space.groups[0]], space.mlp_ratios[-1:], note)

        def unit(values: Tensor, choices: tuple[float, ...]) -> Tensor:
            index = torch.searchsorted(
                torch.tensor(choices, dtype=torch.float64, device=HOST), values.double().contiguous()
            )
            return index.double() / max(len(choices) - 1, 1)

        ratios, dims = unit(self.mlp_ratio, space.mlp_ratios), unit(self.embed_dim, space.embed_dims)
        keep = (self.keep_rate - space.min_keep_rate).clamp(min=0) / max(1 - space.min_keep_rate, 1e-12)
        keep = keep.reshape(len(self), space.num_decisions, space.num_rates)
        actions = []
        for decision in range(space.num_decisions):
            blocks = list(space.blocks(decision + space.first_decided))
            actions.append(torch.cat([ratios[:, blocks], dims[:, blocks], keep[:, decision]], dim=1))
        return torch.stack(actions, dim=1)

    def to_json(self) -> str:
        """JSON text with one list per field."""
        return json.dumps({n: getattr(self, n).tolist() for n in ("embed_dim", "mlp_ratio", "keep_rate")})

    @classmethod
    def from_json(cls, text: str) -> SubnetConfig:
        """Inverse of `to_json`.

        Raises:
            ValueError: If the text is not what `to_json` writes.
        """
        source, remedy = "The text of a subnet", "write it with SubnetConfig.to_json"
        lists: Any = checked(parsed_json(text, source, remedy), _Lists, source, remedy)
        return cls(**lists)
