"""GOHSP's soft pruning: the method of multipliers finds the projection, and energy moves to the narrowest subnet."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from training_nets import CONFIG, assert_equal_weights, images_recipe, saved_net

from supernet import Supernet
from train.networks.loop import train_supernet
from train.networks.soft_pruning import SoftPruning, head_groups, hidden_groups, softened


def test_a_head_is_its_rows_and_columns_and_so_is_a_hidden_unit() -> None:
    net = Supernet(CONFIG)
    block = net.blocks[1]
    heads, hidden = head_groups(block, 8), hidden_groups(block)  # type: ignore[arg-type]
    assert heads.shape == (2, 3 * 8 * 32 + 8 * 32)
    assert hidden.shape == (64, 64)
    assert torch.equal(heads[1, :32], block.qkv.weight[24])  # type: ignore[union-attr, index]
    columns = heads[1, -256:].view(32, 8)
    assert torch.equal(columns, block.proj.weight[:, 8:])  # type: ignore[union-attr, index]
    assert torch.equal(hidden[5, 32:], block.fc2.weight[:, 5])  # type: ignore[union-attr, index]


def test_the_method_of_multipliers_finds_the_projection_of_what_the_loss_wants() -> None:
    torch.manual_seed(0)
    net = Supernet(CONFIG)
    wanted = {name: p.detach().clone() for name, p in net.named_parameters()}
    pruning = SoftPruning(net, rho=1.0)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.2)
    for _ in range(40):
        for _ in range(10):
            optimizer.zero_grad()
            distance = sum((p - wanted[name]).square().sum() for name, p in net.named_parameters()) / 2
            (distance + pruning.penalty(net)).backward()
            optimizer.step()
        pruning.update(net)
    block = net.blocks[1]
    for own, groups, keep in (
        (hidden_groups(block), 64, 16),  # type: ignore[arg-type]
        (head_groups(block, 8), 2, 1),  # type: ignore[arg-type]
    ):
        assert len(own) == groups
        assert float(own[keep:].detach().abs().max()) < 1e-3
    kept = block.fc1.weight[:16] - wanted["blocks.1.fc1.weight"][:16]  # type: ignore[union-attr, index]
    assert float(kept.detach().abs().max()) < 1e-3
    assert torch.equal(net.blocks[0].fc1.weight, wanted["blocks.0.fc1.weight"])  # type: ignore[union-attr]


def test_the_penalty_is_half_of_rho_times_the_squared_distance() -> None:
    net, expected = Supernet(CONFIG), 0.0
    for block in net.blocks[1:]:  # type: ignore[misc]
        # Before the first update Z is W, with what is not kept halved, and U is 0.
        halved = head_groups(block, 8)[1:] / 2, hidden_groups(block)[16:] / 2
        expected += sum(float(part.detach().square().sum()) for part in halved)
    assert SoftPruning(net, rho=3.0).penalty(net).item() == pytest.approx(3.0 / 2 * expected, rel=1e-5)


def test_soft_means_that_what_is_not_kept_shrinks_step_by_step() -> None:
    groups = torch.ones(4, 3)
    assert softened(groups, 2, 0.5).tolist() == [[1.0] * 3] * 2 + [[0.5] * 3] * 2
    assert softened(groups, 2, 0.0)[2:].abs().sum() == 0


def test_energy_moves_and_a_resumed_run_equals_an_uninterrupted_one(folder: Path, tmp_path: Path) -> None:
    source = saved_net(tmp_path / "net")
    recipe = images_recipe(source, folder, steps=6, lr=3e-3, soft_prune=2.0, soft_prune_every=1, checkpoint_every=6)
    net = train_supernet(recipe, tmp_path / "whole")
    plain = train_supernet(images_recipe(source, folder, steps=6, lr=3e-3), tmp_path / "plain")
    pruning = SoftPruning(net, 1.0)
    assert pruning.kept_energy(net) > pruning.kept_energy(plain) + 0.002
    for resume in (False, *[True] * 5):
        train_supernet(recipe, tmp_path / "parts", resume=resume, max_hours=0)
    assert_equal_weights(tmp_path / "whole", tmp_path / "parts")
