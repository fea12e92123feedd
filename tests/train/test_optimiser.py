"""A step of training: how far which parameter moves, by which gradient, at which rate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from training_nets import CONFIG, images_recipe, saved_net

from supernet import Supernet
from train.networks.launch import Team, open_team
from train.networks.loop import LAST, Training, _average
from train.networks.optimiser import BETAS, Stepper, parameter_groups
from train.networks.recipes.images import ImagesRecipe


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


def test_a_batch_in_parts_is_the_same_step(folder: Path, tmp_path: Path) -> None:
    source = saved_net(tmp_path)

    def stepped(**changes: Any) -> tuple[Supernet, float]:
        recipe, heads = images_recipe(source, folder, **changes), nn.Module()
        net, turns = recipe.make_net().train(), recipe.turns(0, torch.device("cpu"))
        stepper = Stepper(parameter_groups(net, heads, 0.1, 1.0), net.parameters(), 1e-3, "off", open_team("cpu"))
        losses = (loss for turn in turns for loss in recipe.losses(net, heads, turn))
        return net, float(stepper.step(losses, len(turns), 1e-3))

    (whole, expected), (net, loss) = stepped(), stepped(accumulate=3)
    assert loss == pytest.approx(expected, rel=1e-5)
    for (name, a), b in zip(whole.named_parameters(), net.parameters(), strict=True):
        assert a.grad is not None, name
        assert torch.allclose(a.grad, b.grad, atol=1e-6), name  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="batch_size=6 cannot be divided by 4"):
        images_recipe(source, folder, accumulate=4).turns(0, torch.device("cpu"))


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


@pytest.mark.filterwarnings("ignore:for .*copying from a non-meta parameter")
def test_steps_are_counted_on_the_host_after_a_run_goes_on_as_well(folder: Path, tmp_path: Path) -> None:
    recipe = images_recipe(saved_net(tmp_path / "net"), folder)
    begun = Training(recipe, tmp_path, open_team("cpu"))
    begun.advance()
    begun.save()
    # In place of a GPU, which AdamW would have to wait for, twice a parameter in every step.
    going_on = Training(recipe, tmp_path, Team(torch.device("meta")))
    going_on.load(tmp_path / LAST)
    moments = going_on.stepper.optimizer.state.values()
    assert going_on.step == 1
    assert {m["exp_avg"].device.type for m in moments} == {"meta"}
    assert {m["step"].device.type for m in moments} == {"cpu"}
