"""Recording functions as graphs, with a graph of our own in the place of CUDA's, which needs a GPU."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

from supernet.runtime.graphs import Function, Recorder, Tensors, standing


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


def test_where_a_network_stands_is_its_weights_and_modules() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.Linear(3, 3), nn.ReLU()), nn.BatchNorm1d(3))
    other = copy.deepcopy(net)
    seen = [standing(net), standing(other)]
    assert standing(net) == seen[0] != seen[1]
    kept: list[Any] = [t.data for t in net.parameters()]  # what has left, so that nothing new lies at its address
    net.to(torch.bfloat16).to(torch.float32)
    seen.append(standing(net))
    for path, name, thing in (
        ("1.0", "weight", nn.Parameter(torch.ones(3, 3))),
        ("2", "running_mean", torch.ones(3)),
        ("1", "0", nn.Linear(3, 3)),
        ("", "1", nn.Linear(3, 3)),
    ):
        owner = net.get_submodule(path)
        kept.append(getattr(owner, name))
        setattr(owner, name, thing)
        assert standing(net) == standing(net)
        seen.append(standing(net))
    assert len({*seen}) == 7


def test_a_network_that_stood_somewhere_is_not_kept() -> None:
    net = nn.Sequential(nn.Linear(3, 3))
    name, gone = standing(net), weakref.ref(net)
    del net
    gc.collect()
    assert gone() is None
    assert name != standing(nn.Sequential(nn.Linear(3, 3)))


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


def test_a_graph_is_recorded_and_replayed_on_the_gpu_of_its_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    entered: list[torch.device] = []

    @contextmanager
    def device(there: torch.device) -> Iterator[None]:
        entered.append(there)
        yield
        entered.pop()

    class Graph(Replayed):
        def replay(self) -> None:
            assert entered == [torch.device("cuda", 1)]

    def function(inputs: Tensors) -> Tensors:
        assert entered == [torch.device("cuda", 1)]
        return doubled(inputs)

    monkeypatch.setattr(torch.cuda, "device", device)
    recorder, made = Recorder(record=Graph), Replayed.made
    with FakeTensorMode():  # tensors of a GPU that need not be there
        for _ in range(3):
            found = recorder.run("double", function, {"x": torch.empty(2, device="cuda:1")})
            assert (found["y"].device, entered) == (torch.device("cuda", 1), [])
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
