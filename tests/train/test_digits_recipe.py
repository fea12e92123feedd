"""Stage 1 on Digits: what reaches the first group, and which scenes are shown."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from train.networks.recipe import Turn
from train.networks.recipes import digits
from train.networks.recipes.digits import DigitsRecipe

TURN = Turn(0, slice(0, 4), torch.device("cpu"))


def gradients(full_only: float) -> dict[str, Tensor]:
    torch.manual_seed(0)
    recipe = DigitsRecipe(steps=10, batch_size=4, full_only=full_only)
    net = recipe.make_net().train()
    recipe.step_loss(net, recipe.make_heads(net), TURN).backward()
    return {name: p.grad for name, p in net.named_parameters() if p.grad is not None}


def test_what_subnets_want_does_not_reach_the_first_group() -> None:
    alone, with_subnets = gradients(full_only=1.0), gradients(full_only=0.0)
    for name, gradient in alone.items():
        first = not name.startswith(("blocks.", "norm", "head")) or name.startswith("blocks.0.")
        assert torch.allclose(gradient, with_subnets[name], atol=1e-6) == first, name


def test_scenes_are_those_of_their_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn, usual = list[tuple[int, str]](), digits.make_scenes

    def make_scenes(count: int, split: str, **named: Any) -> Any:
        drawn.append((count, split))
        return usual(count, split, **named)

    monkeypatch.setattr(digits, "make_scenes", make_scenes)
    recipe = DigitsRecipe(steps=10, batch_size=4, val_scenes=5)
    net = recipe.make_net()
    recipe.step_loss(net, recipe.make_heads(net), TURN)
    recipe.validate(net.eval())
    assert drawn == [(4, "train"), (5, "val")]


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_a_step_in_parts_has_the_loss_of_the_whole(parts: int) -> None:
    torch.manual_seed(0)
    recipe = DigitsRecipe(steps=10, batch_size=4, full_only=1.0)
    net = recipe.make_net().train()
    heads = recipe.make_heads(net)
    turns = replace(recipe, accumulate=parts).turns(0, TURN.device)
    whole = recipe.step_loss(net, heads, TURN)
    mean = sum(recipe.step_loss(net, heads, turn) for turn in turns) / parts
    torch.testing.assert_close(mean, whole, rtol=1e-5, atol=0)
