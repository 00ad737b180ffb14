"""Locks a folder for a single writer; refuses a second one with a message that names the first.

A folder belongs to the command that began it: other kinds of commands are refused too, since `celo2 report`
could not tell their results apart.

The lock is the operating system's (flock, through the library filelock), which is released when its process
ends, in whatever way and on whatever host. There are therefore no stale locks to detect, which process
numbers and start times could not do across hosts. A file beside the lock names the holder, for people only.
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
_OWNERS = {  # file → the commands that write it into their folders
    "suite.json": ("celo2 compare", "celo2 evaluate"),
    "metrics.jsonl": ("celo2 meta-train",),
    "generations.jsonl": ("celo2 search",),
    "probe.json": ("celo2 probe", "celo2 meta-train"),
}


class FolderInUseError(OSError):
    """Raised if another process writes into a folder."""


@contextmanager
def lock_folder(folder: Path, command: str) -> Iterator[None]:
    """Holds the lock of an existing folder in a `with` block; readers need no lock.

    Args:
        folder: The folder.
        command: The command that holds the lock, such as "celo2 evaluate", for messages to refused ones.

    Raises:
        ValueError: The folder has results of another kind of command.
        FolderInUseError: Another process holds the lock.
        OSError: The folder cannot be written, or its file system has no locks.
    """
    check_owner(folder, command)
    from filelock import FileLock, Timeout  # installed by the extra meta

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
        with suppress(OSError):  # a full disk is reported by the caller's own writes
            write_atomic(holder, _describe_this_process(command))
        yield
    finally:
        with suppress(OSError):
            holder.unlink(missing_ok=True)
        lock.release()


def check_owner(folder: Path, command: str) -> None:
    """Raises a ValueError if a folder has results of another kind of command."""
    for name, commands in _OWNERS.items():
        if command not in commands and (folder / name).exists():
            raise ValueError(
                f"{folder} has results of {' or '.join(commands)} ({name}); use another folder for {command}."
            )


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
