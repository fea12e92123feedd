"""Worker processes that run one function over and over."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing.util import Finalize
from typing import Any, Generic, TypeVar, cast

Task = TypeVar("Task")
Result = TypeVar("Result")

_work: Callable[[Any], Any]

# A forked child inherits executors whose locks may have been held by a thread that it does not have. When one is
# collected there, its callback waits for such a lock for ever; so the child keeps them.
_executors: weakref.WeakSet[ProcessPoolExecutor] = weakref.WeakSet()
_of_the_parent: list[ProcessPoolExecutor] = []
os.register_at_fork(after_in_child=lambda: _of_the_parent.extend(_executors))


class DecodingPool(Generic[Task, Result]):
    """Runs `work` elsewhere while this process goes on.

    The workers are started by the first task. They are processes; where a process may not have children (it is
    daemonic, as those of Gymnasium's `AsyncVectorEnv` and SB3's `SubprocVecEnv` are) they are threads, which overlap as
    well, because Pillow decodes without holding the interpreter's lock. A forked child gets workers of its own.

    Args:
        work: What to run; it, tasks and results must be picklable.
        num_workers: 0 runs every task at once, in this process.
    """

    def __init__(self, work: Callable[[Task], Result], num_workers: int) -> None:
        self.work, self.num_workers = work, num_workers
        self._executor: Executor | None = None
        self._started_in: int | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_executor": None, "_started_in": None}

    @property
    def belongs_to_parent(self) -> bool:
        """Whether this process was forked after the workers were started, so that it cannot talk to them."""
        return self._started_in not in (None, os.getpid())

    def submit(self, task: Task) -> Future[Result]:
        """Begins a task.

        Raises:
            RuntimeError: If a worker has died.
        """
        if self.num_workers == 0:
            done: Future[Result] = Future()
            done.set_result(self.work(task))
            return done
        if self._executor is None or self.belongs_to_parent:
            self._started_in = os.getpid()
            if multiprocessing.current_process().daemon:
                self._executor = ThreadPoolExecutor(self.num_workers)
            else:
                executor = ProcessPoolExecutor(self.num_workers, initializer=_begin, initargs=(self.work,))
                self._executor = executor
                _executors.add(executor)
                # A process that multiprocessing has started waits for its children before it tells executors to end;
                # this comes before that, and before the executor's queue is closed (which has priority 10).
                Finalize(executor, _shut_down, (weakref.ref(executor),), exitpriority=100)
        try:
            if isinstance(self._executor, ThreadPoolExecutor):
                return self._executor.submit(self.work, task)
            return self._executor.submit(_run, task)
        except BrokenExecutor as e:
            raise self._died(e) from e

    def result(self, future: Future[Result]) -> Result:
        """Waits for a task.

        Raises:
            RuntimeError: If a worker has died; the next task starts new ones.
        """
        try:
            return future.result()
        except BrokenExecutor as e:
            raise self._died(e) from e

    def end(self) -> None:
        """Waits for what the workers are at, and ends them; the next task starts new ones."""
        executor, self._executor = self._executor, None
        if executor is not None and not self.belongs_to_parent:
            executor.shutdown()

    def _died(self, error: BrokenExecutor) -> RuntimeError:
        self._executor = None
        return RuntimeError(
            f"A process that decodes images has died ({error}), perhaps for want of memory; "
            "call again, or pass fewer num_workers (0: no processes)."
        )


def _shut_down(executor: weakref.ref[ProcessPoolExecutor]) -> None:
    if (alive := executor()) is not None:
        alive.shutdown(cancel_futures=True)


def _begin(work: Callable[[Any], Any]) -> None:
    global _work
    _work = work
    # Ctrl-C reaches the whole group, and so does a cluster's SIGTERM; the parent decides what they mean.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    """Workers of a killed parent would wait for ever: each of them holds their queue open."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _run(task: Any) -> Any:
    return cast(Any, _work(task))
