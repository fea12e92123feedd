"""Tuning the confidence heuristic, so that it is the best of its kind and not a straw man."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from agents.confidence import SIGNALS, ConfidenceAgent, ConfidenceRule
from prance_env.engine import InferenceEngine
from prance_env.spaces import decode_actions, encode_actions, observe
from supernet import GroupChoice, InferenceState
from supernet.arrays import Floats, Ints

from .static import Actions, mutate

NUM_LEVELS = 3
NUM_BINS = 16
NUM_CANDIDATES = 16
SWEEPS = 4
BATCH = 1024


Rules = Sequence[ConfidenceRule]


def static_rules(actions: Actions) -> Rules:
    """Rules of one level, which play the static subnet (num_decisions, A) in [0, 1]."""
    return [ConfidenceRule(SIGNALS[0], (), (tuple(action),)) for action in actions.tolist()]


class _Player:
    """Plays the images with rules that change one decision at a time."""

    def __init__(self, engine: InferenceEngine, index: Ints, price: float) -> None:
        self.engine, self.price = engine, price
        episodes = [engine.start(index[i : i + BATCH]) for i in range(0, len(index), BATCH)]
        self.begun = [e.state for e in episodes]
        self.labels = [e.label for e in episodes]

    def observations(self, states: list[InferenceState]) -> list[NDArray[np.float32]]:
        """One (B, O) array for each batch."""
        return [observe(self.engine.net, s, "cls", self.engine.full_macs).cpu().numpy() for s in states]

    def step(self, states: list[InferenceState], agent: ConfidenceAgent) -> list[InferenceState]:
        """Takes the agent's decision in every batch."""
        observations = self.observations(states)
        return [
            self._run(s, decode_actions(agent.predict(o)[0], agent.normalize_actions))
            for s, o in zip(states, observations, strict=True)
        ]

    def preset(self, states: list[InferenceState], action: Floats) -> list[InferenceState]:
        """Takes the same action (A,) everywhere, as float32 as an agent hands it over."""
        played = decode_actions(encode_actions(action, True), True)
        return [self._run(s, np.tile(played, (len(s), 1))) for s in states]

    def _run(self, state: InferenceState, actions: Floats) -> InferenceState:
        choice = GroupChoice.from_actions(self.engine.config.space, torch.from_numpy(actions))
        return self.engine.net.run_group(state, state.group, choice)

    def scores(self, states: list[InferenceState], agent: ConfidenceAgent) -> Floats:
        """(N,) correct - price * MACs / full MACs if the agent takes all decisions that are left."""
        net, space = self.engine.net, self.engine.config.space
        while states[0].group < len(space.groups):
            states = self.step(states, agent)
        out = []
        for state, label in zip(states, self.labels, strict=True):
            correct = net.forward_head(state).argmax(-1).cpu().numpy() == label
            out.append(correct - self.price * net.macs_to_go(state) / self.engine.full_macs)
        return np.concatenate(out)


@torch.inference_mode()
def tune_confidence(
    engine: InferenceEngine,
    index: Ints,
    starts: Sequence[Rules],
    pool: Actions,
    price: float,
    seed: int = 0,
    progress: Callable[[int], object] = lambda sweep: None,
    sweeps: int = SWEEPS,
) -> ConfidenceAgent:
    """The confidence heuristic with the highest mean accuracy - price * MACs / full MACs that coordinate ascent finds.

    It begins as the best of `starts`. One decision after the other, again and again, is made anew while the others
    stay: every candidate action is played to the end on all images, and then levels, thresholds and the action of every
    level are the best ones for these outcomes, by dynamic programming over quantiles of the signal. Candidates are what
    the rule does already, what good static subnets do at that decision, and small changes of both.

    Args:
        engine: Supernet and images.
        index: Images to tune on; a validation set.
        starts: Rules to begin with, such as `static_rules` of the best static subnet.
        pool: (K, num_decisions, A) good static subnets.
        price: Of the full network's MACs, in accuracy.
        seed: Fixes the candidates.
        progress: Called with the number of sweeps over the decisions so far.
        sweeps: How many there are.

    Returns:
        The agent; on these images it is at least as good as every one of `starts`.
    """
    config, rng = engine.config, np.random.default_rng(seed)
    player = _Player(engine, index, price)
    agents = [ConfidenceAgent(rules, config) for rules in starts]
    scores_of_starts = [float(player.scores(player.begun, agent).mean()) for agent in agents]
    best = max(scores_of_starts)
    agent = agents[scores_of_starts.index(best)]
    rules = list(agent.rules)
    for sweep in range(sweeps):
        states = player.begun
        for t in range(config.space.num_decisions):
            known = np.array(rules[t].actions)
            # First of all everything that is known to be good, so that the ascent is not caught near where it begins.
            count = NUM_CANDIDATES // 2 if sweep or t else len(pool)
            draws = pool[rng.permutation(len(pool))[:count], t]
            changed = [mutate(config.space, a[None], rng)[0] for a in (*known, *draws)]
            candidates = np.unique(np.concatenate([known, draws, changed[: NUM_CANDIDATES // 2]]), axis=0)
            scores = np.stack([player.scores(player.preset(states, a), agent) for a in candidates], axis=1)
            observations = np.concatenate(player.observations(states))
            found = [
                best_rule(signal, observations[:, agent.layout[signal].start], candidates, scores) for signal in SIGNALS
            ]
            score, rule = max(found, key=lambda f: f[0])
            if score > best:
                best, rules[t] = score, rule
                agent = ConfidenceAgent(rules, config)
            states = player.step(states, agent)
        progress(sweep + 1)
    return agent


def best_rule(
    signal: str,
    values: NDArray[np.floating],
    actions: Floats,
    scores: Floats,
    num_levels: int = NUM_LEVELS,
    num_bins: int = NUM_BINS,
) -> tuple[float, ConfidenceRule]:
    """The rule with the highest mean score, by dynamic programming over cuts at quantiles.

    Args:
        signal: Name of what is compared.
        values: (N,) of it.
        actions: (C, A) candidates.
        scores: (N, C) outcome of each candidate for each image.
        num_levels: How many actions a rule may have.
        num_bins: Thresholds lie at multiples of the 1/num_bins quantile.

    Returns:
        The mean score and the rule.
    """
    edges = np.unique(np.quantile(values, np.arange(1, num_bins) / num_bins, method="higher"))
    edges = edges[edges > values.min()]
    bins = np.searchsorted(edges, values, side="right")
    sums = np.zeros((len(edges) + 2, scores.shape[1]))
    np.add.at(sums, bins + 1, scores)
    sums = sums.cumsum(axis=0)
    ends = len(sums)
    # best[l][j]: the first j bins in at most l + 1 levels; cut[l][j]: where the last of them begins, and its action.
    segment = np.full((ends, ends), -np.inf)
    chosen = np.zeros((ends, ends), dtype=np.int64)
    for begin in range(ends):
        for end in range(begin + 1, ends):
            gains = sums[end] - sums[begin]
            chosen[begin, end] = gains.argmax()
            segment[begin, end] = gains[chosen[begin, end]]
    best = [segment[0]]
    cuts: list[Ints] = [np.zeros(ends, dtype=np.int64)]
    for _ in range(num_levels - 1):
        totals = best[-1][:, None] + segment
        totals[0] = segment[0]
        cuts.append(totals.argmax(axis=0))
        best.append(totals.max(axis=0))
    end, level = ends - 1, num_levels - 1
    parts: list[tuple[int, int]] = []
    while end:
        begin = int(cuts[level][end])
        parts.append((begin, int(chosen[begin, end])))
        end, level = begin, level - 1
    parts.reverse()
    rule = ConfidenceRule(
        signal,
        tuple(float(edges[begin - 1]) for begin, _ in parts[1:]),
        tuple(tuple(actions[action].tolist()) for _, action in parts),
    )
    return float(best[-1][-1] / len(values)), rule
