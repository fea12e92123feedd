"""A linear classifier on a frozen network's features: where fine-tuning begins."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from tqdm import tqdm

from prance_env.images.loading import load_dataset
from prance_env.images.source import ImageSource, check_fits
from supernet import Supernet

BATCH = 64
INVERSE_PENALTY = 0.03
"""C of scikit-learn's logistic regression, on features of mean 0 and standard deviation 1."""


@torch.no_grad()
def features(net: Supernet, source: ImageSource, what: str) -> Tensor:
    """(N, C) what a network without a classifier gives for every image.

    Args:
        net: The network.
        source: Images that fit it.
        what: Name for the progress bar.
    """
    firsts = tqdm(range(0, len(source), BATCH), desc=f"features of {what} images", unit="batch")
    return torch.cat([net(source.fetch(np.arange(i, min(i + BATCH, len(source))))) for i in firsts])


def fit_head(net: Supernet, num_classes: int, dataset: str | dict[str, Any]) -> float:
    """Gives a network a classifier, by logistic regression on the training images.

    Args:
        net: A network without one, which it gets in place.
        num_classes: Classes of the data set.
        dataset: Images, as environments take them.

    Returns:
        Accuracy on the training images.

    Raises:
        ValueError: If the images do not fit the network.
    """
    train = load_dataset(dataset, "train", net.config)
    x, y = features(net, train, "training"), train.labels
    mean, std = x.mean(0), x.std(0).clamp_min(1e-6)
    model = LogisticRegression(C=INVERSE_PENALTY, max_iter=1000).fit(((x - mean) / std).numpy(), y.numpy())
    if (classes := [int(c) for c in model.classes_]) != [*range(num_classes)]:
        raise ValueError(f"The training images show the classes {classes}; they must be 0 to {num_classes - 1}.")
    net.reset_classifier(num_classes)
    check_fits(train, net.config)
    coefficients, intercepts = model.coef_, model.intercept_
    if num_classes == 2:  # of which scikit-learn gives the difference
        coefficients, intercepts = (np.concatenate([-c, c]) / 2 for c in (coefficients, intercepts))
    weight = torch.from_numpy(coefficients).float() / std
    assert isinstance(net.head, nn.Linear)
    with torch.no_grad():
        net.head.weight.copy_(weight)
        net.head.bias.copy_(torch.from_numpy(intercepts).float() - weight @ mean)
        logits = x @ net.head.weight.T + net.head.bias
    return float((logits.argmax(1) == y).float().mean())
