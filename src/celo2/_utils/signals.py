"""Signals that end a command: Ctrl-C, SIGTERM (of kill and of clusters), SIGHUP (of a terminal that closes).

All three become a KeyboardInterrupt, which knows its signal, so that what handles Ctrl-C handles the others.
One that the process was told to ignore, by nohup say, stays ignored.
"""

from __future__ import annotations

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
)  # Windows lacks the last
STATUSES = tuple(128 + number for number in SIGNALS)  # the shells' convention


class Stopped(KeyboardInterrupt):
    """A signal has ended the work.

    Attributes:
        number: Of the signal.

    Args:
        number: Of the signal.
        message: What is left behind, and how to go on.
    """

    def __init__(self, number: int, message: str = "") -> None:
        super().__init__(message)
        self.number = number


def exit_status(stop: KeyboardInterrupt) -> int:
    """The status of a process that a signal has ended: 130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP."""
    return 128 + getattr(stop, "number", signal.SIGINT)


@contextmanager
def raising_on_stops() -> Iterator[None]:
    """Raises `Stopped` where the process would end at once, or SIGINT raise a plain KeyboardInterrupt."""

    def stop(number: int, _: Any) -> None:
        raise Stopped(number)

    with _handling(stop):
        yield


@contextmanager
def collecting_stops(notice: str) -> Iterator[list[int]]:
    """Collects the first signal's number instead of ending in the middle of something; the next one ends it.

    Args:
        notice: Shown when the first has come.
    """
    received: list[int] = []

    def note(number: int, _: Any) -> None:
        if received:
            raise Stopped(number)
        received.append(number)
        os.write(2, f"\n{notice}\n".encode())  # print could be in the middle of printing

    with _handling(note):
        yield received


@contextmanager
def interruptible_pool() -> Iterator[ThreadPoolExecutor]:
    """Threads that an interrupt does not wait for: a compilation takes minutes, and cannot be ended."""
    pool = ThreadPoolExecutor()
    try:
        yield pool
    except KeyboardInterrupt:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()


def leave_if_stopped(status: int) -> None:
    """Ends the process at once if a signal has ended its work.

    An orderly end would wait for threads that compile, or crash in the compiler that they have left half-way.
    """
    if status in STATUSES:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        os._exit(status)


@contextmanager
def _handling(handler: Callable[[int, Any], None]) -> Iterator[None]:
    """Only the main thread may handle signals; elsewhere this does nothing."""
    previous: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                previous[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, before)
