"""Handles signals that end a command: Ctrl-C, SIGTERM (kill, clusters) and SIGHUP (a closed terminal).

All three raise a KeyboardInterrupt that carries the signal, so that code for Ctrl-C handles the others too.
A signal that the process was told to ignore, for example by nohup, is still ignored.

Python discards exceptions raised in finalizers and in callbacks of the garbage collector, and JAX has such a
callback. A signal that arrives there is therefore delivered once more.
"""

from __future__ import annotations

import _thread
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)  # Windows has no SIGHUP
REDELIVERY_DELAY = 0.01  # seconds
STATUSES = tuple(128 + number for number in SIGNALS)  # the shells' convention


class Stopped(KeyboardInterrupt):
    """Raised if a signal ends the work.

    Attributes:
        number: The number of the signal.

    Args:
        number: The number of the signal.
        message: A description of what was kept, and how to continue.
    """

    def __init__(self, number: int, message: str = "") -> None:
        super().__init__(message)
        self.number = number


def exit_status(stop: KeyboardInterrupt) -> int:
    """Returns the exit status after a signal: 130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP."""
    return 128 + getattr(stop, "number", signal.SIGINT)


@contextmanager
def raising_on_stops() -> Iterator[None]:
    """Makes the signals raise `Stopped` in a `with` block, instead of having their default effect."""

    def stop(number: int, _: Any) -> None:
        raise Stopped(number)

    with _handling(stop):
        yield


@contextmanager
def collecting_stops(notice: str) -> Iterator[list[int]]:
    """Collects the first signal's number instead of raising; the second signal raises.

    Args:
        notice: The text to print on the first signal.
    """
    received: list[int] = []

    def note(number: int, _: Any) -> None:
        if received:
            raise Stopped(number)
        received.append(number)
        os.write(2, f"\n{notice}\n".encode())  # print is not reentrant

    with _handling(note):
        yield received


@contextmanager
def interruptible_pool() -> Iterator[ThreadPoolExecutor]:
    """Yields a thread pool that interrupts do not wait for, since compilations cannot be cancelled."""
    pool = ThreadPoolExecutor()
    try:
        yield pool
    except KeyboardInterrupt:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()


def leave_if_stopped(status: int) -> None:
    """Exits the process immediately if a signal has ended its work.

    A normal exit would wait for compiling threads, or crash in a compiler that is torn down under them.
    """
    if status in STATUSES:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        os._exit(status)


@contextmanager
def _handling(handler: Callable[[int, Any], None]) -> Iterator[None]:
    """Installs a handler in the main thread, which alone may handle signals; elsewhere does nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous: dict[int, Any] = {}
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            previous[number] = signal.signal(number, handler)
    try:
        with _redelivering():
            yield
    finally:
        for number, before in previous.items():
            signal.signal(number, before)


@contextmanager
def _redelivering() -> Iterator[None]:
    """Delivers a signal again if Python discards the exception that its handler raised.

    The hook cannot raise it again, since exceptions of the hook are discarded, too: a timer delivers the
    signal after the hook has returned.
    """
    previous = sys.unraisablehook
    timers: list[threading.Timer] = []

    def hook(discarded: Any) -> None:
        if not isinstance(discarded.exc_value, Stopped):
            previous(discarded)
            return
        timer = threading.Timer(REDELIVERY_DELAY, _deliver, [discarded.exc_value.number])
        timer.daemon = True
        timers.append(timer)
        timer.start()

    sys.unraisablehook = hook
    try:
        yield
        while timers:  # the handler raises here, before the block is left
            timers.pop().join()
    finally:
        if sys.unraisablehook is hook:  # a hook installed since, such as `library_log`'s, stays
            sys.unraisablehook = previous
        for timer in timers:
            timer.cancel()


def _deliver(number: int) -> None:
    """Sends a signal to the main thread; where the system allows it, one that also ends a wait."""
    if hasattr(signal, "pthread_kill"):
        signal.pthread_kill(threading.main_thread().ident, number)  # type: ignore[arg-type]
    else:
        _thread.interrupt_main(signal.Signals(number))
