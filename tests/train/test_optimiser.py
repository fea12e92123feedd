"""A step of training: how far which parameter moves, by which gradient, at which rate."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from training_nets import CONFIG

from supernet import Supernet
from train.networks.launch import open_team
from train.networks.loop import _average
from train.networks.optimiser import BETAS, Stepper, parameter_groups
from train.networks.recipes.images import ImagesRecipe


def test_earlier_layers_learn_more_slowly_and_vectors_do_not_decay() -> None:
    net = Supernet(CONFIG)
    groups = parameter_groups(net, torch.nn.Linear(2, 2), weight_decay=0.1, layer_decay=0.5)
    scale = {id(p): (g["lr_scale"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert scale[id(net.head.weight)] == (1.0, 0.1)  # type: ignore[union-attr]
    assert scale[id(net.norm.weight)] == (1.0, 0.0)
    assert scale[id(net.get_parameter("blocks.2.fc1.weight"))] == (0.5, 0.1)
    assert scale[id(net.get_parameter("blocks.0.fc1.bias"))] == (0.125, 0.0)
    assert scale[id(net.pos_embed)] == (0.0625, 0.1)
    assert len(scale) == len([*net.parameters()]) + 2


@pytest.mark.parametrize("end", [{"distilled": True, "reg_tokens": 1}, {"global_pool": "map"}])
def test_whatever_follows_the_last_block_learns_at_full_rate(end: dict[str, Any]) -> None:
    net = Supernet(replace(CONFIG, **end))
    groups = parameter_groups(net, torch.nn.Module(), weight_decay=0.1, layer_decay=0.5)
    scale = {id(p): g["lr_scale"] for g in groups for p in g["params"]}
    ends = {
        n: scale[id(p)] for n, p in net.named_parameters() if n.split(".")[0] in ("norm", "head", "head_dist", "pool")
    }
    assert len(ends) > 4
    assert set(ends.values()) == {1.0}


def two_parameters() -> tuple[nn.Parameter, nn.Parameter]:
    return nn.Parameter(torch.tensor([1.0, 2.0])), nn.Parameter(torch.tensor([3.0]))


def test_a_step_is_adamws_on_the_clipped_gradient_of_the_mean_loss_at_every_groups_rate() -> None:
    (w, v), (a, b) = two_parameters(), two_parameters()
    groups = [
        {"params": [w], "weight_decay": 0.1, "lr_scale": 1.0},
        {"params": [v], "weight_decay": 0.0, "lr_scale": 0.5},
    ]
    stepper = Stepper(groups, [w, v], 1.0, "off", open_team("cpu"))
    expected = torch.optim.AdamW(
        [{"params": [a], "weight_decay": 0.1, "lr": 0.2}, {"params": [b], "weight_decay": 0.0, "lr": 0.1}], betas=BETAS
    )
    # Of two losses; the mean of the first pair has a gradient of norm 25, that of the second is within bounds.
    for scale, gradients in ((1.0, ([0.6, 0.0], [0.8])), (0.01, ([0.15, 0.0], [0.2]))):
        stepper.step((scale * loss for loss in (30 * w[0], 40 * v[0])), 2, lr=0.2)
        a.grad, b.grad = map(torch.tensor, gradients)
        expected.step()
        torch.testing.assert_close((w.data, v.data), (a.data, b.data))


def test_the_learning_rate_rises_and_falls() -> None:
    recipe = ImagesRecipe(steps=100, lr=2.0)
    rates = [recipe.learning_rate(step) for step in range(100)]
    assert rates[:6] == pytest.approx([0.4, 0.8, 1.2, 1.6, 2.0, 2.0])
    assert rates[5:] == sorted(rates[5:], reverse=True)
    assert rates[52] == pytest.approx(1.0, abs=0.05)
    assert 0 < rates[-1] < 0.01


def test_averaged_weights_move_slowly_towards_the_current_ones() -> None:
    averaged, net = Supernet(CONFIG), Supernet(CONFIG)
    before: dict[str, Tensor] = {name: value.clone() for name, value in averaged.state_dict().items()}
    _average(averaged, net, 0.9)
    for name, value in net.state_dict().items():
        torch.testing.assert_close(averaged.state_dict()[name], 0.9 * before[name] + 0.1 * value)
