"""Locks that forked children find open."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import threading
import weakref

import pytest

from supernet.bounded import Bounded
from supernet.forked_lock import ForkedLock


def held_elsewhere(lock: ForkedLock) -> bool:
    """Whether another thread would wait for it."""
    free: list[bool] = []

    def ask() -> None:
        free.append(lock.here.acquire(blocking=False))
        if free[0]:
            lock.here.release()

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    return not free[0]


def test_threads_exclude_each_other_and_one_may_enter_twice() -> None:
    lock = ForkedLock()
    with lock.here, lock.here:
        assert held_elsewhere(lock)
    assert not held_elsewhere(lock)


@pytest.mark.parametrize("copied", [copy.deepcopy, copy.copy, lambda lock: pickle.loads(pickle.dumps(lock))])
def test_copies_are_open_and_locks_of_their_own(copied) -> None:
    lock = ForkedLock()
    with lock.here:
        other = copied(lock)
        assert other.here is not lock.here
        assert not held_elsewhere(other)
    with other.here:
        assert not held_elsewhere(lock)


def leaves(child: int) -> int:
    """A child's exit status."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_does_not_wait_for_a_thread_of_its_parent() -> None:
    lock, held, done = ForkedLock(), threading.Event(), threading.Event()

    def hold() -> None:
        with lock.here:
            held.set()
            done.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    child = os.fork()
    if not child:
        os._exit(0 if lock.here.acquire(blocking=False) else 1)
    done.set()
    thread.join()
    assert leaves(child) == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_leaves_the_block_that_it_was_forked_in() -> None:
    lock = ForkedLock()
    try:
        with lock.here:
            child = os.fork()
    except RuntimeError:
        os._exit(1)
    if not child:
        os._exit(0)
    assert leaves(child) == 0
    assert not held_elsewhere(lock)


def test_what_has_a_lock_is_freed_when_nobody_has_it() -> None:
    kept: Bounded[memoryview] = Bounded(100)
    gone = weakref.ref(kept)
    del kept
    gc.collect()
    assert gone() is None
