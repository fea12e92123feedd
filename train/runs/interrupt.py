"""Ctrl-C and SIGTERM at a moment when a checkpoint is consistent."""

from __future__ import annotations

import _thread
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

NOTE = b"\nStopping as soon as it can be gone on from there; once more: at once.\n"
SIGNALS = (signal.SIGINT, signal.SIGTERM)
Handler = Callable[[int, FrameType | None], object]
AGAIN = 0.05
"""Seconds after which a signal is raised again whose exception Python has dropped: a destructor has ended by then."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, which clusters send before they end a process: as Ctrl-C, but for the exit status."""


class Interruption:
    """Whether somebody wants the process to stop, and how: ask between two steps."""

    def __init__(self) -> None:
        self._signal: int | None = None

    def __call__(self) -> bool:
        """Whether Ctrl-C has been pressed, or SIGTERM sent."""
        return self._signal is not None

    def heed(self) -> None:
        """Raises what was asked for, if anything was.

        Raises:
            KeyboardInterrupt: After Ctrl-C.
            Terminated: After SIGTERM.
        """
        if self._signal is not None:
            raise _error_of(self._signal)

    def remember(self, number: int, frame: FrameType | None) -> None:
        """Handles a signal: the first one is remembered, the second raises at once."""
        if self._signal is not None:
            raise _error_of(number)
        self._signal = number
        os.write(2, NOTE)  # print may have been interrupted in the middle of itself


@contextmanager
def deferred_interrupt() -> Iterator[Interruption]:
    """Remembers the first Ctrl-C or SIGTERM instead of raising it; a second one raises at once.

    Yields:
        Whether there was one. Outside the main thread, where signals cannot be caught, there never is.
    """
    interruption = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield interruption
        return
    with _handled(interruption.remember):
        yield interruption


@contextmanager
def signals_as_interrupts() -> Iterator[None]:
    """Lets Ctrl-C raise KeyboardInterrupt and SIGTERM `Terminated`, so that what is open is closed.

    A library that meets either inside its own code may raise an error of its own, as safetensors does ("could not
    determine the shape"): whatever error comes after a signal, it is the signal that ended the work. And what is raised
    in a destructor is dropped by Python, so that it is raised once more.

    Raises:
        KeyboardInterrupt: After Ctrl-C.
        Terminated: After SIGTERM.
    """
    received: list[int] = []
    again: list[threading.Timer] = []
    report = sys.unraisablehook

    def end(number: int, frame: FrameType | None) -> None:
        received.append(number)
        raise _error_of(number)

    def dropped(what: sys.UnraisableHookArgs) -> None:
        if not isinstance(what.exc_value, KeyboardInterrupt):
            return report(what)
        again.append(threading.Timer(AGAIN, _thread.interrupt_main, [received[-1] if received else signal.SIGINT]))
        again[-1].daemon = True
        again[-1].start()

    sys.unraisablehook = dropped
    try:
        with _handled(end):
            try:
                yield
            finally:
                for timer in again:
                    timer.cancel()
    except Exception as e:
        if received:
            raise _error_of(received[0]) from e
        raise
    finally:
        sys.unraisablehook = report


@contextmanager
def _handled(handler: Handler) -> Iterator[None]:
    """Hands Ctrl-C and SIGTERM to a handler, and back to those that had them."""
    # A shell starts what it puts into the background with Ctrl-C ignored, and so it stays.
    heard = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    previous = {number: signal.signal(number, handler) for number in heard}
    try:
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, before)


def _error_of(number: int) -> KeyboardInterrupt:
    return Terminated() if number == signal.SIGTERM else KeyboardInterrupt()
