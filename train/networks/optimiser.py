"""What a step of training does to the weights: groups of parameters, precision, clipping."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from supernet.heads import ImageClassifier
from supernet.ordering import BLOCK

from .launch import Team

Amp = Literal["off", "bfloat16", "float16"]
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
BETAS = (0.9, 0.95)


def parameter_groups(
    net: ImageClassifier, heads: nn.Module, weight_decay: float, layer_decay: float
) -> list[dict[str, Any]]:
    """Groups for AdamW: norms and biases do not decay, all else does; earlier layers learn more slowly.

    Args:
        net: The network.
        heads: What is trained beside it.
        weight_decay: Of matrices.
        layer_decay: In (0, 1], factor on the learning rate from a block to the one before it; the classifier has 1,
            the last block this, and so on to the embeddings.

    Returns:
        Groups with "lr_scale", by which the learning rate is to be multiplied.
    """
    names = dict(net.named_parameters())
    top = 2 + max(int(found[1]) for name in names if (found := BLOCK.match(name)))
    named = [(_layer(name, top), p) for name, p in names.items()] + [(top, p) for p in heads.parameters()]
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for layer, parameter in named:
        scale = layer_decay ** (top - layer)
        groups.setdefault((scale, parameter.ndim > 1), []).append(parameter)
    return [
        {"params": members, "weight_decay": weight_decay if matrices else 0.0, "lr_scale": scale}
        for (scale, matrices), members in sorted(groups.items(), key=lambda item: (-item[0][0], not item[0][1]))
    ]


def _layer(name: str, top: int) -> int:
    """0 for what comes before the first block, i + 1 in block i, `top` after the last."""
    if found := BLOCK.match(name):
        return int(found[1]) + 1
    return top if name.split(".")[0] in ("norm", "pool", "head", "head_dist") else 0


class Stepper:
    """AdamW with mixed precision, clipped gradients, and several processes.

    Args:
        groups: Of `parameter_groups`.
        params: The same parameters in the order in which their norms are added up.
        lr: Peak learning rate.
        amp: Precision in which losses are computed.
        team: The processes.
    """

    def __init__(
        self, groups: list[dict[str, Any]], params: Iterable[nn.Parameter], lr: float, amp: Amp, team: Team
    ) -> None:
        self.optimizer = torch.optim.AdamW(groups, lr=lr, betas=BETAS)
        self.params = [*params]
        self.team, self.amp = team, amp
        self.scaler = torch.amp.GradScaler(team.device.type, enabled=amp == "float16")

    def precision(self) -> AbstractContextManager[Any]:
        """Within it, losses are computed as `amp` says."""
        if self.amp == "off":
            return torch.autocast(self.team.device.type, enabled=False)
        return torch.autocast(self.team.device.type, DTYPES[self.amp])

    def step(self, losses: Iterable[Tensor], parts: int, lr: float) -> Tensor:
        """One step down the sum of losses, each of which is freed before the next one is computed.

        Args:
            losses: They are computed one by one, in the precision of `amp`.
            parts: By how many to divide them.
            lr: Learning rate.

        Returns:
            The sum of this process's losses, divided; not finite if one was not, and then nothing has moved.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.team.device)
        with self.precision():
            for loss in losses:
                part = loss if parts == 1 else loss / parts
                total = total + part.detach()
                self._backward(part)
        # Asked once a step: a GPU would have to be waited for.
        failed, *used = self.team.each_any(
            [not bool(torch.isfinite(total)), *(p.grad is not None for p in self.params)]
        )
        if failed:
            return torch.full_like(total, torch.nan)
        for parameter, anywhere in zip(self.params, used, strict=True):
            # The subnets of other processes' images may use what those of this one's leave.
            if anywhere and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        self.team.average([p.grad for p in self.params if p.grad is not None])
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.params, 1.0)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return total

    def _backward(self, loss: Tensor) -> None:
        scaled: Tensor = self.scaler.scale(loss)
        with torch.autocast(self.team.device.type, enabled=False):
            scaled.backward()

    def state_dict(self) -> dict[str, Any]:
        """Of the optimiser and the scale of gradients."""
        return {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
