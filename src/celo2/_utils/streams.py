"""Handles the output of commands: tolerates closed pipes and redirects library logs to a file."""

from __future__ import annotations

import io
import logging
import os
import stat
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

WRITERS = ("asyncio", "etils", "orbax", "tensorstore")  # packages involved in writing checkpoints
LIBRARIES = ("absl", "jax", "orbax", "etils", "tensorstore")  # loggers to redirect


class _Pipe(io.FileIO):
    """Pipe that discards all output once its reader has closed it."""

    def write(self, data: Any) -> int | None:
        """Writes the data, or pretends to if the reader has gone."""
        try:
            return super().write(data)
        except BrokenPipeError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            return len(data)


def outlive_readers() -> None:
    """Lets the process continue if the reader of its output closes the pipe, as in `celo2 … | head`.

    Later output is lost, but not hours of work.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        try:
            number = stream.fileno()
            is_pipe = stat.S_ISFIFO(os.fstat(number).st_mode)
        except (AttributeError, OSError, ValueError):  # closed or absent
            continue
        if is_pipe:
            stream.flush()
            pipe = io.BufferedWriter(_Pipe(number, "w", closefd=False))
            lines = stream.line_buffering
            setattr(sys, name, io.TextIOWrapper(pipe, stream.encoding, stream.errors, line_buffering=lines))


@contextmanager
def library_log(path: Path) -> Iterator[None]:
    """Redirects library logs to a file: on a full disk they fill pages, where the error takes one line.

    The redirection stays after an error: library threads keep failing and logging until the process ends.

    Args:
        path: The file, created by the first message and appended to.
    """
    handler = _QuietHandler(path, delay=True, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s: %(message)s"))
    before = {}
    for name in LIBRARIES:
        logger = logging.getLogger(name)
        before[logger] = (logger.handlers[:], logger.propagate)
        logger.handlers, logger.propagate = [handler], False
    restore = _log_failed_callbacks()
    yield
    restore()
    for logger, (handlers, propagate) in before.items():
        logger.handlers, logger.propagate = handlers, propagate
    handler.close()


def _log_failed_callbacks() -> Callable[[], None]:
    """Logs exceptions in library callbacks outside the main thread; returns a function that ends this.

    Orbax and TensorStore call into event loops that are closed if a checkpoint could not be written. All
    other exceptions go to the previous handlers.
    """
    places = ((threading, "excepthook"), (sys, "excepthook"), (sys, "unraisablehook"))
    before = {(module, name): getattr(module, name) for module, name in places}
    for (module, name), hook in before.items():

        def handle(*failure: Any, hook: Callable[..., Any] = hook) -> None:
            known = failure if len(failure) == 3 else tuple(failure[0])[:3]
            if threading.current_thread() is threading.main_thread() or not _is_of_libraries(known[2]):
                hook(*failure)
            else:
                logging.getLogger(LIBRARIES[0]).error("a callback failed", exc_info=known)

        setattr(module, name, handle)

    def restore() -> None:
        for (module, name), hook in before.items():
            setattr(module, name, hook)

    return restore


def _is_of_libraries(trace: TracebackType | None) -> bool:
    """Returns whether a traceback passes through a checkpoint-writing library or an event loop."""
    files = [Path(frame.filename).parts for frame in traceback.extract_tb(trace)]
    return any(name in parts for parts in files for name in WRITERS)


class _QuietHandler(logging.FileHandler):
    """File handler that ignores write errors, since the disk may be full.

    The file is open only while a message is written, so it need not be closed after an error.
    """

    def emit(self, record: logging.LogRecord) -> None:
        """Writes the message if the file can be opened."""
        with suppress(OSError):
            super().emit(record)
            if self.stream is not None:
                self.stream.close()
                self.stream = None  # type: ignore[assignment]  # makes the base class open it again

    def handleError(self, record: logging.LogRecord) -> None:
        """Drops the message."""
        del record
