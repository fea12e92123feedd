"""Losses are what their formulas say: of labels, of answers, and of what patches show."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from train.networks.losses import patch_loss
from train.networks.recipes.images import ImagesRecipe


def test_labels_are_smoothed_and_answers_weighed_as_their_temperature_asks() -> None:
    logits, labels = torch.tensor([[1.0, -1.0, 0.5], [0.0, 2.0, 1.0]]), torch.tensor([0, 2])
    target = torch.tensor([[0.2, 0.3, 0.5], [0.6, 0.3, 0.1]])
    recipe = ImagesRecipe(temperature=2.0, label_smoothing=0.3)
    found = recipe._loss(logits, labels, 0.7, [(0.5, target), (1.0, None), (0.0, target)])
    logs = logits.log_softmax(1)
    hard = -(0.7 * logs[[0, 1], labels] + 0.3 * logs.mean(1)).mean()
    soft = -(target * (logits / 2).log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(found, 0.7 * hard + 0.5 * 4 * soft)


def test_patches_that_show_nothing_count_as_told() -> None:
    head, tokens = nn.Linear(2, 3), torch.randn(2 * 3, 2)
    state: Any = type("State", (), {"tokens": tokens})
    found = patch_loss(head, state, torch.tensor([[0, -1], [-1, 1]]), 0.25)
    logs = head(tokens.view(2, 3, 2)[:, 1:]).log_softmax(-1)
    total = 0.25 * (logs[0, 1, 2] + logs[1, 0, 2]) + logs[0, 0, 0] + logs[1, 1, 1]
    torch.testing.assert_close(found, -total / 2.5)
