"""Recording functions as graphs, with a graph of our own in the place of CUDA's, which needs a GPU."""

from __future__ import annotations

import copy
import gc
import pickle
import random
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

from supernet.runtime import graphs
from supernet.runtime.graphs import RECORDED, Function, Recorder, Tensors, standing


class Replayed:
    """As a CUDA graph: reads and writes the tensors that it was recorded with."""

    made = 0
    turn = staticmethod(nullcontext)
    room = SimpleNamespace(open=True)

    def __init__(self, function: Function, inputs: Tensors, beside: Any) -> None:
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


def test_tensors_of_all_types_and_layouts_go_in_and_out() -> None:
    def function(inputs: Tensors) -> Tensors:
        return {name: value.t().clone().t() if value.ndim == 2 else value.clone() for name, value in inputs.items()}

    recorder = Recorder(record=Replayed)
    for i in range(RECORDED + 2):
        given = {
            "half": torch.full((2, 3), i, dtype=torch.bfloat16),
            "turned": torch.arange(6.0).view(2, 3).t() + i,
            "same type": torch.full((), float(i)),
            "none": torch.empty(0, 4),
            "whole": torch.arange(3) + i,
            "said": torch.tensor([i % 2 == 0]),
        }
        found = recorder.run("copied", function, given)
        assert [*found] == [*given]
        for name, value in given.items():
            assert found[name].dtype == value.dtype, name
            assert torch.equal(found[name], value), name


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
    weight = net.get_parameter("0.weight")
    weight.data = weight.data.t()  # the same memory, read in another order
    seen.append(standing(net))
    assert len({*seen}) == 8


def test_a_network_that_others_watch_stands_nowhere_twice() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.Linear(3, 3), nn.ReLU()))
    name = standing(net)
    for layer in (net, net[0], net[1][1]):
        for register in (layer.register_forward_hook, layer.register_forward_pre_hook):
            handle = register(lambda *given: None)
            assert standing(net) != name
            assert standing(net) != standing(net)
            handle.remove()
            assert standing(net) == name
    net[0].forward = lambda x: 0 * x  # type: ignore[method-assign, assignment]
    assert standing(net) != standing(net)
    del net[0].forward
    assert standing(net) == name


def test_a_network_that_stood_somewhere_is_not_kept() -> None:
    net = nn.Sequential(nn.Linear(3, 3))
    name, gone = standing(net), weakref.ref(net)
    del net
    gc.collect()
    assert gone() is None
    assert name != standing(nn.Sequential(nn.Linear(3, 3)))


def test_copies_have_no_graphs_yet() -> None:
    recorder = Recorder(most=3, record=Replayed)
    for _ in range(RECORDED):
        recorder.run("double", doubled, {"x": torch.ones(2)})
    for again in (copy.deepcopy(recorder), pickle.loads(pickle.dumps(recorder))):
        assert (again.most, again.record) == (3, Replayed)
        made = Replayed.made
        for _ in range(RECORDED):
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
        for _ in range(RECORDED + 1):
            found = recorder.run("double", function, {"x": torch.empty(2, device="cuda:1")})
            assert (found["y"].device, entered) == (torch.device("cuda", 1), [])
    assert Replayed.made == made + 1


def test_one_graph_per_name_and_shape_and_those_in_use_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "IDLE", 10)
    recorder, made = Recorder(most=2, record=Replayed), Replayed.made

    def run(name: str, x: Tensor, times: int) -> int:
        for _ in range(times):
            recorder.run(name, doubled, {"x": x})
        return Replayed.made - made

    one, two = torch.zeros(2), torch.zeros(3)
    assert run("a", one, RECORDED - 1) == 0
    assert run("a", one, 1) == 1
    assert run("a", two, RECORDED + 1) == 2
    assert run("b", one, RECORDED + 1) == 2  # there is no room
    assert run("a", one, 1) == 2
    assert run("b", one, 7) == 3  # in the place of ("a", two), which is idle
    assert run("a", one, 1) == 3
    assert run("a", two, RECORDED) == 3


def test_batches_of_many_sizes_are_hardly_ever_recorded() -> None:
    recorder, made, draw = Recorder(record=Replayed), Replayed.made, random.Random(0)
    for _ in range(1000):
        size = draw.randint(1, 32)
        for group in range(3):
            recorder.run(group, doubled, {"x": torch.zeros(size)})
    assert Replayed.made - made < 60


def failing(error: Exception) -> Any:
    def record(function: Function, inputs: Tensors, beside: Any) -> Any:
        function(inputs)
        raise error

    return record


def test_after_a_failed_recording_new_graphs_share_one_memory() -> None:
    beside: list[Any] = []

    class Roomy(Replayed):
        def __init__(self, function: Function, inputs: Tensors, given: Any) -> None:
            super().__init__(function, inputs, given)
            beside.append(given)
            self.room = SimpleNamespace(open=True) if given is None else given.room

    recorder = Recorder(record=Roomy)

    def use(name: str) -> None:
        for _ in range(RECORDED):
            recorder.run(name, doubled, {"x": torch.ones(2)})

    use("a")
    (old, _), *_ = recorder._graphs.values()
    old.room.open = False  # as a recording beside it has failed
    for name in "bcd":
        use(name)
        use("a")  # the last one used
    assert [given is None for given in beside] == [True, True, False, False]
    assert all(graph.room is not old.room for graph, _ in recorder._graphs.values() if graph is not old)


def test_what_cannot_be_recorded_runs_as_it_is_and_is_tried_once() -> None:
    error = RuntimeError("operation not permitted\nwhen stream is capturing")
    recorder = Recorder(record=failing(error))
    for i in range(RECORDED + 2):
        with (
            pytest.warns(UserWarning, match=r"not permitted when stream is capturing \(supernet.runtime.use\(graphs=F")
            if i == RECORDED - 1
            else nullcontext()
        ):
            assert recorder.run("double", doubled, {"x": torch.ones(2)})["y"].tolist() == [2, 2]


def test_errors_of_the_function_are_its_own() -> None:
    def broken(inputs: Tensors) -> Tensors:
        raise KeyError("mine")

    recorder = Recorder(record=failing(RuntimeError("never reached")))
    for _ in range(RECORDED + 1):
        with pytest.raises(KeyError, match="mine") as found:
            recorder.run("broken", broken, {"x": torch.ones(2)})
        assert found.value.__context__ is None


class FakeCuda:
    """In the place of torch.cuda: notes what is asked of it, in order, and which stream is the current one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.said: list[tuple[Any, ...]] = []
        self.now, self.count, self.ends = "main", 0, True
        for name in ("Stream", "Event", "CUDAGraph", "stream", "graph", "current_stream", "graph_pool_handle"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))
        monkeypatch.setattr(graphs, "current", nullcontext)

    def made(self, kind: str) -> Any:
        self.count += 1
        return self.named(f"{kind}{self.count}")

    def named(self, name: str) -> Any:
        """Notes every method that is called, with its arguments' names."""
        thing = MagicMock()
        thing.configure_mock(name=name)
        for method in ("wait_stream", "wait_event", "record", "replay"):
            note = lambda *args, method=method: self.said.append((self.now, name, method, *(a.name for a in args)))  # noqa: E731
            setattr(thing, method, note)
        return thing

    def Stream(self) -> Any:
        return self.made("stream")

    def Event(self) -> Any:
        return self.made("event")

    def CUDAGraph(self) -> Any:
        return self.made("graph")

    def graph_pool_handle(self) -> str:
        self.count += 1
        return f"pool{self.count}"

    def current_stream(self) -> Any:
        return self.named(self.now)

    @contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        before, self.now = self.now, stream.name
        try:
            yield
        finally:
            self.now = before

    @contextmanager
    def graph(self, graph: Any, pool: str, stream: Any, capture_error_mode: str) -> Iterator[None]:
        self.said.append((self.now, graph.name, "begins", pool, capture_error_mode))
        self.now = stream.name
        yield
        if not self.ends:
            raise RuntimeError("capture invalidated")


def test_recorders_have_a_stream_and_memory_of_their_own_and_graphs_wait_for_each_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cuda, ran = FakeCuda(monkeypatch), []

    def function(inputs: Tensors) -> Tensors:
        ran.append(cuda.now)
        return doubled(inputs)

    recorder = Recorder(most=2)
    for size in (2, 3):
        for _ in range(RECORDED):
            recorder.run("double", function, {"x": torch.ones(size)})
    own = ["stream2"] * (graphs.WARM_UP + 1)
    assert ran == 2 * (["main"] * (RECORDED - 1) + own)
    begins = [said for said in cuda.said if said[2] == "begins"]
    assert [(said[0], *said[3:]) for said in begins] == [("stream2", "pool1", "thread_local")] * 2
    replays = [i for i, said in enumerate(cuda.said) if said[2] == "replay"]
    for i in replays:
        assert cuda.said[i - 1] == ("main", "main", "wait_event", "event3")
        assert cuda.said[i + 1] == ("main", "event3", "record")
    assert len(replays) == 2

    recorder._graphs.clear()  # as if they were idle: their memory is gone
    for _ in range(RECORDED):
        recorder.run("other", function, {"x": torch.ones(2)})
    assert {said[3] for said in cuda.said if said[2] == "begins"} == {"pool1", "pool6"}


def test_a_recording_that_fails_at_its_end_leaves_the_stream_that_there_was(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda, recorder = FakeCuda(monkeypatch), Recorder()
    for size in (1, 2, 3):
        cuda.ends = size != 2
        for i in range(RECORDED):
            fails = i == RECORDED - 1 and not cuda.ends
            with pytest.warns(UserWarning, match="capture invalidated") if fails else nullcontext():
                recorder.run("double", doubled, {"x": torch.ones(size)})
        assert cuda.now == "main"
        if not cuda.ends:
            assert cuda.said[-2:] == [("main", "main", "wait_stream", "stream2"), ("main", "event3", "record")]
    first, failed, after = (said[3] for said in cuda.said if said[2] == "begins")
    assert first == failed != after  # PyTorch's allocator takes no more for that memory
