"""Requests that arrive while the network is busy are computed together next, as many as a latency bound allows."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")
Answer = TypeVar("Answer")
SMOOTHING = 0.2


class BusyError(RuntimeError):
    """There are as many requests waiting as may."""


@dataclass(frozen=True)
class Limits:
    """How requests are batched.

    Attributes:
        seconds: A batch should take no longer, by what batches have taken so far; one request always runs.
        largest: Requests in a batch at most.
        waiting: Requests that wait at most; more are refused.
    """

    seconds: float = 0.1
    largest: int = 64
    waiting: int = 1024


class Batcher(Generic[Item, Answer]):
    """Computes requests in batches, in a thread of its own.

    Nobody waits for a batch to fill: a lone request runs at once, and what arrives meanwhile is the next batch.

    Args:
        compute: From the items of a batch to as many answers; called by one thread at a time.
        limits: How requests are batched.
        seen: Called with the size of every batch and its seconds.
    """

    def __init__(
        self,
        compute: Callable[[Sequence[Item]], Sequence[Answer]],
        limits: Limits | None = None,
        seen: Callable[[int, float], None] = lambda size, seconds: None,
    ) -> None:
        self._compute, self.limits, self._seen = compute, limits or Limits(), seen
        self._waiting: deque[tuple[Item, asyncio.Future[Answer]]] = deque()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="network")
        self._running: asyncio.Task[None] | None = None
        self._each = 0.0

    def __len__(self) -> int:
        return len(self._waiting)

    async def ask(self, item: Item) -> Answer:
        """The answer for one item.

        Raises:
            BusyError: If too many wait.
            Exception: What `compute` raised for its batch.
        """
        if len(self._waiting) >= self.limits.waiting:
            raise BusyError(f"{len(self._waiting)} requests are waiting already")
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._run())
        return await future

    async def close(self) -> None:
        """Answers what waits, and ends the thread."""
        if self._running is not None:
            await self._running
        self._thread.shutdown()

    def size(self) -> int:
        """How many of the waiting requests the next batch has."""
        allowed = self.limits.largest if not self._each else int(self.limits.seconds / self._each)
        return min(len(self._waiting), self.limits.largest, max(allowed, 1))

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            taken = [self._waiting.popleft() for _ in range(self.size())]
            batch = [(item, future) for item, future in taken if not future.done()]  # whoever went away is left out
            if not batch:
                continue
            begun = time.perf_counter()
            try:
                answers = await loop.run_in_executor(self._thread, self._compute, [item for item, _ in batch])
            except Exception as e:
                for _, future in batch:
                    _settle(future, error=e)
                continue
            seconds = time.perf_counter() - begun
            each = seconds / len(batch)
            self._each = each if not self._each else self._each + SMOOTHING * (each - self._each)
            self._seen(len(batch), seconds)
            for (_, future), answer in zip(batch, answers, strict=True):
                _settle(future, answer)


def _settle(future: asyncio.Future[Any], answer: Any = None, error: Exception | None = None) -> None:
    """Answers who still waits."""
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(answer)
