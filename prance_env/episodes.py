"""Episodes that are equally far, as a value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from supernet import InferenceState
from supernet.arrays import Bools, Floats, Ints


@dataclass(frozen=True, eq=False)
class Episodes:
    """B episodes that are equally far, as a value; index it by lane with `episodes[lanes]`.

    Attributes:
        index: (B,) image of the data set.
        label: (B,) its class.
        state: The inference so far.
        decision: Decisions taken so far, which is the number of the coming one, 0-based.
        embed_dim: (B, depth) widths chosen so far, full where undecided.
        mlp_ratio: (B, depth) ratios chosen so far, the largest where undecided.
        keep_rate: (B, num_decisions) keep rates chosen so far, 1 where undecided.
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
    decision: int
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
        shared = (int, type(None))
        picked: dict[str, Any] = {k: v if isinstance(v, shared) else v[lanes] for k, v in vars(self).items()}
        return Episodes(**picked)

    @property
    def host(self) -> Episodes:
        """The same episodes with their numbers on the host: these."""
        return self

    @property
    def success(self) -> Bools:
        """(B,) whether the prediction is the label."""
        return self.prediction == self.label
