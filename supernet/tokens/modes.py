"""Token reduction: which tokens of an image go on after a decision, and what becomes of the others.

A token mode is one function, `assign`, that says for every token where it goes. The rest, sums and means, sizes, costs
and pictures, follows from that. It takes a padded batch and is called as

    into, weight = assign(scores, metric, size, lengths, counts, prefix)

    scores   (B, N) float32, attention of the class token to every token, mean over heads; None if `uses_scores` is off
    metric   (B, N, M), what `TokenMode.metric` names: the tokens, or their keys; None if it names nothing
    size     (B, N) float32, how many patches a token stands for
    lengths  (B,) or (1,) numpy int64, tokens per image; what is beyond is padding
    counts   (B, stages) or (1, stages) numpy int64, tokens to remain after every stage of the mode
             (both tensors of the device instead, for modes that are registered with `on_device`)
    prefix   how many first tokens of every image are no patches: the class token, if there is one, and registers

and answers in one of two ways. With K the largest of the last counts:

    hard     into (B, N) int64, place in the shorter sequence that each token goes into, -1 if it is dropped, as padding
             is
    soft     into (B, N, K) float, how much of each token goes into each new one (`TokenMode.soft`): the first `prefix`
             tokens go into themselves alone, rows of padding and columns beyond an image's own count are zero
    weight   (B, N) of the sum over what comes together, None for ones (hard: None if no two come together)

A new token is the weighted mean of what goes into it (the weighted sum, if `normalise` is off); its size is the sum of
sizes. Of a soft mode, the patch is said to be where most of it went.

Where a keep rate is a threshold (`TokenMode.threshold`), how many tokens remain follows from the image. Such a mode is
given

    thresholds  (B, num_rates) or (1, num_rates) float64 in (0, 1], in the place of `counts`

and answers (into, weight, counts): where tokens go, as above, and numpy int64 (B, stages), what remained after every
stage. A threshold of 1 keeps all.

A mode may have learned parameters (`TokenMode.module`): a module that is called as `assign` is. One stands in each
block that a decision precedes, as `blocks.<i>.reduce.<name>` of the weights.

Contract, for every mode: the first `prefix` tokens stay, bit for bit the same; exactly as many tokens remain as were
asked for (with thresholds, as the mode's counts say); nothing is changed in place; an image alone, in a batch and in
its static network is reduced alike. For hard modes, keeping all is the identity, and merging conserves the sum of the
sizes and of size times token, but for tokens that were pruned before; places that cannot be are an error where their
values may be looked at (`supernet.tokens.contract`). Soft ones are not run where all stay, and conserve the sizes if
their rows sum to one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, overload

import torch
from torch import Tensor, nn

from ..arrays import Floats, Ints, namespace, whole
from ..extension import Registry
from .contract import check_kinds, check_places

Assignment = tuple[Tensor, Tensor | None]
"""Where tokens go, hard (B, N) int64 or soft (B, N, K); and (B, N) weights of the sum over what comes together."""

Counted = tuple[Tensor, Tensor | None, Ints]
"""An `Assignment`, and (B, stages) tokens that remain after every stage of it."""

Assign = Callable[[Tensor | None, Tensor | None, Tensor, Ints, Any, int], Any]
"""A token mode's function: (scores, metric, size, lengths, counts, prefix) to an `Assignment`, or with thresholds in
the place of counts to `Counted`."""

Registered = TypeVar("Registered", bound=Callable[..., Any])

# Keeps rounding from adding a patch: a rate that was an action in float32 is off by at most 2**-25.
SLACK = 2.0**-23


def kept_tokens(num_tokens: Ints, keep_rate: Floats, prefix: int = 1) -> Ints:
    """Tokens left of `num_tokens`: ceil(keep_rate * patches), at least one, and the `prefix` that are no patches.

    The ceiling is EViT's. A rate of k / patches keeps k, whether it is float64, float32 or was an action in float32.
    """
    patches, arrays = num_tokens - prefix, namespace(num_tokens)
    kept = whole(arrays.ceil((keep_rate - SLACK) * patches))
    out: Ints = arrays.minimum(arrays.maximum(kept, whole(patches > 0)), patches) + prefix
    return out


def kept_once(num_tokens: Ints, keep_rates: Floats, prefix: int) -> Ints:
    """(B, 1) tokens left by one stage, from (B, 1) keep rates."""
    return kept_tokens(num_tokens, keep_rates[:, 0], prefix)[:, None]


def no_macs(num_tokens: Ints, counts: Ints, dims: Ints, prefix: int) -> Ints:
    """(B,) zeros: what a mode costs that multiplies nothing."""
    return num_tokens * 0


METRICS = (None, "tokens", "keys")


@dataclass(frozen=True)
class TokenMode:
    """A way of reducing tokens; `register_token_mode` makes it known by name.

    Attributes:
        assign: Says where every token goes, see the head of this file; None if `module` does.
        num_rates: Keep rates per decision.
        counts: (num_tokens (B,), keep_rates (B, num_rates), prefix) to tokens after every stage (B, stages).
        metric: What `assign` compares: None, "tokens" (B, N, C) or "keys", mean over heads, (B, N, head_dim).
        uses_scores: Whether `assign` reads the class attention; it costs one more query row.
        sized: Whether tokens have sizes, the logarithm of which is then added to the logits of attention
            (proportional attention, ToMe).
        normalise: Whether what comes together is divided by the sum of its weights.
        macs: (num_tokens (B,), counts (B, stages), metric dimension (B,), prefix) to multiply-accumulates (B,) of
            `assign`; the sum over what comes together is counted without it.
        always: Whether it also runs when nothing is to go.
        on_device: Whether `counts`, `macs` and `assign` also take sizes that are tensors of a GPU, and ask nothing of
            their values (`supernet.arrays` helps), so that the tiled runtime can run it; else the mode is run by
            segments there, too.
        soft: Whether `assign` gives shares (B, N, K) instead of places (B, N).
        module: For learned parameters: (SupernetConfig, width) to a module that is called as `assign`, on tokens of one
            width at a time. The supernet has it at full width; for narrower tokens it must compute, from the first
            entries of its weights along every dimension, what the module of that width computes. With an attribute
            `takes_ints` that is true, static networks give it an int and a tuple of ints for lengths and counts, which
            `torch.compile` can follow where numpy's arrays end its graph.
        threshold: Whether keep rates are thresholds, see the head of this file; `counts` is not asked then. MACs are
            known after a group has run, and subnets that reduce any tokens have no static networks. Backends that need
            the counts before attention leave such modes to the packed runtime.
    """

    assign: Assign | None = None
    num_rates: int = 1
    counts: Callable[[Ints, Floats, int], Ints] = kept_once
    metric: str | None = None
    uses_scores: bool = True
    sized: bool = False
    normalise: bool = True
    macs: Callable[[Ints, Ints, Ints, int], Ints] = no_macs
    always: bool = False
    on_device: bool = False
    soft: bool = False
    module: Callable[[Any, int], nn.Module] | None = None
    threshold: bool = False

    def __post_init__(self) -> None:
        if (self.assign is None) == (self.module is None):
            raise ValueError(
                "A token mode needs a function `assign` that says where tokens go, or a `module` that does, and not "
                f"both; got assign={self.assign!r}, module={self.module!r}."
            )
        if self.metric not in METRICS:
            raise ValueError(f"metric={self.metric!r} is unknown; choose one of {METRICS}.")

    def assignment(
        self,
        module: nn.Module | None,
        scores: Tensor | None,
        metric: Tensor | None,
        size: Tensor,
        lengths: Ints,
        asked: Ints | Floats,
        prefix: int,
    ) -> Counted:
        """Where tokens go, and how many remain; the arguments are those of `assign`, see the head of this file.

        Args:
            module: The one that stands in the block, if this mode has learned parameters.
            scores: (B, N) class attention.
            metric: (B, N, M) what is compared.
            size: (B, N) patches per token.
            lengths: (B,) or (1,) tokens per image.
            asked: (B, stages) or (1, stages) tokens to remain, or (B, num_rates) or (1, num_rates) thresholds.
            prefix: First tokens that are no patches.

        Raises:
            ValueError: If the answer is of another kind than `soft` and `threshold` say, or a hard mode that is not of
                this package gives places that cannot be (looked at on the host only, and not in graphs).
        """
        where = self.assign if self.module is None else module
        assert where is not None, "a block of a mode with parameters has its module"
        answer = where(scores, metric, size, lengths, asked, prefix)
        check_kinds(where, answer, self.soft, self.threshold)
        into, weight, counts = answer if self.threshold else (*answer, asked)
        if not self.soft:
            check_places(where, into, weight, lengths, counts, prefix)
        return into, weight, counts


_OURS: Registry[TokenMode] = Registry("token mode", "register_token_mode", "token_mode")
_AUTHORS: Registry[TokenMode] = Registry("token mode", "register_token_mode", "token_mode")


@overload
def register_token_mode(name: str, mode: TokenMode, *, authors: bool = False) -> TokenMode: ...


@overload
def register_token_mode(
    name: str, mode: None = None, *, authors: bool = False, **settings: Any
) -> Callable[[Registered], Registered]: ...


def register_token_mode(name: str, mode: TokenMode | None = None, *, authors: bool = False, **settings: Any) -> Any:
    """Makes a token mode known as `token_mode=name`, in search spaces, environments and on the command line.

    As a function, `register_token_mode("mine", TokenMode(assign, sized=True))`; as a decorator of the function that
    says where tokens go, or of a module class with learned parameters, `@register_token_mode("mine", sized=True)`.

    Args:
        name: Its name.
        mode: The mode; None: this is a decorator.
        authors: Whether it is the version of a mode that supernets by the authors' rules run.
        settings: As a decorator: fields of `TokenMode` but `assign` and `module`.

    Returns:
        The mode; as a decorator, what was decorated, unchanged.

    Raises:
        ValueError: If the name is taken by another mode.
        TypeError: If a setting is no field of `TokenMode`, or there are settings beside a mode.
    """
    if mode is not None:
        if settings:
            raise TypeError(f"Settings {sorted(settings)} belong into the TokenMode that is passed.")
        return (_AUTHORS if authors else _OURS).add(name, mode)

    def register(where: Registered) -> Registered:
        learned = isinstance(where, type) and issubclass(where, nn.Module)
        made = TokenMode(module=where, **settings) if learned else TokenMode(where, **settings)
        register_token_mode(name, made, authors=authors)
        return where

    return register


def list_token_modes(authors: bool = False) -> list[str]:
    """Names of the registered token modes; with `authors`, of those that supernets by the authors' rules can run."""
    return sorted((_AUTHORS if authors else _OURS).names())


def token_mode(name: str, authors: bool = False) -> TokenMode:
    """The mode registered under `name`.

    Args:
        name: Its name.
        authors: Whether to take the authors' version of it.

    Raises:
        ValueError: If there is none.
    """
    known = _AUTHORS if authors else _OURS
    if name not in known:
        what = "not one of the authors'" if authors else "unknown"
        raise ValueError(f"token_mode={name!r} is {what}; choose one of {list_token_modes(authors)}.")
    return known[name]


def column(values: Ints | Floats, device: torch.device) -> Tensor:
    """(B, 1) tensor of one number per image; (1, 1) of one for all, which is made there and not copied."""
    if isinstance(values, Tensor) or len(values) > 1:
        return torch.as_tensor(values, device=device)[:, None]
    dtype = {"f": torch.float64, "b": torch.bool}.get(values.dtype.kind, torch.int64)
    return torch.full((1, 1), values.item(), dtype=dtype, device=device)


def ranking(scores: Tensor, lengths: Ints, prefix: int) -> Tensor:
    """Tokens by descending score, (B, N) positions: the prefix first, padding last, of equal scores the earlier."""
    position = torch.arange(scores.shape[1], device=scores.device)
    keys = torch.where(position < column(lengths, scores.device), scores.detach(), float("-inf"))
    keys = torch.where(position < prefix, float("inf"), keys)
    return keys.argsort(dim=1, descending=True, stable=True)


def ranks_of(order: Tensor) -> Tensor:
    """Inverse of a permutation of every row: (B, N)."""
    position = torch.arange(order.shape[1], device=order.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, position)


def in_order(stays: Tensor) -> Tensor:
    """New position of the tokens that stay, in the order they had; -1 for the others."""
    return torch.where(stays, stays.cumsum(1) - 1, -1)


def combine(
    x: Tensor, into: Tensor, num_out: int, weight: Tensor | None, normalise: bool = True, prefix: int = 0
) -> Tensor:
    """The tokens of the shorter sequence.

    Args:
        x: (B, N, C).
        into: (B, N) new position of every token, -1 if it is dropped; or (B, N, num_out) shares.
        num_out: Length of the new sequence.
        weight: (B, N); None for ones (of positions: if no two tokens come together).
        normalise: Whether to divide by the sum of the weights.
        prefix: First tokens that stay as they are; of use to shares only, where products would round them.

    Returns:
        (B, num_out, C).
    """
    if into.ndim == 3:
        shares = into if weight is None else into * weight[..., None]
        if normalise:
            # Columns beyond an image's count are zero: divided by zero they would spoil the gradients.
            shares = shares / shares.sum(1, keepdim=True).clamp_min(torch.finfo(shares.dtype).tiny)
        mixed = shares[:, prefix:, prefix:].transpose(1, 2).to(x.dtype) @ x[:, prefix:]
        return torch.cat([x[:, :prefix], mixed], dim=1)
    target = torch.where(into < 0, num_out, into)
    if weight is None:
        order = target.argsort(dim=1, stable=True)[:, :num_out]
        rows = order + x.shape[1] * torch.arange(x.shape[0], device=x.device)[:, None]
        return x.reshape(-1, x.shape[2]).index_select(0, rows.reshape(-1)).view(x.shape[0], num_out, x.shape[2])
    if normalise:
        # Shares first: those of a token that stays alone are exactly 1.
        weight = weight / total_size(weight, into, num_out).gather(1, into.clamp(min=0))
    return _sum_into(x * weight[..., None].to(x.dtype), target, num_out + 1)[:, :num_out]


def total_size(size: Tensor, into: Tensor, num_out: int) -> Tensor:
    """Sizes (or weights) of what came together: (B, num_out) from (B, N); `into` as for `combine`."""
    if into.ndim == 3:
        # Not a product of matrices, which would count as multiply-accumulates.
        return (into * size[..., None]).sum(1).to(size.dtype)
    target = torch.where(into < 0, num_out, into)
    return _sum_into(size, target, num_out + 1)[:, :num_out]


def _sum_into(values: Tensor, target: Tensor, num_out: int) -> Tensor:
    """(B, num_out, ...) sums of the (B, N, ...) values that have one target (B, N)."""
    out = values.new_zeros(values.shape[0], num_out, *values.shape[2:])
    if values.is_cuda:
        # scatter_add adds in any order there, and the last bits with it; this sorts first.
        batch = torch.arange(len(values), device=values.device)[:, None]
        return out.index_put((batch, target), values, accumulate=True)
    where = target if values.ndim == 2 else target[..., None].expand_as(values)
    return out.scatter_add(1, where, values)


def holders(into: Tensor) -> Tensor:
    """(B, N) place of the new token that holds most of each token, -1 if none does; `into` as for `combine`."""
    if into.ndim == 2:
        return into
    return torch.where(into.sum(2) > 0, into.argmax(2), -1)
