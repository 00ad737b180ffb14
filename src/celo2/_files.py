"""Small files: read with a limit on their size, written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["read_limited", "write_atomic"]


def read_limited(path: Path, max_bytes: int) -> bytes:
    """The bytes of a regular file.

    Raises:
        ValueError: It is a device or a pipe, or has more than `max_bytes` bytes.
    """
    if not path.is_file():
        raise ValueError(f"{path} is not a regular file.")
    with path.open("rb") as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise ValueError(f"{path} has {path.stat().st_size} bytes, expected at most {max_bytes}.")
    return data


def write_atomic(path: Path, data: bytes) -> None:
    """Writes beside the path, syncs, then renames: a reader sees the old file or the new one."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
