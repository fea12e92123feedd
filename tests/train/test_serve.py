"""The service answers what the model says, batches what arrives together, refuses with a sentence, and drains."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from command_line import refusal
from helpers import PATIENCE
from image_files import noise_file

from agents import AdaptiveViT
from tools.load_test import load
from train.deploy.batching import Batcher, BusyError, Limits
from train.deploy.listening import bound, serve

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")
ROOT = Path(__file__).parent.parent.parent


# ---- batching -------------------------------------------------------------------------------------------------------


def test_what_arrives_while_the_network_is_busy_is_the_next_batch() -> None:
    sizes: list[int] = []

    def compute(items: Any) -> list[int]:
        time.sleep(0.05)
        return [2 * item for item in items]

    async def run() -> list[int]:
        batcher = Batcher(compute, Limits(seconds=1e6, largest=8), lambda size, seconds: sizes.append(size))
        first = asyncio.create_task(batcher.ask(0))
        await asyncio.sleep(0.01)
        rest = [asyncio.create_task(batcher.ask(i)) for i in range(1, 12)]
        found = [await task for task in (first, *rest)]
        await batcher.close()
        return found

    assert asyncio.run(run()) == [2 * i for i in range(12)]
    assert sizes == [1, 8, 3]


def test_batches_are_as_large_as_the_bound_allows_and_too_many_are_refused() -> None:
    def compute(items: Any) -> list[int]:
        time.sleep(0.02 * len(items))
        return [*items]

    async def run() -> tuple[list[int], int]:
        sizes: list[int] = []
        limits = Limits(seconds=0.07, largest=64, waiting=12)
        batcher = Batcher(compute, limits, lambda size, seconds: sizes.append(size))
        await batcher.ask(0)
        asked = [asyncio.create_task(batcher.ask(i)) for i in range(14)]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        await batcher.close()
        return sizes, sum(isinstance(a, BusyError) for a in answers)

    sizes, refused = asyncio.run(run())
    assert max(sizes) <= 3
    assert sum(sizes) == 13
    assert refused == 2


def test_one_request_runs_however_tight_the_bound_is() -> None:
    async def run() -> int:
        batcher: Batcher[int, int] = Batcher(lambda items: [*items], Limits(seconds=1e-9))
        await batcher.ask(0)  # which tells how long one takes
        await batcher.close()
        batcher._waiting.append((1, asyncio.get_running_loop().create_future()))
        return batcher.size()

    assert asyncio.run(run()) == 1


def test_an_error_is_told_to_its_batch_and_the_next_one_runs() -> None:
    def compute(items: Any) -> list[int]:
        return [1 // item for item in items]

    async def run() -> Any:
        batcher = Batcher(compute, Limits())
        with pytest.raises(ZeroDivisionError):
            await batcher.ask(0)
        found = await batcher.ask(1)
        await batcher.close()
        return found

    assert asyncio.run(run()) == 1


# ---- the service ----------------------------------------------------------------------------------------------------


class Service:
    """A service in a process of its own.

    Args:
        model: A saved model.
        words: Further options.
    """

    def __init__(self, model: str, *words: str) -> None:
        command = [sys.executable, "-m", "train", "serve", "--model", model, "--port", "0", *words]
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        told = re.fullmatch(r"Serving on http://127.0.0.1:(\d+); Ctrl-C ends it.\n", self.process.stdout.readline())
        assert told is not None, self.process.stderr and self.process.stderr.read()
        self.port = int(told[1])
        assert self.ask("/healthz")[0] == 200

    def ask(self, path: str, body: bytes | None = None, method: str | None = None, **headers: str) -> tuple[int, str]:
        """Status and text of an answer."""
        url = f"http://127.0.0.1:{self.port}{path}"
        request = urllib.request.Request(url, body, {"Content-Type": "image/png", **headers}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as e:
            return e.code, e.read().decode()

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Ends it; its exit status."""
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)


@pytest.fixture(scope="module")
def service(model: str) -> Iterator[Service]:
    made = Service(model, "--budget", "60%", "--max-mb", "1", "--max-megapixels", "2")
    yield made
    made.end()


def answered(service: Service) -> float:
    """How many pictures it has answered, as it tells Prometheus."""
    found = re.search(r'prance_requests_total{path="/predict",status="200"} (\S+)', service.ask("/metrics")[1])
    return float(found[1]) if found else 0.0


@pytest.mark.slow
def test_it_answers_what_the_model_says(service: Service, model: str) -> None:
    loaded, before = AdaptiveViT.from_pretrained(model), answered(service)
    bodies = [noise_file(40 + 5 * i, 60, i) for i in range(8)]
    with ThreadPoolExecutor(8) as pool:
        answers = [*pool.map(lambda body: service.ask("/predict?top=3", body), bodies)]
    expected = [*loaded.predict(bodies, "60%").rows(3)]
    for (status, text), row in zip(answers, expected, strict=True):
        found = json.loads(text)
        assert status == 200
        assert (found["label"], found["macs"], found["patches"]) == (row["label"], row["macs"], row["patches"])
        assert [t["class"] for t in found["top"]] == [t["class"] for t in row["top"]]
    dear, cheap = (json.loads(service.ask(f"/predict?budget={b}", bodies[0])[1])["macs"] for b in ("0.01", "1.0"))
    assert dear > cheap
    status, text = service.ask("/metrics")
    assert status == 200
    assert answered(service) == before + 10
    assert re.search(r"prance_batch_size_sum (\d+)", text)
    assert "prance_macs_fraction_bucket" in text
    assert "POST /predict takes the bytes" in service.ask("/")[1]


@pytest.mark.slow
def test_bad_input_is_refused_with_a_sentence_and_the_service_lives(service: Service) -> None:
    good = noise_file()
    cases = {
        "text": (("/predict", b"hello"), 422, "cannot be read as a picture"),
        "cut": (("/predict", noise_file(kind="JPEG")[:400]), 422, "picture cannot be read"),
        "empty": (("/predict", b""), 422, "The body is empty"),
        "large": (("/predict", b"x" * (2 << 20)), 413, "larger than 1,048,576 bytes"),
        "long": (("/predict", noise_file(1, 100_000)), 422, "are too long and narrow"),
        "wide": (("/predict", noise_file(16, 140_000, kind="PNG")[:1_000_000]), 422, "has 140000 x 16 pixels"),
        "method": (("/predict",), 405, "GET /predict is no request that this service takes"),
        "nowhere": (("/nowhere",), 404, "There is no /nowhere here"),
        "budget": (("/predict?budget=1%25", good), 422, "out of this model's reach"),
        "words": (("/predict?budget=some", good), 422, "'some' is none"),
        "top": (("/predict?top=99", good), 422, "whole number from 1 to 10"),
    }
    for name, (words, status, message) in cases.items():
        found, text = service.ask(*words)
        assert (found, message in json.loads(text)["error"]) == (status, True), (name, text)
    form = service.ask("/predict", good, **{"Content-Type": "multipart/form-data; boundary=x"})
    assert form[0] == 415
    assert "curl --data-binary" in form[1]
    assert service.ask("/predict", good)[0] == 200


@pytest.mark.slow
def test_who_sends_too_much_hears_why(service: Service) -> None:
    for size in (1.1, 2, 4, 7.9):
        status, text = service.ask("/predict", b"x" * int(size * 2**20))
        assert (status, "larger than 1,048,576 bytes" in text) == (413, True)
    # What would be very much is not waited for.
    with socket.create_connection(("127.0.0.1", service.port), PATIENCE) as client:
        client.sendall(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000000000\r\n\r\nx")
        assert b"413" in client.recv(4096).split(b"\r\n")[0]
    assert service.ask("/predict", noise_file())[0] == 200


@pytest.mark.slow
def test_many_clients_are_answered_and_sigterm_drains(model: str) -> None:
    service = Service(model, "--budget", "0.1", "--menu")
    result = load(f"http://127.0.0.1:{service.port}", clients=40, seconds=4, pid=service.process.pid)
    assert result["errors"] == 0
    assert result["answers"] > 40
    assert result["p99_ms"] >= result["p50_ms"] > 0
    found: list[tuple[int, str]] = []

    def ask() -> None:
        found.append(service.ask("/predict", noise_file()))

    threads = [threading.Thread(target=ask) for _ in range(20)]
    for thread in threads:
        thread.start()
    time.sleep(0.15)
    status = service.end()
    for thread in threads:
        thread.join()
    assert [code for code, _ in found] == [200] * len(found)
    assert status == 0
    assert service.process.stderr is not None
    assert service.process.stderr.read() == ""


@pytest.mark.slow
def test_ctrl_c_ends_it_and_its_port_is_free_again(model: str) -> None:
    service = Service(model)
    with pytest.raises(
        ValueError, match=rf"Cannot listen on port {service.port} of '127.0.0.1' .* pass another --port"
    ):
        bound("127.0.0.1", service.port)
    assert service.end(signal.SIGINT) == 0
    assert service.process.stdout is not None
    assert service.process.stdout.read() == "Stopped.\n"
    bound("127.0.0.1", service.port).close()


def test_a_service_that_cannot_begin_does_not_say_that_it_serves(capsys: pytest.CaptureFixture[str]) -> None:
    from fastapi import FastAPI

    async def broken(app: FastAPI) -> AsyncIterator[None]:
        raise RuntimeError("no model")
        yield

    with pytest.raises(SystemExit) as ended:
        serve(FastAPI(lifespan=asynccontextmanager(broken)), bound("127.0.0.1", 0))
    assert ended.value.code == 3
    assert "Serving" not in capsys.readouterr().out


@pytest.mark.parametrize(("host", "port"), [("127.0.0.1", 70_000), ("192.0.2.1", 0), ("nowhere.invalid", 0)])
def test_where_it_cannot_listen_is_said(host: str, port: int) -> None:
    with pytest.raises(ValueError, match=rf"port {port} of '{host}' .*1 to 65535; 0 takes a free one"):
        bound(host, port)


@pytest.mark.parametrize(
    ("option", "value", "allowed"),
    [
        ("batch-size", 0, "at least 1"),
        ("waiting", 0, "at least 1"),
        ("calibration-images", -1, "at least 0"),
        ("latency-ms", "nan", "above 0"),
        ("latency-ms", "inf", "above 0"),
        ("max-mb", 0, "above 0"),
        ("max-megapixels", -1, "above 0"),
        ("threads", -1, "from 0 to 1024"),
    ],
)
def test_limits_that_no_request_could_keep_to_are_refused(
    option: str, value: Any, allowed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = refusal(monkeypatch, "serve", "--model", "nowhere/at/all", "--port", 0, f"--{option}", value)
    assert f"--{option} {value} must be" in said
    assert allowed in said
