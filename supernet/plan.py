"""What a group of blocks computes for which image, derived once and read by everything that runs or counts it.

A `GroupPlan` is the contract between the sizes that were chosen and whoever executes them. The packed runtime
(`supernet.runtime.blocks`), the MAC and parameter counters (`supernet.macs`), static networks and the authors'
bookkeeping read it, and a backend of another kind (tiles of a GPU kernel) needs nothing else: a plan, a packed buffer
of tokens (T, C) and the weights of the group's blocks. Rows `[s, s + num_tokens[i])` of the buffer, with s the sum of
the `num_tokens` before, belong to image i, its class token and registers first; channels beyond what an image reads are
not to be looked at. Block j of the group then computes for image i

    x = x[:, : reads[i, j]], zero-padded if it has fewer
    x = x[:, : widths[i, j]] + proj(attention(norm1(x)))    num_heads[i, j] heads, over attended[i, j] tokens
    j = 0 only: the token mode reduces x to num_left[i] tokens, if reduces[i]
    x = carry(x) + fc2(act(fc1(norm2(x))))                  hidden[i, j] units, gives[i, j] channels

where carry truncates or zero-pads to `gives[i, j]` channels or, if `carries` and the block is the last, is the learned
linear map `lln`. That is a plain block (`SupernetConfig.plain_blocks`). Others differ in what they do, not in sizes:
norms may be RMS norms; with `qk_norm` the q and k of every head are normed; with `scale_norm` norms precede proj and
fc2, over the active heads and hidden units; with `glu` the MLP is fc2(act(gate(x)) * fc1(x)), and gate is as fc1.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from .arrays import Bools, Floats, Ints, constant, namespace, whole
from .config import HIDDEN_SLACK, SupernetConfig
from .subnet import GroupChoice, SubnetConfig


@dataclass(frozen=True, eq=False)
class GroupPlan:
    """Sizes of one group of blocks for B images, everything derived; never mutated.

    They are numpy arrays, or tensors of a device if the sizes that they were derived from are: nothing is then asked of
    their values, so that nobody waits for the device.

    Attributes:
        group: Index of the group.
        reads: (B, blocks) int64, channels that a block reads.
        widths: (B, blocks) int64, its own width: channels that its attention gives and its MLP reads.
        num_heads: (B, blocks) int64, heads of its attention.
        hidden: (B, blocks) int64, hidden width of its MLP.
        gives: (B, blocks) int64, channels that it hands on.
        num_tokens: (B,) int64, tokens before the group, class token and registers included.
        counts: (B, stages) int64, tokens after every stage of the token mode, which runs in the first block between
            attention and MLP; an image that is not reduced has its `num_tokens` there. None if the mode runs for no
            image. With `thresholds` not known yet: the most that can be.
        reduces: (B,) bool, for which images the mode runs; the others keep their tokens as they are.
        carries: Whether the linear map `lln` carries the residual of the last block over the group's end.
        thresholds: (B, num_rates) keep rates of a mode in which they are thresholds (`TokenMode.threshold`), so that
            `counts` follow from the images; None of other modes, if the mode runs for no image, and once the counts are
            known (`counted`).
        queries: (B, blocks) channels of all queries of a block, and of all its keys; None: num_heads * head_dim.
        values: (B, blocks) channels of all its values; None: num_heads * head_dim.
    """

    group: int
    reads: Ints
    widths: Ints
    num_heads: Ints
    hidden: Ints
    gives: Ints
    num_tokens: Ints
    counts: Ints | None
    reduces: Bools
    carries: bool
    thresholds: Floats | None = None
    queries: Ints | None = None
    values: Ints | None = None

    @property
    def num_left(self) -> Ints:
        """(B,) int64, tokens after the reduction: what every MLP of the group and all that follows runs on."""
        return self.num_tokens if self.counts is None else self.counts[:, -1]

    @property
    def attended(self) -> Ints:
        """(B, blocks) int64, tokens that attention runs on: in the first block those before the reduction."""
        attended: Ints = namespace(self.widths).empty_like(self.widths)
        attended[:] = self.num_left[:, None]
        attended[:, 0] = self.num_tokens
        return attended

    def counted(self, counts: Ints) -> GroupPlan:
        """The plan with the counts (B, stages) that its thresholds led to."""
        return replace(self, counts=counts, thresholds=None)


def hidden_dims(embed_dim: Ints, mlp_ratio: Ints) -> Ints:
    """Hidden width of an MLP: int(embed_dim * mlp_ratio), with a slack against float noise."""
    hidden: Ints = whole(embed_dim * mlp_ratio + HIDDEN_SLACK)
    return hidden


def plan_group(
    config: SupernetConfig,
    group: int,
    choice: GroupChoice,
    num_tokens: Ints,
    token_dim: Ints | None = None,
    next_dim: Ints | None = None,
) -> GroupPlan:
    """Derives what a group computes.

    Args:
        config: The supernet.
        group: Index of the group.
        choice: Its sizes, for B images; not checked here.
        num_tokens: (B,) tokens before the group, class token and registers included. Where this is a tensor, so are all
            sizes, on its device.
        token_dim: (B,) channels that the group is handed; None: the width of its first block.
        next_dim: (B,) width of the next group's first block; None: not decided yet. Both matter for the authors' rules
            only.
    """
    space, on_device = config.space, isinstance(num_tokens, Tensor)
    widths, ratios, rates = choice.tensors if on_device else choice.arrays
    reads, gives = _reads_and_gives(config, group, widths, token_dim, next_dim)
    counts, thresholds, reduces = None, None, num_tokens < 0
    if group >= space.first_decided:
        mode = config.token_mode
        if mode.threshold:
            counts, thresholds, reduces = num_tokens[:, None], rates, rates.min(axis=1) < 1
        else:
            counts = mode.counts(num_tokens, rates, config.num_prefix_tokens)
            reduces = counts[:, -1] < num_tokens
        reduces = reduces | mode.always
        if not on_device and not reduces.any():
            counts, thresholds = None, None
    return GroupPlan(
        group=group,
        reads=reads,
        widths=widths,
        num_heads=_num_heads(config, widths),
        hidden=hidden_dims(widths, ratios),
        gives=gives,
        num_tokens=num_tokens,
        counts=counts,
        reduces=reduces,
        carries=config.lln and group < len(space.groups) - 1,
        thresholds=thresholds,
    )


def plan_subnet(
    config: SupernetConfig,
    subnet: SubnetConfig | None,
    group: int = 0,
    num_tokens: Ints | None = None,
    token_dim: Ints | None = None,
) -> list[GroupPlan]:
    """Plans of all groups from `group` to the last, for subnets that are decided as a whole.

    Where keep rates are thresholds, `thresholds` are set and the numbers of tokens are the most that can be.

    Args:
        config: The supernet.
        subnet: Sizes for B images, in `config.space`; None: full size.
        group: The first group to plan.
        num_tokens: (B,) tokens before it, class token and registers included; None: all of them. A tensor is planned
            for on its device, at full size only.
        token_dim: (B,) channels that it is handed; None: the width of its first block.
    """
    if num_tokens is None:
        num_tokens = np.full(1 if subnet is None else len(subnet), config.num_tokens, dtype=np.int64)
    device = num_tokens.device if isinstance(num_tokens, Tensor) else None
    plans = []
    for g in range(group, len(config.space.groups)):
        if subnet is None:
            choice, next_dim = GroupChoice.full(config.space, g, len(num_tokens), device), None
        else:
            choice, next_dim = subnet.group(config.space, g), next_widths(config, g, subnet)
        plans.append(plan_group(config, g, choice, num_tokens, token_dim, next_dim))
        num_tokens, token_dim = plans[-1].num_left, next_dim
    return plans


def check_counted(config: SupernetConfig, plan: GroupPlan) -> None:
    """Checks that it is known how many tokens a group leaves.

    Raises:
        ValueError: If thresholds decide it, image by image, and the group has not run.
    """
    if plan.thresholds is not None:
        rate = plan.thresholds[plan.thresholds < 1][0]
        raise ValueError(
            f"keep_rate={rate} is a threshold of token_mode={config.space.token_mode!r}: how many tokens remain "
            "follows from the image, so this subnet has no MACs without one and no static network. Run it and ask "
            "net.macs_to_go(net.forward_features(images, subnet)), keep all (keep_rate=1), or take a token mode that "
            "counts, such as 'prune'."
        )


def next_widths(config: SupernetConfig, group: int, subnet: SubnetConfig) -> Ints | None:
    """(B,) widths of the first block after `group`, None after the last."""
    if group == len(config.space.groups) - 1:
        return None
    return subnet.embed_dim[:, config.space.blocks(group + 1)[0]].numpy()


def _reads_and_gives(
    config: SupernetConfig, group: int, widths: Ints, token_dim: Ints | None, next_dim: Ints | None
) -> tuple[Ints, Ints]:
    """(B, blocks) channels that the blocks of a group read, and hand on.

    Ours: a block reads its own width and hands it on, but a group's last block hands on the full width. The authors':
    a block hands on the width of the next one, full while that is not decided, and a group's first block reads what it
    was handed.
    """
    copies = namespace(widths)
    reads, gives = copies.empty_like(widths), copies.empty_like(widths)
    reads[:], gives[:] = widths, widths
    last = group == len(config.space.groups) - 1
    if config.prance_embed_dim is None:
        if not last:
            gives[:, -1] = config.embed_dim
        return reads, gives
    gives[:, :-1] = widths[:, 1:]
    if not last:
        gives[:, -1] = config.embed_dim if next_dim is None else next_dim
    if group and token_dim is not None:
        reads[:, 0] = token_dim
    return reads, gives


def _num_heads(config: SupernetConfig, widths: Ints) -> Ints:
    """Heads of blocks of these widths, in the same shape."""
    space = config.space
    if len(space.num_heads) == 1:
        out: Ints = namespace(widths).full_like(widths, space.num_heads[0])
    else:
        if isinstance(widths, Tensor):
            # A sum over all widths instead of a search, which tensors want contiguous.
            place = sum(whole(widths > dim) for dim in space.embed_dims)
        else:
            place = np.searchsorted(space.embed_dims, widths)
        out = constant(space.num_heads, widths)[place]
    return out
