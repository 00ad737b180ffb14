"""Small files: read with a limit on their size, written whole or not at all, JSON of whatever content."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

PARTIAL = re.compile(r"\..+\.(\d+)\.partial")  # what `write_atomic` writes first: .NAME.PROCESS.partial
OLD = 3600.0  # seconds after which a partial file is nobody's, wherever the process was


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
    """Writes beside the path, syncs, then renames: a reader sees the old file or the new one.

    Raises:
        OSError: With the path.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        raise type(error)(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        partial.unlink(missing_ok=True)


def remove_partial_files(folder: Path) -> None:
    """Removes what killed processes left of files that they were writing, in a folder and those below."""
    for parent, _, names in os.walk(folder):  # which minds no folder that goes away meanwhile
        for match in filter(None, map(PARTIAL.fullmatch, names)):
            path = Path(parent, match[0])
            with suppress(FileNotFoundError):  # its process has finished it
                if not _is_alive(int(match[1])) or time.time() - path.stat().st_mtime > OLD:
                    path.unlink()


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True  # another user's, say
    return True


def parse_object(text: str | bytes) -> dict[str, Any]:
    """The JSON object in a text.

    Raises:
        ValueError: It is no JSON, or not an object.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"expected a JSON object, found what is no JSON ({error}).") from error
    if not isinstance(value, dict):
        raise ValueError(f"expected a JSON object, found {json.dumps(value):.40}.")
    return value


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        OSError: It cannot be read.
        ValueError: See `parse_object`; the message begins with the path.
    """
    try:
        return parse_object(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


class Lines(NamedTuple):
    """Holds the records of a file of JSON lines, and the numbers of its other lines.

    Attributes:
        records: The objects that are as they should be, in order.
        odd: The numbers of the other lines, from 1, but for a last one that a killed process left torn.
    """

    records: list[dict[str, Any]]
    odd: list[int]


def read_lines(path: Path, is_record: Callable[[dict[str, Any]], bool]) -> Lines:
    """Reads a file of JSON lines; there may be none.

    Args:
        path: The file.
        is_record: Whether an object is as it should be.
    """
    lines = path.read_bytes().split(b"\n") if path.exists() else [b""]
    found = Lines([], [])
    for number, line in enumerate(lines, 1):
        try:
            record = parse_object(line)
        except ValueError:
            record = None
        if record is not None and is_record(record):
            found.records.append(record)
        elif number < len(lines):  # what follows the last line's end is empty, or torn
            found.odd.append(number)
    return found
