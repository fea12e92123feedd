"""An inference whose sizes stand on the device: what `InferenceState` is for the tiled runtime."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .arrays import Ints, sent
from .config import SupernetConfig
from .full_size import costs_are_known, full_macs_of, full_plan, reduces_at_full_size
from .layers import set_width
from .macs import group_macs, head_macs, remaining_macs
from .plain import check_blocks
from .plan import plan_group
from .runtime.choice import class_token_alone
from .runtime.devices import current
from .runtime.tiled import TileBatch, images_of_rows, offsets
from .state import InferenceState
from .subnet import GroupChoice


def _of_host(name: str) -> Any:
    """A field that is fetched with all others when it is asked for."""
    return property(lambda state: getattr(state.host, name), doc=f"See `InferenceState.{name}`; waits for the device.")


class TiledState(InferenceState):
    """B images between two groups; an `InferenceState` that fetches its fields from the device when they are asked for.

    Asking waits for the device. What goes on there, `Supernet.run_group`, `finish` and the environment, asks for
    nothing but what `batch`, `widths` and `spent` hold.

    Args:
        group: The group of blocks to run next.
        batch: The tokens.
        patch_token: (B, num_patches) int64, as in `InferenceState`.
        widths: (B,) int64 width of the last block that ran.
        spent: (B,) int64 multiply-accumulates so far.
        row_means: (capacity,) float32, the field `key_mean` in rows of the batch; None: none is carried.
    """

    def __init__(
        self,
        group: int,
        batch: TileBatch,
        patch_token: Tensor,
        widths: Tensor,
        spent: Tensor,
        row_means: Tensor | None = None,
    ) -> None:
        # Straight into the dictionary: the fields of the base class are frozen, and some are properties here.
        vars(self).update(
            group=group, batch=batch, patch_token=patch_token, widths=widths, spent=spent, row_means=row_means
        )

    batch: TileBatch
    widths: Tensor
    spent: Tensor
    row_means: Tensor | None

    @classmethod
    def of(cls, state: InferenceState, config: SupernetConfig) -> TiledState:
        """The same inference, its sizes on the device."""
        if isinstance(state, TiledState):
            return state
        device = state.tokens.device
        lengths = on_device(state.num_tokens, device)
        cu, capacity = offsets(lengths), len(state.tokens)
        batch = TileBatch(
            x=set_width(state.tokens, config.embed_dim).contiguous(),
            cu=cu,
            image=images_of_rows(cu, capacity),
            have=on_device(state.token_dim, device).to(torch.int32),
            lengths=lengths,
            size=state.size,
            most=config.num_tokens,
        )
        widths, spent = on_device(state.embed_dim, device), on_device(state.macs, device)
        return cls(state.group, batch, state.patch_token, widths, spent, state.key_mean)

    @cached_property
    def host(self) -> InferenceState:
        """The same inference as numpy arrays and tensors without spare rows."""
        batch = self.batch
        numbers = torch.stack([batch.lengths, self.widths, batch.have.long(), self.spent]).cpu().numpy()
        rows = int(numbers[0].sum())
        own = torch.arange(batch.x.shape[1], device=batch.x.device) < batch.have[batch.image[:rows].long()][:, None]
        return InferenceState(
            group=self.group,
            tokens=torch.where(own, batch.x[:rows], 0),
            num_tokens=numbers[0],
            size=None if batch.size is None else batch.size[:rows],
            patch_token=self.patch_token,
            embed_dim=numbers[1],
            token_dim=numbers[2],
            macs=numbers[3],
            key_mean=None if self.row_means is None else self.row_means[:rows],
        )

    def __len__(self) -> int:
        return len(self.widths)

    def tensors(self) -> dict[str, Tensor]:
        """Everything that the state holds on the device, by name; `of_tensors` is the inverse."""
        batch = {k: v for k, v in vars(self.batch).items() if isinstance(v, Tensor)}
        own = {"patch_token": self.patch_token, "widths": self.widths, "spent": self.spent}
        return batch | own | ({} if self.row_means is None else {"row_means": self.row_means})

    @classmethod
    def of_tensors(cls, group: int, most: int, tensors: dict[str, Tensor]) -> TiledState:
        """The state before `group` of images with at most `most` tokens, from its `tensors`; others are left out."""
        t = tensors
        batch = TileBatch(t["x"], t["cu"], t["image"], t["have"], t["lengths"], t.get("size"), most)
        return cls(group, batch, t["patch_token"], t["widths"], t["spent"], t.get("row_means"))

    def padded_means(self) -> Tensor:
        """(B, num_tokens) `key_mean`, zero-padded on the right, on the device.

        Raises:
            ValueError: If the state carries none.
        """
        if self.row_means is None:
            raise ValueError("This state carries no key_mean; begin the inference with begin(images, key_mean=True).")
        there, rows = self.batch.padded()
        return torch.where(there, self.row_means[rows], 0)

    def detach(self) -> InferenceState:
        """The same: the tiled runtime has no gradients."""
        return self

    tokens: Tensor = _of_host("tokens")
    num_tokens: Ints = _of_host("num_tokens")
    size: Tensor | None = _of_host("size")
    embed_dim: Ints = _of_host("embed_dim")
    token_dim: Ints = _of_host("token_dim")
    macs: Ints = _of_host("macs")
    key_mean: Tensor | None = _of_host("key_mean")


def run_tiled_group(
    config: SupernetConfig,
    blocks: nn.ModuleList,
    state: TiledState,
    choice: GroupChoice | None,
    next_dim: Ints | Tensor | None = None,
    head_only: bool = False,
) -> TiledState:
    """Runs the next group of blocks by tiles.

    Args:
        config: The supernet's.
        blocks: All blocks of the supernet.
        state: Where the images are; unchanged.
        choice: Sizes for every image, on any device; None is full size, at which nothing is planned or sorted.
        next_dim: (B,) width of the first block of the next group if it is known already.
        head_only: As for `Supernet.run_group`.

    Raises:
        ValueError: If a block or a layer has hooks, or must be called for another reason.
    """
    # Imported where it is used: Triton is not installed everywhere.
    from .runtime.tiles import run_tiles

    check_blocks(blocks, config.space.blocks(state.group))
    batch, device, spent, last = state.batch, state.batch.x.device, state.spent, state.widths
    if choice is None and costs_are_known(config):
        plan, _ = full_plan(config, state.group, np.array([config.num_tokens]), np.array([config.embed_dim]))
        if not head_only:
            spent = spent + full_macs_of(config, state.group, batch.lengths)
            last = torch.full_like(last, config.embed_dim)
    else:
        decided = GroupChoice.full(config.space, state.group, len(state), device) if choice is None else choice
        sizes = GroupChoice(*(size.to(device, non_blocking=True) for size in vars(decided).values()))
        following = on_device(next_dim, device) if isinstance(next_dim, np.ndarray) else next_dim
        widths: Any = (batch.lengths, batch.have.long(), following)
        plan = plan_group(config, state.group, sizes, *widths)
        if choice is None and not reduces_at_full_size(config):
            plan = replace(plan, counts=None)  # as the host knows
        spent, last = spent + torch.as_tensor(group_macs(config, plan)), torch.as_tensor(plan.widths)[:, -1]
    alone = head_only and class_token_alone(config, state.group)
    carries_means = state.row_means is not None and not alone
    with current(device):
        after, patch_token, row_means = run_tiles(config, blocks, plan, batch, state.patch_token, carries_means, alone)
    return TiledState(state.group + 1, after, patch_token, last, spent, row_means)


def macs_on_device(config: SupernetConfig, state: TiledState) -> Tensor:
    """(B,) int64 multiply-accumulates of the whole inference if it is finished at full size."""
    have: Any = state.batch.have.long()
    lengths: Any = state.batch.lengths
    if state.group == len(config.space.groups):
        return state.spent + torch.as_tensor(head_macs(config, have, lengths))
    if costs_are_known(config):
        return state.spent + full_macs_of(config, state.group, lengths, to_the_end=True)
    return state.spent + torch.as_tensor(remaining_macs(config, state.group, lengths, None, have))


def on_device(values: Ints, device: torch.device) -> Tensor:
    """(B,) numbers as a tensor there; equal ones are made there, so that nothing is copied."""
    if len(values) and (values == values[0]).all():
        return torch.full((len(values),), int(values[0]), dtype=torch.int64, device=device)
    return sent(values, device)


def alike(state: InferenceState, choice: GroupChoice | None) -> bool:
    """Whether all images have the same sizes, as the host knows: these are dense, and run best by segments.

    Args:
        state: The images.
        choice: Sizes for every image; None is full size.
    """
    if isinstance(state, TiledState) or not (choice is None or choice.embed_dim.is_cpu):
        return False
    sizes = (state.num_tokens, state.token_dim, *(() if choice is None else choice.arrays))
    return all(bool((size == size[:1]).all()) for size in sizes)
