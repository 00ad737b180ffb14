"""What a command prints: into pipes whose reader may go away, and, of libraries, into a file."""

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

WRITERS = ("asyncio", "etils", "orbax", "tensorstore")  # folders of what writes checkpoints
LIBRARIES = ("absl", "jax", "orbax", "etils", "tensorstore")  # names of their loggers


class _Pipe(io.FileIO):
    """A pipe that takes everything after its reader has gone."""

    def write(self, data: Any) -> int | None:
        """Writes, or does as if."""
        try:
            return super().write(data)
        except BrokenPipeError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            return len(data)


def outlive_readers() -> None:
    """Lets the process go on as if it were heard when who reads its output goes away: `celo2 … | head`.

    What is printed is lost then, but not the work of hours.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        try:
            number = stream.fileno()
            is_pipe = stat.S_ISFIFO(os.fstat(number).st_mode)
        except (AttributeError, OSError, ValueError):  # closed, or none at all
            continue
        if is_pipe:
            stream.flush()
            pipe = io.BufferedWriter(_Pipe(number, "w", closefd=False))
            lines = stream.line_buffering
            setattr(sys, name, io.TextIOWrapper(pipe, stream.encoding, stream.errors, line_buffering=lines))


@contextmanager
def library_log(path: Path) -> Iterator[None]:
    """Sends what libraries log to a file: on a full disk they log pages, and the error says it in a line.

    After an error it stays so: threads of theirs go on failing, and log it, until the process ends.

    Args:
        path: The file, which is made by the first thing that is logged, and added to.
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
    """Logs what callbacks of libraries raise outside the main thread; returns what ends it.

    Orbax and TensorStore call into event loops that are closed when a checkpoint could not be written.
    All other exceptions go where they went before.
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
    """Whether a traceback passes through a library that writes checkpoints, or through an event loop."""
    files = [Path(frame.filename).parts for frame in traceback.extract_tb(trace)]
    return any(name in parts for parts in files for name in WRITERS)


class _QuietHandler(logging.FileHandler):
    """A file of messages that says nothing where it cannot be written: the disk is full, after all.

    It is open for the time of a message only, so that it need not be closed after an error.
    """

    def emit(self, record: logging.LogRecord) -> None:
        """Writes the message, if the file can be opened."""
        with suppress(OSError):
            super().emit(record)
            if self.stream is not None:
                self.stream.close()
                self.stream = None  # type: ignore[assignment]  # which opens it again

    def handleError(self, record: logging.LogRecord) -> None:
        """Drops the message."""
        del record
