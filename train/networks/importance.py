"""How important heads, hidden units and embedding channels are: scores by which `supernet.ordering` sorts them.

* `taylor`: NViT's saliency (arXiv 2110.04869, equation 6), the squared sum of weight times gradient over the weights of
  a unit. It is a first-order quantity: the loss change that a small shrinking of the unit causes.
* `magnitude`: Once-for-All's (arXiv 1908.09791), the L1 norm of the weights that read the unit.
* `markov`: GOHSP's ranking of heads (arXiv 2301.05345), the stationary distribution of a walk between heads whose
  attention is alike. A reconstruction: the paper's similarity is not public. Other units are ranked by magnitude.
* `random`: the control.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from supernet import SubnetConfig, Supernet, SupernetConfig
from supernet.ordering import UnitScores, unit_levels
from supernet.static_vit import StaticBlock, StaticViT
from supernet.subnet import HOST

from .saliency import Batches, Loss, saliency

Score = Literal["taylor", "magnitude", "markov", "random"]
SCORES: tuple[Score, ...] = ("taylor", "magnitude", "markov", "random")
BLIND: tuple[Score, ...] = ("magnitude", "random")
"""Those that look at no images."""
Kernel = Literal["jsd", "kl"]
MOST_STEPS, TOLERANCE = 10_000, 1e-10


def unit_scores(net: Supernet, score: Score, batches: Batches, seed: int = 0) -> UnitScores:
    """Scores of all units by name.

    Args:
        net: The supernet; unchanged.
        score: One of `SCORES`.
        batches: Images as the supernet takes them, and their labels; `magnitude` and `random` look at none.
        seed: For `random`.

    Raises:
        ValueError: If the score is unknown, or there are no images and it needs some.
    """
    if score == "taylor":
        return taylor_scores(net, batches)
    if score == "magnitude":
        return magnitude_scores(net)
    if score == "markov":
        return replace(magnitude_scores(net), heads=markov_scores(net, batches))
    if score == "random":
        return random_scores(net.config, seed)
    raise ValueError(f"score={score!r} is unknown; choose one of {SCORES}.")


def full_network(net: Supernet) -> StaticViT:
    """The full network as a plain module, a copy whose parameters have the supernet's names and shapes."""
    return net.extract(SubnetConfig.full(net.space)).to(net.pos_embed.device)


def random_scores(config: SupernetConfig, seed: int = 0) -> UnitScores:
    """Independent uniform numbers."""
    generator = torch.Generator(HOST).manual_seed(seed)
    return UnitScores(
        **{k: torch.rand(v.shape, generator=generator, device=HOST) for k, v in unit_levels(config).items()}
    )


@torch.no_grad()
def magnitude_scores(net: Supernet) -> UnitScores:
    """L1 norm of the weights that read a unit: of `proj` for heads, of `fc2` for hidden units, and for embedding
    channels of all `qkv` and `fc1`."""
    state, depth, head_dim = net.state_dict(), net.space.depth, net.config.head_dim
    columns = {name: [state[f"blocks.{i}.{name}.weight"].abs().sum(0) for i in range(depth)] for name in _READERS}
    heads = torch.stack(columns["proj"]).view(depth, -1, head_dim).sum(-1)
    embed_dim = torch.stack([*columns["qkv"], *columns["fc1"]]).sum(0)
    return UnitScores(embed_dim, heads, torch.stack(columns["fc2"]))


_READERS = ("qkv", "proj", "fc1", "fc2")


def taylor_scores(net: Supernet, batches: Batches, loss: Loss | None = None) -> UnitScores:
    """NViT's saliency of the units of the full network, see `saliency`.

    Args:
        net: The supernet; unchanged.
        batches: Images and labels.
        loss: Of (B, K) logits and (B,) labels; None: cross-entropy with the labels, or, for a network without a
            classifier, `projection_loss` of its features.

    Raises:
        ValueError: If there are no batches.
    """
    loss = loss or (F.cross_entropy if net.head is not None else projection_loss())
    found = saliency(full_network(net), batches, loss=loss)
    return UnitScores(found["embed_dim"][0], *(torch.stack(found[kind]) for kind in ("heads", "hidden")))


def projection_loss(seed: int = 0) -> Loss:
    """A loss that needs no labels: the outputs times fixed random signs, other ones for every image.

    The square of its derivative by a gate is, on average over signs, by how much the gate moves the outputs.
    """
    generator = torch.Generator(HOST).manual_seed(seed)

    def loss(outputs: Tensor, labels: Tensor) -> Tensor:
        signs = torch.randint(0, 2, outputs.shape, generator=generator, device=HOST).to(outputs) * 2 - 1
        return (outputs * signs).sum() / len(outputs)

    return loss


@torch.no_grad()
def markov_scores(
    net: Supernet, batches: Batches, kernel: Kernel = "jsd", teleport: float = 0.05, central: bool = True
) -> Tensor:
    """(depth, H) GOHSP's ranking of heads, by how the class token (the mean query without one) attends.

    Args:
        net: The supernet; unchanged.
        batches: Images; labels are not looked at.
        kernel: See `markov_rank`.
        teleport: See `markov_rank`.
        central: Whether heads that are alike others count as important, or the others.

    Raises:
        ValueError: If there are no batches.
    """
    rows = class_rows(net, batches)
    ranks = torch.stack([markov_rank(block, kernel, teleport) for block in rows])
    return ranks if central else -ranks


def class_rows(net: Supernet, batches: Batches) -> Tensor:
    """(depth, M, H, N) attention of the class token in the full network, of M images.

    Raises:
        ValueError: If there are no batches.
    """
    static, config = full_network(net), net.config
    found: list[list[Tensor]] = [[] for _ in static.blocks]

    def keep(block: StaticBlock, place: int) -> Callable[..., None]:
        def hook(module: torch.nn.Module, given: tuple[Tensor, ...], qkv: Tensor) -> None:
            q, k, _ = qkv.view(*qkv.shape[:2], block.sizes.num_heads, 3, -1).permute(3, 0, 2, 1, 4)
            q, k = block.q_norm(q), block.k_norm(k)
            query = q[:, :, :1] if config.class_token else q[:, :, config.reg_tokens :].mean(2, keepdim=True)
            logits = (query @ k.transpose(-1, -2)).squeeze(2).float() * q.shape[-1] ** -0.5
            found[place].append(logits.softmax(-1).cpu())

        return hook

    for place, block in enumerate(static.blocks):
        cast(StaticBlock, block).qkv.register_forward_hook(keep(cast(StaticBlock, block), place))
    for images, _ in batches:
        static(images)
    if not found[0]:
        raise ValueError("There are no images to compare heads on; pass some.")
    return torch.stack([torch.cat(rows) for rows in found])


def markov_rank(attention: Tensor, kernel: Kernel = "jsd", teleport: float = 0.05, temperature: float = 1.0) -> Tensor:
    """(H,) stationary distribution of a walk between heads, which goes where attention is alike.

    For the symmetric kernel without teleport it is in closed form the sum of a head's similarities over all of them.

    Args:
        attention: (M, H, N) rows that are distributions over N tokens.
        kernel: "jsd", 1 - Jensen-Shannon divergence / ln 2 (symmetric); or "kl", exp(-KL / temperature); of either the
            mean over images.
        teleport: In [0, 1], chance of a step to any head, which makes the distribution unique.
        temperature: Of "kl".

    Raises:
        ValueError: If an argument is out of range, or without teleport the heads fall into groups between which no
            step leads, so that there is no unique distribution.
    """
    if attention.ndim != 3 or kernel not in ("jsd", "kl") or not 0 <= teleport <= 1:
        raise ValueError(
            f"attention {tuple(attention.shape)} must be (M, H, N), {kernel=} 'jsd' or 'kl', {teleport=} in [0, 1]."
        )
    return stationary(similarities(attention, kernel, temperature), teleport)


def similarities(attention: Tensor, kernel: Kernel, temperature: float = 1.0) -> Tensor:
    """(H, H) mean similarity of heads, of (M, H, N) distributions; see `markov_rank`."""
    p = attention.double().clamp_min(1e-12)
    a, b = p[:, :, None], p[:, None]
    if kernel == "kl":
        return (-(a * (a / b).log()).sum(-1) / temperature).exp().mean(0)
    middle = (a + b) / 2
    divergence = ((a * (a / middle).log()).sum(-1) + (b * (b / middle).log()).sum(-1)) / 2
    return 1 - divergence.mean(0) / torch.log(torch.tensor(2.0, dtype=torch.float64, device=p.device))


def stationary(similarity: Tensor, teleport: float = 0.05) -> Tensor:
    """(H,) stationary distribution of the walk whose steps are in proportion to `similarity` (H, H), non-negative.

    Raises:
        ValueError: If it is not unique.
    """
    count = len(similarity)
    steps = similarity / similarity.sum(1, keepdim=True)
    steps = (1 - teleport) * steps + teleport / count
    # Unique if from every head every other one can be reached.
    reached = torch.linalg.matrix_power(
        ((steps > 0) | torch.eye(count, dtype=torch.bool, device=steps.device)).double(), count
    )
    if not bool((reached > 0).all()):
        raise ValueError(f"{teleport=}: some heads are never reached from others; pass a teleport above 0.")
    rank = torch.full((count,), 1 / count, dtype=torch.float64, device=steps.device)
    for _ in range(MOST_STEPS):
        # Half a step: a walk that goes in circles would never settle otherwise, and the distribution is the same.
        new = (rank + rank @ steps) / 2
        if float((new - rank).abs().max()) < TOLERANCE / 10:
            break
        rank = new
    return new / new.sum()
