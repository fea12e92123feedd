"""Measured milliseconds as the cost of an inference: a lookup table per device.

The table holds, for every group that may be decided, width, MLP ratio and token count of a grid, the milliseconds per
image of a batch whose images are all alike. The time of a choice is composed from it: every block of a group
contributes its share at its own width and ratio, linearly interpolated between token counts; the first block of a group
runs its attention before patches leave and its MLP afterwards. Mixed sizes in a batch cost a little more than the table
says.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import numpy as np
from annotated_types import Ge, Gt, Len
from scipy.interpolate import interpn

from supernet import GroupChoice, SearchSpace, SupernetConfig
from supernet.arrays import Floats, Ints
from supernet.config import Size
from supernet.files import write_text
from supernet.reading import STRICT, check_fields, read_json

Milliseconds = Annotated[float, Gt(0)]


@dataclass(frozen=True)
class LatencyTable:
    """Milliseconds per image on one device.

    Attributes:
        device: What it was measured on.
        torch_version: With which PyTorch.
        threads: CPU threads of PyTorch.
        batch_size: Images per batch.
        groups: Blocks per group of the supernet.
        embed_dims: Its widths, ascending.
        mlp_ratios: Its ratios, ascending.
        num_tokens: Token counts of the grid, class token included, ascending; the last is that of a whole image.
        prefix_ms: Patch embedding and, unless it was measured with its first group decided, that group.
        head_ms: Classifier.
        group_ms: (groups, widths, ratios, token counts), every block alike and no patch dropped; one group fewer where
            the first is part of `prefix_ms`.

    Raises:
        ValueError: If shapes disagree or a time is not positive.
    """

    __pydantic_config__ = STRICT

    device: str
    torch_version: str
    threads: Annotated[int, Ge(1)]
    batch_size: Annotated[int, Ge(1)]
    groups: Annotated[list[Size], Len(1)]
    embed_dims: Annotated[list[Size], Len(1)]
    mlp_ratios: Annotated[list[Annotated[float, Gt(0)]], Len(1)]
    num_tokens: Annotated[list[Size], Len(1)]
    prefix_ms: Milliseconds
    head_ms: Milliseconds
    group_ms: list[list[list[list[Milliseconds]]]]

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("embed_dims", "mlp_ratios", "num_tokens"):
            values = getattr(self, name)
            if any(a >= b for a, b in pairwise(values)):
                raise ValueError(f"{name}={values!r} must be strictly ascending.")
        shape = (len(self.embed_dims), len(self.mlp_ratios), len(self.num_tokens))
        try:
            times = np.array(self.group_ms, dtype=np.float64)
        except ValueError as e:
            raise ValueError(f"group_ms has rows of different lengths; expected {shape} in every group.") from e
        allowed = [(groups, *shape) for groups in (len(self.groups) - 1, len(self.groups))]
        if times.shape not in allowed:
            raise ValueError(f"group_ms has the shape {times.shape}; expected one of {allowed} by the other fields.")
        object.__setattr__(self, "_times", times)

    @property
    def first_group(self) -> int:
        """The first group with times of its own: 0 if the table was measured with the first group decided, else 1."""
        return len(self.groups) - len(self.group_ms)

    def check(self, config: SupernetConfig) -> None:
        """Checks that the table is about this supernet. One with times of the first group serves either way.

        Raises:
            ValueError: If its groups, widths, ratios or number of patches are others, or the first group is decided and
                the table has no times for it.
        """
        space = config.space
        wanted = (space.groups, space.embed_dims, space.mlp_ratios, config.num_tokens)
        found = (tuple(self.groups), tuple(self.embed_dims), tuple(self.mlp_ratios), self.num_tokens[-1])
        if wanted != found:
            raise ValueError(
                f"The latency table is for groups, widths, ratios and tokens {found}, but this supernet has {wanted}; "
                "measure it with `prance profile`."
            )
        if space.first_decided < self.first_group:
            raise ValueError(
                "The latency table has one time for the whole first group, so it cannot tell what deciding it saves; "
                "measure it with `prance profile --decide-first-group`, or take decide_first_group=False."
            )

    def group(self, group: int, embed_dim: Ints, mlp_ratio: Floats, before: Ints, after: Ints) -> Floats:
        """(B,) milliseconds of one decided group.

        Args:
            group: Its number, `first_group` or more.
            embed_dim: (B, blocks) widths.
            mlp_ratio: (B, blocks) ratios.
            before: (B,) tokens before it.
            after: (B,) tokens after it.
        """
        width = np.searchsorted(self.embed_dims, embed_dim)
        ratio = np.searchsorted(self.mlp_ratios, mlp_ratio)
        total = np.zeros(len(before))
        for i in range(embed_dim.shape[1]):
            rows = self._times[group - self.first_group, width[:, i], ratio[:, i]]  # type: ignore[attr-defined]
            block = self._at(rows, after)
            total += (self._at(rows, before) + block) / 2 if i == 0 else block
        return total / embed_dim.shape[1]

    def block_ms(self, group: int, embed_dim: float, mlp_ratio: float, num_tokens: float) -> float:
        """Milliseconds of one block of sizes that need not be on the grid: linear in between, the ends beyond.

        Args:
            group: Number of its group; one that has no times of its own is taken for the first that has.
            embed_dim: Its width.
            mlp_ratio: Its ratio.
            num_tokens: Tokens, class token included.
        """
        number = max(group - self.first_group, 0)
        axes = [np.array(axis, dtype=np.float64) for axis in (self.embed_dims, self.mlp_ratios, self.num_tokens)]
        at = [np.clip(x, axis[0], axis[-1]) for x, axis in zip((embed_dim, mlp_ratio, num_tokens), axes, strict=True)]
        times = self._times[number]  # type: ignore[attr-defined]
        return float(interpn(axes, times, at)[0]) / self.groups[number + self.first_group]

    def rest(self, space: SearchSpace, group: int, num_tokens: Ints) -> Floats:
        """(B,) milliseconds from `group` to the logits at full size."""
        total = np.full(len(num_tokens), self.head_ms)
        for g in range(group, len(self.groups)):
            full = GroupChoice.full(space, g, len(num_tokens))
            total += self.group(g, full.embed_dim.numpy(), full.mlp_ratio.numpy(), num_tokens, num_tokens)
        return total

    def full_ms(self, space: SearchSpace) -> float:
        """Milliseconds of the full network."""
        return self.prefix_ms + self._whole(space, self.first_group)

    def begin_ms(self, space: SearchSpace) -> float:
        """Milliseconds before the first decision."""
        return self.full_ms(space) - self._whole(space, space.first_decided)

    def _whole(self, space: SearchSpace, group: int) -> float:
        """`rest` of an image that has all its tokens."""
        return float(self.rest(space, group, np.array(self.num_tokens[-1:]))[0])

    def save(self, path: str | Path) -> None:
        """Writes JSON, atomically."""
        write_text(Path(path), json.dumps(asdict(self), indent=1) + "\n")

    def _at(self, rows: Floats, tokens: Ints) -> Floats:
        """(B, grid) rows at (B,) token counts; linear in between, the ends beyond."""
        grid = np.array(self.num_tokens)
        if len(grid) == 1:
            return rows[:, 0]
        right = np.clip(np.searchsorted(grid, tokens), 1, len(grid) - 1)
        t = np.clip((tokens - grid[right - 1]) / (grid[right] - grid[right - 1]), 0, 1)
        image = np.arange(len(tokens))
        return rows[image, right - 1] * (1 - t) + rows[image, right] * t


def load_latency_table(path: str) -> LatencyTable:
    """The table in a file that `LatencyTable.save` or `prance profile` wrote.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is damaged.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"latency_table={path!r} does not exist; write it with `prance profile --out {path}`.")
    return read_json(Path(path), LatencyTable, "write it again with `prance profile`")
