"""Recording functions as graphs, with a graph of our own in the place of CUDA's, which needs a GPU."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import torch
from torch import Tensor

from supernet.runtime.graphs import Function, Recorder, Tensors


class Replayed:
    """As a CUDA graph: reads and writes the tensors that it was recorded with."""

    made = 0

    def __init__(self, function: Function, inputs: Tensors, pool: Any) -> None:
        Replayed.made += 1
        self.function, self.inputs = function, {k: v.clone() for k, v in inputs.items()}
        self.outputs = {k: torch.full_like(v, -1) for k, v in function(self.inputs).items()}

    def replay(self) -> None:
        for name, value in self.function(self.inputs).items():
            self.outputs[name].copy_(value)


def doubled(inputs: Tensors) -> Tensors:
    return {"y": 2 * inputs["x"]}


def test_results_are_those_of_the_function_and_stay_the_callers() -> None:
    recorder, made = Recorder(record=Replayed), Replayed.made
    given = [torch.tensor([float(i), i + 1.0]) for i in range(5)]
    results = [recorder.run("double", doubled, {"x": x})["y"] for x in given]
    assert [r.tolist() for r in results] == [(2 * x).tolist() for x in given]
    assert Replayed.made == made + 1


def test_copies_have_no_graphs_yet() -> None:
    recorder = Recorder(most=3, record=Replayed)
    for _ in range(2):
        recorder.run("double", doubled, {"x": torch.ones(2)})
    for again in (copy.deepcopy(recorder), pickle.loads(pickle.dumps(recorder))):
        assert (again.most, again.record) == (3, Replayed)
        made = Replayed.made
        for _ in range(2):
            assert again.run("double", doubled, {"x": torch.ones(2)})["y"].tolist() == [2, 2]
        assert Replayed.made == made + 1


def test_one_graph_per_name_and_shape_and_few_are_kept() -> None:
    recorder, made = Recorder(most=2, record=Replayed), Replayed.made

    def twice(name: str, x: Tensor) -> None:
        for _ in range(2):
            recorder.run(name, doubled, {"x": x})

    for name, x in (("a", torch.zeros(2)), ("a", torch.zeros(3)), ("b", torch.zeros(2))):
        twice(name, x)
    assert Replayed.made == made + 3
    recorder.run("b", doubled, {"x": torch.zeros(2)})  # kept
    assert Replayed.made == made + 3
    twice("a", torch.zeros(2))  # was used least recently, so that it is recorded anew
    assert Replayed.made == made + 4
