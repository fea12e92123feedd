"""What torch makes by default elsewhere (`torch.set_default_device("cuda")`) is made where the training says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import random_net
from torch import nn
from training_nets import CONFIG, assert_equal_weights, images_recipe, saved_net

from supernet import SubnetConfig, Supernet, from_pretrained, reorder_by_importance
from train.networks.importance import SCORES, unit_scores
from train.networks.loop import train_supernet
from train.networks.recipes.digits import DigitsRecipe
from train.networks.teachers import ResizedTeacher, open_teacher

# Has no numbers, so that whatever is made there cannot be computed with.
ELSEWHERE = torch.device("meta")


@pytest.mark.parametrize("score", SCORES)
def test_units_are_scored_and_moved_where_the_network_is(score: Any) -> None:
    net, generator = random_net(CONFIG), torch.Generator().manual_seed(0)
    images = torch.randn(4, CONFIG.in_chans, CONFIG.img_size, CONFIG.img_size, generator=generator)
    batches = [(images, torch.arange(4) % CONFIG.num_classes)]
    expected = reorder_by_importance(net, unit_scores(net, score, batches)).state_dict()
    with ELSEWHERE:
        moved = reorder_by_importance(net, unit_scores(net, score, batches)).state_dict()
    assert all(torch.equal(moved[name], value) for name, value in expected.items())


def test_paths_are_dropped_by_draws_of_the_host() -> None:
    net = Supernet(CONFIG).train()
    for block in net.blocks:
        block.drop_path = 0.5  # type: ignore[assignment]
    images, subnet = torch.randn(3, CONFIG.in_chans, CONFIG.img_size, CONFIG.img_size), SubnetConfig.min(CONFIG.space)
    torch.manual_seed(1)
    expected = net(images, subnet)
    torch.manual_seed(1)
    with ELSEWHERE:
        assert torch.equal(net(images, subnet), expected)


def test_a_teacher_is_asked_on_the_host(tmp_path: Path) -> None:
    folder = saved_net(tmp_path / "teacher")
    student = from_pretrained(folder)
    with ELSEWHERE:
        teacher = open_teacher(folder, student, lambda: student)
        resized = ResizedTeacher(teacher, student)
    assert {p.device.type for p in teacher.parameters()} == {resized.scale.device.type} == {"cpu"}


def adamw_counts_on_the_host() -> bool:
    """Whether torch's AdamW does; older ones count where everything is made by default."""
    weight = nn.Parameter(torch.ones(1, device="cpu"))
    weight.grad = torch.ones_like(weight)
    with ELSEWHERE:
        try:
            torch.optim.AdamW([weight]).step()
        except RuntimeError:
            return False
    return True


@pytest.mark.skipif(
    not adamw_counts_on_the_host(), reason="this torch's AdamW counts where numbers are made by default"
)
@pytest.mark.parametrize("kind", ["images", "digits"])
def test_a_training_runs_where_it_says(kind: str, folder: Path, tmp_path: Path) -> None:
    source = saved_net(tmp_path / "net")
    recipe: Any = DigitsRecipe(steps=2, batch_size=4, full_only=0.0, val_scenes=4)
    if kind == "images":
        changes = {"soft_prune": 2.0, "soft_prune_every": 1, "teacher": source, "full_teacher": 0.5, "drop_path": 0.2}
        recipe = images_recipe(source, folder, steps=2, **changes)
    train_supernet(recipe, tmp_path / "here")
    with ELSEWHERE:
        train_supernet(recipe, tmp_path / "there")
    assert_equal_weights(tmp_path / "here", tmp_path / "there")
