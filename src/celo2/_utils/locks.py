"""One writer for a folder: who else would write into it is refused, and told who does.

The lock is the operating system's (flock, by way of the library filelock), which ends with its process
however that ends, on whatever host: no lock of a dead process has to be recognised, which process numbers
and start times cannot do across hosts. Beside it a file says who holds it, for people; nothing depends on it.
"""

from __future__ import annotations

import datetime
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from celo2._utils.files import read_object, write_atomic

LOCK_FILE, HOLDER_FILE = ".lock", ".lock.json"


class FolderInUseError(OSError):
    """Another process writes into a folder."""


@contextmanager
def lock_folder(folder: Path, command: str) -> Iterator[None]:
    """Holds the lock of a folder, which must exist; what only reads needs none.

    Args:
        folder: The folder.
        command: What is done, for whoever is refused: "celo2 evaluate", say.

    Raises:
        FolderInUseError: Another process holds it.
        OSError: The folder cannot be written, or its file system has no locks.
    """
    from filelock import FileLock, Timeout  # of the extra meta

    lock = FileLock(folder / LOCK_FILE, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise FolderInUseError(
            f"{folder} is in use by {_describe_holder(folder)}; wait until that has ended, or use another "
            "folder."
        ) from None
    holder = folder / HOLDER_FILE
    try:
        with suppress(OSError):  # a full disk is for the caller's own files to tell
            write_atomic(holder, _describe_this_process(command))
        yield
    finally:
        with suppress(OSError):
            holder.unlink(missing_ok=True)
        lock.release()


def _describe_this_process(command: str) -> bytes:
    now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    facts = {"command": command, "process": os.getpid(), "host": socket.gethostname(), "since": now}
    return f"{json.dumps(facts)}\n".encode()


def _describe_holder(folder: Path) -> str:
    try:
        facts = read_object(folder / HOLDER_FILE)
    except (OSError, ValueError):
        return "another process"
    command, process, host, since = (facts.get(name) for name in ("command", "process", "host", "since"))
    return f"{command}, process {process} on {host} since {since}"
