"""`prance serve`: an adaptive network behind HTTP, with FastAPI and Prometheus's client (extra `serve`)."""

from __future__ import annotations

import asyncio
import io
import reprlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from torch import Tensor

from agents import AdaptiveViT
from agents.deployed.budgets import prices_of
from prance_env.images.opening import open_image

from .batching import Batcher, Limits

Row = dict[str, Any]
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
PATHS = ("/", "/predict", "/healthz", "/metrics")
HEARD = 8
"""A body may be so many times too large and still be read, to hear that it is."""
BODY_SECONDS = 30
"""In which a body must arrive: it counts among the requests that wait."""
MOST_DIGITS = 9
"""Of a number in a request."""
HOW = "POST /predict takes the bytes of one picture as its body"


@dataclass(frozen=True)
class ServiceSettings:
    """What a service allows.

    Attributes:
        budget: For requests that name none; None: as the model says.
        most_bytes: Of a body.
        most_pixels: Of a picture, before it is brought to size.
        from_menu: Whether choices are from the model's menu.
        limits: How requests are batched.
    """

    budget: str | float | None = None
    most_bytes: int = 10 * 2**20
    most_pixels: int = 50_000_000
    from_menu: bool = False
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True)
class Asked:
    """A picture that is to be classified.

    Attributes:
        image: (C, H, W) uint8.
        budget: What it may cost.
        top: How many classes to list.
    """

    image: Tensor
    budget: Any
    top: int


class Metrics:
    """What Prometheus is told."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        own: Any = {"registry": self.registry}
        self.requests = Counter("prance_requests", "Requests by path and status", ["path", "status"], **own)
        self.seconds = Histogram("prance_request_seconds", "Seconds of answered pictures", buckets=SECONDS, **own)
        self.batch = Histogram("prance_batch_size", "Pictures computed together", buckets=BATCH_SIZES, **own)
        self.network = Histogram("prance_network_seconds", "Seconds of a batch", buckets=SECONDS, **own)
        self.macs = Histogram(
            "prance_macs_fraction", "MACs / MACs of the full network", buckets=[i / 10 for i in range(1, 11)], **own
        )
        self.waiting = Gauge("prance_waiting", "Requests that wait for the network", **own)

    def batched(self, size: int, seconds: float) -> None:
        """Notes a batch."""
        self.batch.observe(size)
        self.network.observe(seconds)


class Service:
    """What answers requests.

    Args:
        model: What says what pictures show.
        settings: What is allowed.
        page: Makes the page at `/`, when it is first asked for; None: a few words.

    Raises:
        ValueError: If the model cannot keep to the budget of the settings.
    """

    def __init__(
        self, model: AdaptiveViT, settings: ServiceSettings | None = None, page: Callable[[], str] | None = None
    ) -> None:
        self.model, self.settings, self.metrics = model, settings or ServiceSettings(), Metrics()
        if self.settings.budget is not None:
            _budget(model, self.settings, None)
        compute = _computing(model, self.settings, self.metrics)
        self.batcher: Batcher[Asked, Row] = Batcher(compute, self.settings.limits, self.metrics.batched)
        self._arriving = 0
        self.metrics.waiting.set_function(lambda: self.waiting)
        self._page, self._made, self._making = page, None if page is not None else f"<p>{HOW}.</p>", asyncio.Lock()

    @property
    def waiting(self) -> int:
        """Requests that wait for the network, those among them whose picture is on its way or to be decoded."""
        return self._arriving + len(self.batcher)

    async def predict(self, request: Request, budget: str | None, top: str) -> JSONResponse:
        """What a picture shows.

        Raises:
            HTTPException: If the request is none that can be answered, or does not arrive in time.
            ClientDisconnect: If who asks goes away before all has arrived.
        """
        begun = time.perf_counter()
        if (waiting := self.waiting) >= self.settings.limits.waiting:
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(_unread(request, self.settings.most_bytes), BODY_SECONDS)
            busy = f"The service is busy: {waiting} requests are waiting already. Try again."
            raise HTTPException(503, busy, {"Retry-After": "1"})
        self._arriving += 1
        try:
            asked = await self._asked(request, budget, top)
        except ValueError as e:
            raise HTTPException(422, str(e)) from e
        finally:
            self._arriving -= 1
        row = await self.batcher.ask(asked)
        self.metrics.seconds.observe(time.perf_counter() - begun)
        return JSONResponse(row)

    async def _asked(self, request: Request, budget: str | None, top: str) -> Asked:
        wanted = _budget(self.model, self.settings, budget)
        count = _count(top, len(self.model.names))
        try:
            body = await asyncio.wait_for(_body(request, self.settings.most_bytes), BODY_SECONDS)
        except asyncio.TimeoutError as e:
            late = f"The body did not arrive within {BODY_SECONDS} seconds. Try again."
            raise HTTPException(408, late, {"Connection": "close"}) from e
        image = await run_in_threadpool(_decoded, self.model, body, self.settings.most_pixels)
        return Asked(image, wanted, count)

    async def page(self) -> str:
        """The page, made once."""
        async with self._making:
            if self._made is None:
                assert self._page is not None
                self._made = await run_in_threadpool(self._page)
        return self._made

    def refusal(self, request: Request, error: HTTPException) -> JSONResponse:
        """A sentence about what is not answered."""
        known = {
            404: f"There is no {request.url.path} here: {HOW}; GET /, /healthz and /metrics.",
            405: f"{request.method} {request.url.path} is no request that this service takes: {HOW}.",
        }
        return JSONResponse({"error": known.get(error.status_code, error.detail)}, error.status_code, error.headers)


def make_service(
    model: AdaptiveViT, settings: ServiceSettings | None = None, page: Callable[[], str] | None = None
) -> FastAPI:
    """The service as an ASGI application; arguments and errors are those of `Service`."""
    service = Service(model, settings, page)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await service.batcher.close()

    app = FastAPI(title="prance-env", docs_url=None, redoc_url=None, lifespan=lifespan)

    @app.post("/predict")
    async def predict(request: Request, budget: str | None = None, top: str = "1") -> JSONResponse:
        return await service.predict(request, budget, top)

    @app.get("/healthz")
    @app.head("/healthz", include_in_schema=False)
    async def healthz() -> dict[str, Any]:
        return {"status": "ok", "waiting": service.waiting}

    @app.get("/metrics")
    @app.head("/metrics", include_in_schema=False)
    async def metrics() -> Response:
        return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/")
    @app.head("/", include_in_schema=False)
    async def index() -> HTMLResponse:
        return HTMLResponse(await service.page())

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> JSONResponse:
        return service.refusal(request, error)

    @app.exception_handler(ClientDisconnect)
    async def gone(request: Request, error: ClientDisconnect) -> Response:
        return Response(status_code=499)  # for the metrics alone: nobody receives it

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> JSONResponse:
        # It is raised again once this is sent, so that the log has it.
        return JSONResponse({"error": "The service failed at this request; its log says why."}, 500)

    @app.middleware("http")
    async def counted(request: Request, call_next: Callable[[Request], Any]) -> Response:
        known = request.url.path if request.url.path in PATHS else "other"
        try:
            answer: Response = await call_next(request)
        except Exception:
            service.metrics.requests.labels(known, "500").inc()
            raise
        service.metrics.requests.labels(known, str(answer.status_code)).inc()
        return answer

    return app


def _computing(
    model: AdaptiveViT, settings: ServiceSettings, metrics: Metrics
) -> Callable[[Sequence[Asked]], Sequence[Row]]:
    def compute(batch: Sequence[Asked]) -> Sequence[Row]:
        images, budgets = torch.stack([asked.image for asked in batch]), [asked.budget for asked in batch]
        menu = model.menu if settings.from_menu and len(batch) == 1 else None
        found = model(images, budgets, settings.from_menu) if menu is None else menu(images, budgets)
        for share in found.macs / found.full_macs:
            metrics.macs.observe(float(share))
        rows = [*found.rows(max(asked.top for asked in batch))]
        for row, asked in zip(rows, batch, strict=True):
            if asked.top > 1:
                row["top"] = row["top"][: asked.top]
            else:
                row.pop("top", None)
        return rows

    return compute


def _budget(model: AdaptiveViT, settings: ServiceSettings, given: str | None) -> Any:
    """What a request may cost, checked.

    Raises:
        ValueError: If the model cannot keep to it, or there must be one and is none.
    """
    budget: Any = settings.budget if given is None else given
    menu = model.menu if settings.from_menu else None
    calibration = model.calibration if menu is None else menu.calibration
    prices = prices_of(budget, model.interface.conditioning, calibration, 1)
    return None if prices is None else float(prices[0])


def _count(top: str, classes: int) -> int:
    # Python refuses numbers of thousands of digits in words of its own.
    if not (top.isdecimal() and len(top) <= MOST_DIGITS and 1 <= int(top) <= classes):
        raise ValueError(f"top={reprlib.repr(top)} must be a whole number from 1 to {classes}, the number of classes.")
    return int(top)


async def _unread(request: Request, most: int) -> None:
    """Takes a body that is not used, for those clients that send all before they hear an answer."""
    size = 0
    async for part in request.stream():
        if (size := size + len(part)) > HEARD * most:
            return


async def _body(request: Request, most: int) -> bytes:
    """The request's body.

    Raises:
        HTTPException: If it is larger than allowed, or a form.
        ValueError: If there is none.
    """
    told = request.headers.get("content-length", "0")
    too_large = HTTPException(413, f"The body is larger than {most:,} bytes, which is what this service takes.")
    # Most clients send all before they hear an answer: they lose the connection if the rest is not read.
    if told.isdigit() and int(told) > HEARD * most:
        raise too_large
    parts, size = [], 0
    async for part in request.stream():
        if (size := size + len(part)) > HEARD * most:
            raise too_large
        if size <= most:
            parts.append(part)
    if size > most:
        raise too_large
    if request.headers.get("content-type", "").startswith("multipart/"):
        raise HTTPException(415, f"The body is a form; {HOW}: curl --data-binary @FILE, requests.post(url, data=...).")
    if not size:
        raise ValueError(f"The body is empty; {HOW}.")
    return b"".join(parts)


def _decoded(model: AdaptiveViT, body: bytes, most_pixels: int) -> Tensor:
    """(C, H, W) uint8.

    Raises:
        ValueError: If it is no picture, or one that is too large.
    """
    try:
        picture = open_image(io.BytesIO(body))
    except ValueError as e:
        raise ValueError(f"The picture cannot be taken: {e}.") from e
    except Exception as e:  # Pillow's readers raise what they like
        raise ValueError("The body cannot be read as a picture: send the bytes of a JPEG, PNG, WebP, ... file.") from e
    width, height = picture.size
    if width * height > most_pixels:
        raise ValueError(f"The picture has {width} x {height} pixels; this service takes {most_pixels:,} at most.")
    try:
        return model.preprocessing(picture, model.net.config)[0]
    except ValueError as e:
        raise ValueError(str(e).replace("picture 0", "The picture", 1)) from e
