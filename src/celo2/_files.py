"""Small files: read with a limit on their size, written whole or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

__all__ = ["read_limited", "read_records", "write_atomic"]


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


def read_records(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines; none without the file, and without what a killed run left torn."""
    records = []
    for line in path.read_text(errors="replace").splitlines() if path.exists() else []:
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(record, dict):
            records.append(record)
    return records
