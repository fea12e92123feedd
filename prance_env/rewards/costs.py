"""What an inference costs: MACs, counted exactly, or milliseconds by a table; one protocol for both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from supernet import GroupChoice, InferenceState, SearchSpace, Supernet
from supernet.arrays import Floats, Ints
from supernet.macs import remaining_macs

from .latency import LatencyTable


class Cost(Protocol):
    """One kind of cost of B inferences that are equally far."""

    @property
    def full(self) -> float:
        """Cost of the full network."""

    def begin(self, batch: int) -> Ints | Floats:
        """(B,) spent before the first decision."""

    def spent(
        self, before: Ints | Floats, choice: GroupChoice, state: InferenceState, after: InferenceState
    ) -> Ints | Floats:
        """(B,) spent once the decision is carried out.

        Args:
            before: (B,) spent until then.
            choice: The decision.
            state: The inferences before it.
            after: The inferences after its group.
        """

    def finished(self, spent: Ints | Floats, state: InferenceState) -> Ints | Floats:
        """(B,) cost of the whole inference if it is finished at full size.

        Args:
            spent: (B,) spent so far.
            state: The inferences so far.
        """


@dataclass(frozen=True)
class MacsCost:
    """Multiply-accumulates, which the inference itself counts; a `Cost`.

    Attributes:
        net: The supernet.
        full: MACs of its full network.
    """

    net: Supernet
    full: int

    def begin(self, batch: int) -> Ints:
        """(B,) MACs of everything before the first decision."""
        config = self.net.config
        tokens = np.full(batch, config.num_tokens, dtype=np.int64)
        return self.full - remaining_macs(config, config.space.first_decided, tokens)

    def spent(self, before: Ints | Floats, choice: GroupChoice, state: InferenceState, after: InferenceState) -> Ints:
        """(B,) MACs so far."""
        return after.macs

    def finished(self, spent: Ints | Floats, state: InferenceState) -> Ints:
        """(B,) MACs of the whole inference if it is finished at full size."""
        return self.net.macs_to_go(state)


@dataclass(frozen=True)
class LatencyCost:
    """Milliseconds by a table that `prance profile` measured; a `Cost`.

    Attributes:
        table: The table.
        space: The search space, which says whether the first group is decided.
    """

    table: LatencyTable
    space: SearchSpace

    @property
    def full(self) -> float:
        """Milliseconds of the full network."""
        return self.table.full_ms(self.space)

    def begin(self, batch: int) -> Floats:
        """(B,) milliseconds before the first decision."""
        return np.full(batch, self.table.begin_ms(self.space))

    def spent(self, before: Ints | Floats, choice: GroupChoice, state: InferenceState, after: InferenceState) -> Floats:
        """(B,) milliseconds so far."""
        sizes = choice.embed_dim.numpy(), choice.mlp_ratio.numpy()
        return before + self.table.group(state.group, *sizes, state.num_tokens, after.num_tokens)

    def finished(self, spent: Ints | Floats, state: InferenceState) -> Floats:
        """(B,) milliseconds of the whole inference if it is finished at full size."""
        return spent + self.table.rest(self.space, state.group, state.num_tokens)
