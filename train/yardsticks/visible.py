"""How much of what an image needs can be seen in its observation: a linear look at it, by logistic regression."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from prance_env.engine import InferenceEngine
from supernet.arrays import Bools, Floats, Ints

from ..play import AT_THE_END, batches

STRATA = 3
"""Equal shares of the images, from those that seem to need the least to those that seem to need the most."""
FOLDS = 5
INVERSE_PENALTY = 0.03
"""C of scikit-learn's logistic regression, on observations of mean 0 and standard deviation 1."""
BATCH = 512


def observed_at_full_size(engine: InferenceEngine, index: Ints) -> list[Floats]:
    """Before every decision the observations (N, O) of images, everything before it at full size."""
    parts = [[*_observed(engine, index[rows])] for rows in batches(len(index), BATCH)]
    return [np.concatenate(of_decision) for of_decision in zip(*parts, strict=True)]


def _observed(engine: InferenceEngine, index: Ints) -> Iterator[Floats]:
    space, episodes = engine.config.space, engine.start(index)
    for decision in range(space.num_decisions):
        if decision:
            episodes = engine.step(episodes, np.ones((len(index), space.action_size)), AT_THE_END)
        yield engine.observe(episodes, "cls").double().cpu().numpy()


def chances(seen: Floats, needs: Bools, others: Floats) -> tuple[Floats, Floats] | None:
    """Chances that images need more than the least, by what is seen of them.

    Args:
        seen: (N, O) observations.
        needs: (N,) whether these images need it.
        others: (M, O) observations of other images.

    Returns:
        (N,) of `seen`, each by a regression on other ones, and (M,) of `others`; None if too few images need it, or too
        many.
    """
    if min(needs.sum(), (~needs).sum()) < FOLDS:
        return None
    model: Pipeline = make_pipeline(StandardScaler(), LogisticRegression(C=INVERSE_PENALTY, max_iter=1000))
    # Folders list their images class by class: folds of neighbours would each be judged by what other classes need.
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    own: Floats = cross_val_predict(model, seen, needs, cv=folds, method="predict_proba")[:, 1]
    of_others: Floats = model.fit(seen, needs).predict_proba(others)[:, 1]
    return own, of_others


def strata_of(own: Floats, others: Floats) -> tuple[Ints, Ints]:
    """The stratum of every image, by chances; equal shares of the first ones."""
    edges = np.quantile(own, np.linspace(0, 1, STRATA + 1)[1:-1])
    return np.digitize(own, edges), np.digitize(others, edges)


def area_under_curve(chance: Floats, needs: Bools) -> float | None:
    """How often, of two images, that which needs more seemed to need more: 0.5 is chance; None if all are alike."""
    return float(roc_auc_score(needs, chance)) if 0 < needs.sum() < len(needs) else None
