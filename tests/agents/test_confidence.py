"""The confidence heuristic: what it does, what it refuses, and that its tuning finds the best rule there is."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest
from helpers import make_engine, settings_for

from agents import ConfidenceAgent, ConfidenceRule
from prance_env import InferenceEngine
from prance_env.spaces import observation_layout
from supernet import Supernet
from train.evaluate import evaluate
from train.search import confidence as search
from train.search.confidence import best_rule, static_rules, tune_confidence

IMAGES = 48


@pytest.fixture(scope="module")
def engine(digits_net: Supernet) -> InferenceEngine:
    """Noise before a random supernet."""
    return make_engine(digits_net, IMAGES)


def presets(engine: InferenceEngine, seed: int, levels: int) -> tuple[tuple[float, ...], ...]:
    """Random actions, exact in float32."""
    sixteenths = np.random.default_rng(seed).integers(17, size=(levels, engine.config.space.action_size)) / 16
    return tuple(map(tuple, sixteenths.tolist()))


def some_rules(engine: InferenceEngine) -> list[ConfidenceRule]:
    """Three decisions with different signals and numbers of levels."""
    return [
        ConfidenceRule("max_prob", (0.25, 0.5), presets(engine, 0, 3)),
        ConfidenceRule("entropy", (0.5,), presets(engine, 1, 2)),
        ConfidenceRule("max_prob", (), presets(engine, 2, 1)),
    ]


def test_the_signal_of_each_decision_picks_the_level(engine: InferenceEngine) -> None:
    rules, layout = some_rules(engine), observation_layout(engine.config, "cls")
    #        decision, max_prob, entropy, level
    cases = [(0, 0.2, 0.9, 0), (0, 0.25, 0.9, 1), (0, 0.49, 0.0, 1), (0, 0.5, 0.0, 2), (0, 1.0, 0.0, 2)]
    cases += [(1, 0.9, 0.4, 0), (1, 0.9, 0.5, 1), (1, 0.0, 1.0, 1), (2, 0.0, 0.0, 0), (2, 1.0, 1.0, 0)]
    rows = np.zeros((len(cases), max(s.stop for s in layout.values())), dtype=np.float32)
    for row, (decision, max_prob, entropy, _) in zip(rows, cases, strict=True):
        row[layout["decision"].start + decision] = 1
        row[layout["max_prob"]], row[layout["entropy"]] = max_prob, entropy
    expected = np.array([rules[d].actions[level] for d, _, _, level in cases])
    for normalize_actions in (True, False):
        agent = ConfidenceAgent(rules, engine.config, normalize_actions=normalize_actions)
        actions, _ = agent.predict(rows)
        np.testing.assert_array_equal((actions + 1) / 2 if normalize_actions else actions, expected)
        np.testing.assert_array_equal(agent.predict(rows[3])[0], actions[3])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: {"rules": r[:2]}, r"2 rules for 3 decisions"),
        (lambda r: {"observation": "cls_only"}, r"'cls_only' does not show .*max_prob.* use 'cls'"),
        (lambda r: {"rules": [ConfidenceRule("entropy", (), ((0.5,),)), *r[1:]]}, r"7 numbers in \[0, 1\]"),
        (lambda r: {"rules": [ConfidenceRule("entropy", (), ((2.0,) * 7,)), *r[1:]]}, r"7 numbers in \[0, 1\]"),
        (lambda r: ConfidenceRule("margin", (), r[2].actions), r"'margin'.*max_prob"),
        (lambda r: ConfidenceRule("entropy", (0.1,), r[2].actions), r"1 thresholds make 2 levels, but there are 1"),
        (lambda r: ConfidenceRule("entropy", (0.5, 0.5), r[0].actions), r"thresholds=\(0.5, 0.5\) must ascend"),
        (lambda r: ConfidenceRule("entropy", (float("nan"),), r[1].actions), r"must ascend and be finite"),
    ],
)
def test_rules_that_do_not_fit_are_refused(engine: InferenceEngine, change: Any, message: str) -> None:
    rules = some_rules(engine)
    with pytest.raises(ValueError, match=message):
        ConfidenceAgent(**{"rules": rules, "config": engine.config, **change(rules)})


@pytest.mark.parametrize("num_levels", [1, 2, 3])
def test_no_rule_is_better_than_the_one_found(num_levels: int) -> None:
    rng = np.random.default_rng(num_levels)
    values = rng.choice(np.linspace(0, 1, 7, dtype=np.float32), 40)  # with ties
    actions, scores = rng.random((4, 7)), rng.normal(size=(40, 4))
    score, rule = best_rule("entropy", values, actions, scores, num_levels, num_bins=40)
    assert rule.signal == "entropy"
    assert len(rule.actions) <= num_levels
    number = {tuple(a): k for k, a in enumerate(actions.tolist())}
    played = np.array([number[a] for a in rule.actions])[rule.level(values)]
    assert scores[np.arange(40), played].mean() == pytest.approx(score)
    best = -np.inf
    for count in range(num_levels):
        for cuts in combinations(np.unique(values)[1:], count):
            level = np.searchsorted(cuts, values, side="right")
            best = max(best, sum(scores[level == k].sum(axis=0).max() for k in range(count + 1)) / 40)
    assert score == pytest.approx(best)


def test_a_signal_that_tells_nothing_gives_one_level() -> None:
    scores = np.array([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    score, rule = best_rule("max_prob", np.full(3, 0.5, np.float32), np.eye(2), scores)
    assert (score, rule.thresholds, rule.actions) == (pytest.approx(2 / 3), (), ((0.0, 1.0),))


@pytest.mark.slow
def test_tuning_beats_where_it_began_and_says_what_an_evaluation_says(
    engine: InferenceEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "NUM_CANDIDATES", 6)
    monkeypatch.setattr(search, "BATCH", 32)
    price, space = 0.5, engine.config.space
    pool = np.random.default_rng(0).integers(17, size=(5, space.num_decisions, space.action_size)) / 16
    sweeps: list[int] = []

    def tuned(starts: list[Any], **kwargs: Any) -> ConfidenceAgent:
        return tune_confidence(engine, np.arange(IMAGES), starts, pool, price, sweeps=2, **kwargs)

    def score(agent: Any) -> float:
        summary = evaluate(agent, settings_for(engine)).summary()
        return summary["accuracy"] - price * summary["macs_fraction"]

    starts = [static_rules(pool[0]), some_rules(engine)]
    agent = tuned(starts, progress=sweeps.append)
    assert sweeps == [1, 2]
    begun = max(score(ConfidenceAgent(rules, engine.config)) for rules in starts)
    assert score(agent) > begun + 0.01
    assert any(rule.thresholds for rule in agent.rules)
    assert tuned(starts).rules == agent.rules
    assert score(tuned([agent.rules], seed=1)) >= score(agent)
