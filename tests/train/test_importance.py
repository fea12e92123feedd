"""Scores of units: what they are by definition, and that the ranking of heads is a stationary distribution."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_nets import pixels, small_net

from supernet import GroupChoice, SubnetConfig, Supernet, UnitScores, reorder_by_importance
from train.networks.ablation import ablate
from train.networks.importance import (
    SCORES,
    class_rows,
    full_network,
    magnitude_scores,
    markov_rank,
    projection_loss,
    similarities,
    stationary,
    taylor_scores,
    unit_scores,
)
from train.networks.ordering import draw_batches, prefix_subnets


def batches(net: Supernet, count: int = 2) -> list[tuple[torch.Tensor, torch.Tensor]]:
    classes = max(net.config.num_classes, 1)
    return [(pixels(net, 4 + i), torch.arange(4 + i) % classes) for i in range(count)]


def gate_derivatives(net: Supernet, kind: str, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """dL/dg of explicit gates on the weights of every unit."""
    static = full_network(net)
    depth, heads, channels = net.space.depth, net.space.max_heads, 3 * net.config.head_dim
    sizes = {"embed_dim": (net.config.embed_dim,), "heads": (depth, heads), "hidden": (depth, 64)}
    gate = torch.ones(sizes[kind], dtype=torch.float64, requires_grad=True)
    state: dict[str, Any] = {k: v.double() for k, v in static.named_parameters()}
    static.double()
    for i in range(depth):
        block = f"blocks.{i}."
        rows = {"heads": ["qkv"], "hidden": ["fc1"], "embed_dim": ["proj", "fc2"]}[kind]
        by_row = gate if kind == "embed_dim" else gate[i]
        by_row = by_row.repeat_interleave(channels) if kind == "heads" else by_row
        for name in rows:
            state[f"{block}{name}.weight"] = state[f"{block}{name}.weight"] * by_row[:, None]
            state[f"{block}{name}.bias"] = state[f"{block}{name}.bias"] * by_row
        if kind == "embed_dim":
            for name in ("qkv", "fc1"):
                state[f"{block}{name}.weight"] = state[f"{block}{name}.weight"] * gate
    if kind == "embed_dim":
        state["patch_embed.0.weight"] = state["patch_embed.0.weight"] * gate[:, None, None, None]
        state["patch_embed.0.bias"] = state["patch_embed.0.bias"] * gate
    normalised = (images.double() / 255 - static.mean) / static.std
    loss = F.cross_entropy(torch.func.functional_call(static, state, (normalised,)), labels)
    return torch.autograd.grad(loss, gate)[0]


@pytest.mark.parametrize("kind", ["embed_dim", "heads", "hidden"])
def test_taylor_is_the_squared_derivative_by_a_gate(kind: str) -> None:
    net = small_net("prune")
    expected = sum(gate_derivatives(net, kind, *batch).square() for batch in batches(net)) / 2
    assert torch.is_tensor(expected)
    scores = getattr(taylor_scores(net, batches(net)), kind).double()
    assert torch.allclose(scores, expected, rtol=1e-3, atol=1e-6 * float(expected.max()))


def test_taylor_of_a_network_without_classifier_needs_no_labels() -> None:
    net = small_net("prune", num_classes=0)
    scores = taylor_scores(net, [(images, labels * 0 - 1) for images, labels in batches(net)])
    assert scores.hidden is not None
    assert bool((scores.hidden > 0).any())
    outputs = torch.tensor([[1.0, -2.0]], requires_grad=True)
    projection_loss()(outputs, torch.zeros(1)).backward()
    assert outputs.grad is not None
    assert outputs.grad.abs().tolist() == [[1.0, 1.0]]


def test_magnitude_is_the_norm_of_what_reads_a_unit() -> None:
    net = small_net("prune")
    scores, block = magnitude_scores(net), net.blocks[1]
    assert scores.heads is not None
    assert scores.hidden is not None
    assert scores.embed_dim is not None
    assert scores.heads[1, 2] == pytest.approx(float(block.proj.weight[:, 16:24].abs().sum()))  # type: ignore[union-attr, index]
    assert scores.hidden[1, 5] == pytest.approx(float(block.fc2.weight[:, 5].abs().sum()))  # type: ignore[union-attr, index]
    reads = [b.qkv.weight[:, 3].abs().sum() + b.fc1.weight[:, 3].abs().sum() for b in net.blocks]  # type: ignore[union-attr, index]
    assert float(scores.embed_dim[3]) == pytest.approx(float(sum(reads)), rel=1e-5)


@pytest.mark.parametrize("score", SCORES)
def test_every_score_orders_a_network_and_is_repeatable(score: Any) -> None:
    net = small_net("prune")
    first, second = (unit_scores(net, score, batches(net), seed=3) for _ in range(2))
    for kind in ("embed_dim", "heads", "hidden"):
        assert torch.equal(getattr(first, kind), getattr(second, kind))
    images = pixels(net, 3)
    with torch.no_grad():
        assert torch.allclose(reorder_by_importance(net, first)(images), net(images), atol=1e-4)


def test_unknown_scores_and_no_images_are_refused() -> None:
    net = small_net("prune")
    with pytest.raises(ValueError, match="score='nvit' is unknown; choose one of"):
        unit_scores(net, "nvit", [])  # type: ignore[arg-type]
    for score in ("taylor", "markov"):
        with pytest.raises(ValueError, match="no images"):
            unit_scores(net, score, [])  # type: ignore[arg-type]


def rows(*heads: list[float]) -> torch.Tensor:
    return torch.tensor([heads], dtype=torch.float64)


def test_two_equal_heads_and_another_rank_by_their_sums_of_similarities() -> None:
    attention = rows([0.7, 0.2, 0.1], [0.7, 0.2, 0.1], [0.1, 0.1, 0.8])
    alike = similarities(attention, "jsd")
    assert torch.allclose(alike, alike.T)
    assert torch.allclose(alike.diagonal(), torch.ones(3, dtype=torch.float64))
    assert torch.allclose(markov_rank(attention, "jsd", teleport=0), alike.sum(1) / alike.sum(), atol=1e-9)


@pytest.mark.parametrize("kernel", ["jsd", "kl"])
def test_the_rank_is_stationary_and_follows_the_heads_names(kernel: Any) -> None:
    attention = torch.rand(20, 5, 7, generator=torch.Generator().manual_seed(0)).pow(3)
    attention = attention / attention.sum(-1, keepdim=True)
    rank = markov_rank(attention, kernel)
    similarity = similarities(attention, kernel)
    steps = 0.95 * similarity / similarity.sum(1, keepdim=True) + 0.05 / 5
    assert torch.allclose(steps.sum(1), torch.ones(5, dtype=torch.float64))
    assert torch.allclose(rank @ steps, rank, atol=1e-9)
    assert float(rank.sum()) == pytest.approx(1)
    names = torch.tensor([3, 0, 4, 2, 1])
    assert torch.allclose(markov_rank(attention[:, names], kernel), rank[names], atol=1e-9)
    assert torch.allclose(similarity, similarity.T) == (kernel == "jsd")


def test_a_ring_is_uniform_and_separate_groups_need_teleport() -> None:
    ring = torch.tensor([[0.0, 1, 0], [0, 0, 1], [1, 0, 0]], dtype=torch.float64)
    assert torch.allclose(stationary(ring, teleport=0), torch.full((3,), 1 / 3, dtype=torch.float64), atol=1e-8)
    groups = torch.block_diag(torch.ones(2, 2), torch.ones(1, 1)).double()
    with pytest.raises(ValueError, match="never reached"):
        stationary(groups, teleport=0)
    assert float(stationary(groups).sum()) == pytest.approx(1)
    with pytest.raises(ValueError, match=r"must be \(M, H, N\)"):
        markov_rank(torch.ones(3, 3))


def test_class_rows_are_the_attention_of_the_class_token() -> None:
    net = small_net("prune")
    attention = class_rows(net, batches(net))
    assert attention.shape == (3, 9, 3, 37)
    state = net.begin(pixels(net, 4))  # the first group ran: block 1 is next
    expected = net.class_attention(state, GroupChoice.full(net.space, 1, 4)).view(4, 37)
    assert torch.allclose(attention[1, :4].mean(1), expected, atol=1e-5)


def test_taking_out_a_unit_is_what_its_absence_costs() -> None:
    net = small_net("prune")
    found = ablate(net, batches(net), hidden_units=3)
    assert found.rise["heads"].shape == (3, 3)
    assert found.rise["hidden"].shape == (3, 3)
    static = full_network(net)
    static.get_parameter("blocks.2.proj.weight").data[:, 8:16] = 0
    with torch.no_grad():
        total = sum(float(F.cross_entropy(static(x), y, reduction="sum")) for x, y in batches(net)) / 9
    assert found.rise["heads"][2, 1] == pytest.approx(total - found.loss, abs=1e-5)
    truth = UnitScores(heads=torch.from_numpy(found.rise["heads"]), hidden=magnitude_scores(net).hidden)
    correlations = found.correlations(truth)
    assert np.allclose(correlations["heads"], 1)
    assert np.isnan(found.correlations(UnitScores(heads=torch.ones(3, 3), hidden=truth.hidden))["heads"]).all()


def test_images_are_drawn_once_and_prefixes_are_in_the_space(engine: Any) -> None:
    drawn = draw_batches(engine.dataset, 50, 8)
    assert [len(labels) for _, labels in drawn] == [8] * 6 + [2]
    assert torch.equal(drawn[3][0], draw_batches(engine.dataset, 50, 8)[3][0])
    assert sum(len(labels) for _, labels in draw_batches(engine.dataset, 1000, 8)) == len(engine.dataset)
    with pytest.raises(ValueError, match="at least 1"):
        draw_batches(engine.dataset, 0, 8)
    space = engine.config.space
    subnets = prefix_subnets(space)
    assert list(subnets) == ["full", "mlp 1", "mlp 0.5", "width 48", "width 32", "width 16", "narrowest"]
    for subnet in subnets.values():
        subnet.validate(space)
    assert torch.equal(subnets["narrowest"].embed_dim, SubnetConfig.min(space).embed_dim)
