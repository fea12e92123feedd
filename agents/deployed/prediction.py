"""What an adaptive network says about images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from supernet import SubnetConfig
from supernet.arrays import Ints


@dataclass(frozen=True, eq=False)
class Prediction:
    """What an adaptive network says about B images.

    Attributes:
        logits: (B, num_classes), on the device of the network.
        subnet: What was chosen for every image; groups that no decision precedes are at full size.
        macs: (B,) multiply-accumulates of every image, without those of the agent.
        patches: (B, num_decisions) patches left after every decision.
        full_macs: Those of the full network.
        names: Of the classes.
        picked: (B, num_decisions) which entries of a menu; None: there was none.
    """

    logits: Tensor
    subnet: SubnetConfig
    macs: Ints
    patches: Ints
    full_macs: int
    names: tuple[str, ...]
    picked: Ints | None = None

    def __len__(self) -> int:
        return len(self.macs)

    @property
    def labels(self) -> Ints:
        """(B,) the most probable class."""
        found: Ints = self.logits.argmax(1).cpu().numpy()
        return found

    @property
    def probabilities(self) -> NDArray[np.float32]:
        """(B, num_classes), rows of sum 1."""
        found: NDArray[np.float32] = self.logits.float().softmax(1).cpu().numpy()
        return found

    def rows(self, top: int = 1) -> Iterator[dict[str, Any]]:
        """One JSON-able row per image: class, label, probability, MACs, their share of the full network's, patches.

        Args:
            top: With more than one, `top` lists so many classes and their probabilities.
        """
        # Of the logits, as `labels` is: different ones may have the same probability in 32 bits.
        order = self.logits.argsort(dim=1, descending=True, stable=True)[:, : max(top, 1)].cpu()
        for i, (found, p) in enumerate(zip(order.tolist(), self.probabilities, strict=True)):
            row = {
                "class": self.names[found[0]],
                "label": found[0],
                "probability": round(float(p[found[0]]), 6),
                "macs": int(self.macs[i]),
                "macs_fraction": round(float(self.macs[i] / self.full_macs), 6),
                "patches": self.patches[i].tolist(),
            }
            if top > 1:
                row["top"] = [{"class": self.names[k], "probability": round(float(p[k]), 6)} for k in found]
            yield row


def joined(parts: Sequence[Prediction]) -> Prediction:
    """Predictions of one model, one after the other, as one."""
    if len(parts) == 1:
        return parts[0]
    subnets = [p.subnet for p in parts]
    return Prediction(
        torch.cat([p.logits for p in parts]),
        SubnetConfig(*(torch.cat([getattr(s, k) for s in subnets]) for k in ("embed_dim", "mlp_ratio", "keep_rate"))),
        np.concatenate([p.macs for p in parts]),
        np.concatenate([p.patches for p in parts]),
        parts[0].full_macs,
        parts[0].names,
        None if parts[0].picked is None else np.concatenate([p.picked for p in parts if p.picked is not None]),
    )
