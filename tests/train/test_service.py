"""The service in this process: what it answers, refuses, counts and waits for."""

from __future__ import annotations

import asyncio
import json
import threading
from contextlib import suppress
from typing import Any

import pytest
from adaptive_models import price_minded
from helpers import PATIENCE
from image_files import noise_file

from supernet import Supernet
from train.deploy.batching import Limits

pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")


async def answer(app: Any, path: str, body: bytes | None = None, end: str = "", method: str = "") -> tuple[int, bytes]:
    """Status and body of what an application answers, in this process.

    Args:
        app: The application.
        path: With its query.
        body: Of the request; None: it is a GET.
        end: What comes after the body instead of its end: "silence", or "gone" of a client that goes away.
        method: Another one.
    """
    sent: list[Any] = []
    first = [{"type": "http.request", "body": body or b"", "more_body": bool(end)}]
    url, _, query = path.partition("?")

    async def receive() -> dict[str, Any]:
        if first:
            return first.pop()
        if end == "silence":
            await asyncio.sleep(PATIENCE)
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": method or ("GET" if body is None else "POST"),
        "headers": [],
        "http_version": "1.1",
    }
    scope |= {"path": url, "raw_path": url.encode(), "query_string": query.encode(), "root_path": ""}
    with suppress(RuntimeError):  # which is raised again for the log
        await app({**scope, "scheme": "http", "server": ("a", 1)}, receive, send)
    return sent[0]["status"], b"".join(m.get("body", b"") for m in sent)


def test_requests_wait_from_their_arrival(digits_net: Supernet, monkeypatch: pytest.MonkeyPatch) -> None:
    from train.deploy import service

    go_on, decoded = threading.Event(), service._decoded
    monkeypatch.setattr(service, "_decoded", lambda *given: go_on.wait(PATIENCE) and decoded(*given))
    settings = service.ServiceSettings(budget=0.1, limits=Limits(waiting=3))
    app = service.make_service(price_minded(digits_net), settings)

    async def run() -> tuple[list[int], bytes, bytes, bytes]:
        tasks = [asyncio.create_task(answer(app, "/predict", noise_file())) for _ in range(5)]
        done, _ = await asyncio.wait(tasks, timeout=PATIENCE, return_when=asyncio.FIRST_COMPLETED)
        refused = [task.result()[1] for task in done]
        health, metrics = [(await answer(app, path))[1] for path in ("/healthz", "/metrics")]
        go_on.set()
        return sorted([(await task)[0] for task in tasks]), refused[0], health, metrics

    statuses, refused, health, metrics = asyncio.run(run())
    assert statuses == [200, 200, 200, 503, 503]
    assert json.loads(refused)["error"] == "The service is busy: 3 requests are waiting already. Try again."
    assert json.loads(health) == {"status": "ok", "waiting": 3}
    assert b"\nprance_waiting 3.0\n" in metrics


def test_a_failure_is_counted_and_told_as_json(digits_net: Supernet, monkeypatch: pytest.MonkeyPatch) -> None:
    from train.deploy import service

    def broken(*given: Any) -> Any:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(service, "_decoded", broken)
    app = service.make_service(price_minded(digits_net), service.ServiceSettings(budget=0.1))
    status, text = asyncio.run(answer(app, "/predict", noise_file()))
    assert (status, "its log says why" in json.loads(text)["error"]) == (500, True)
    metrics = asyncio.run(answer(app, "/metrics"))[1].decode()
    assert 'prance_requests_total{path="/predict",status="500"} 1.0' in metrics


def test_clients_that_stall_do_not_wait_forever(digits_net: Supernet, monkeypatch: pytest.MonkeyPatch) -> None:
    from train.deploy import service

    monkeypatch.setattr(service, "BODY_SECONDS", 0.2)
    settings = service.ServiceSettings(budget=0.1, limits=Limits(waiting=2))
    app = service.make_service(price_minded(digits_net), settings)

    async def run() -> list[tuple[int, bytes]]:
        return await asyncio.gather(*(answer(app, "/predict", b"x", "silence") for _ in range(3)))

    answers = asyncio.run(run())
    assert [status for status, _ in answers] == [408, 408, 503]
    assert json.loads(answers[0][1])["error"] == "The body did not arrive within 0.2 seconds. Try again."
    assert asyncio.run(answer(app, "/predict", noise_file()))[0] == 200


def test_clients_that_go_away_are_counted_without_a_traceback(digits_net: Supernet) -> None:
    from train.deploy.service import ServiceSettings, make_service

    app = make_service(price_minded(digits_net), ServiceSettings(budget=0.1))
    assert asyncio.run(answer(app, "/predict", b"x", "gone")) == (499, b"")
    metrics = asyncio.run(answer(app, "/metrics"))[1].decode()
    assert 'prance_requests_total{path="/predict",status="499"} 1.0' in metrics
    assert "\nprance_waiting 0.0\n" in metrics


@pytest.mark.parametrize(("path", "status"), [("/", 200), ("/healthz", 200), ("/metrics", 200), ("/predict", 405)])
def test_what_is_read_may_be_asked_for_without_its_body(path: str, status: int, digits_net: Supernet) -> None:
    from train.deploy.service import ServiceSettings, make_service

    app = make_service(price_minded(digits_net), ServiceSettings(budget=0.1))
    assert asyncio.run(answer(app, path, method="HEAD"))[0] == status


@pytest.mark.parametrize("top", ["%C2%B2", "9" * 5000])
def test_what_looks_like_a_number_of_classes_is_refused(top: str, digits_net: Supernet) -> None:
    from train.deploy.service import ServiceSettings, make_service

    app = make_service(price_minded(digits_net), ServiceSettings(budget=0.1))
    status, text = asyncio.run(answer(app, f"/predict?top={top}", noise_file()))
    assert (status, "must be a whole number from 1 to 10" in json.loads(text)["error"]) == (422, True)


def test_the_page_is_made_once_when_it_is_asked_for(digits_net: Supernet) -> None:
    from train.deploy.service import ServiceSettings, make_service

    made: list[str] = []

    def page() -> str:
        made.append("<h1>scenes</h1>")
        return made[-1]

    app = make_service(price_minded(digits_net), ServiceSettings(budget=0.1), page)

    async def several() -> list[tuple[int, bytes]]:
        return await asyncio.gather(*(answer(app, "/") for _ in range(3)), answer(app, "/nowhere"))

    *pages, nowhere = asyncio.run(several())
    assert pages == [(200, b"<h1>scenes</h1>")] * 3
    assert len(made) == 1
    assert nowhere[0] == 404
    with pytest.raises(ValueError, match="needs a calibration"):
        make_service(price_minded(digits_net), ServiceSettings(budget="1%"))
