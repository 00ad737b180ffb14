"""Reads size-limited files, writes atomically, and reads JSON and JSON lines tolerantly."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

PARTIAL = re.compile(r"\..+\.(\d+)\.partial")  # temporary files of `open_atomic`: .NAME.PROCESS.partial
OLD = 3600.0  # seconds after which a partial file counts as abandoned, whatever host its process ran on


def read_limited(path: Path, max_bytes: int) -> bytes:
    """Reads the bytes of a regular file.

    Raises:
        ValueError: The file is a device or a pipe, or has more than `max_bytes` bytes.
    """
    if not path.is_file():
        raise ValueError(f"{path} is not a regular file.")
    with path.open("rb") as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise ValueError(f"{path} has {path.stat().st_size} bytes, expected at most {max_bytes}.")
    return data


def write_atomic(path: Path, data: bytes) -> None:
    """Writes a file atomically; see `open_atomic`."""
    with open_atomic(path) as file:
        file.write(data)


@contextmanager
def open_atomic(path: Path) -> Iterator[BinaryIO]:
    """Opens a temporary file, which is synced and renamed, so that readers see the old file or the new one.

    Raises:
        OSError: The file cannot be written; the error carries the path.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        raise type(error)(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        partial.unlink(missing_ok=True)


def remove_partial_files(folder: Path) -> None:
    """Removes partial files of killed processes from a folder and its subfolders."""
    for parent, _, names in os.walk(folder):  # tolerates folders that disappear meanwhile
        for match in filter(None, map(PARTIAL.fullmatch, names)):
            path = Path(parent, match[0])
            with suppress(FileNotFoundError):  # its process has renamed it meanwhile
                if not _is_alive(int(match[1])) or time.time() - path.stat().st_mtime > OLD:
                    path.unlink()


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True  # it belongs to another user
    return True


def parse_object(text: str | bytes) -> dict[str, Any]:
    """Parses a JSON object.

    Raises:
        ValueError: The text is not JSON, or not an object.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"expected a JSON object, found what is no JSON ({error}).") from error
    if not isinstance(value, dict):
        raise ValueError(f"expected a JSON object, found {json.dumps(value):.40}.")
    return value


def read_object(path: Path) -> dict[str, Any]:
    """Reads a JSON object from a file.

    Raises:
        OSError: The file cannot be read.
        ValueError: See `parse_object`; the message begins with the path.
    """
    try:
        return parse_object(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


class Lines(NamedTuple):
    """Records of a JSON-lines file, and the numbers of its invalid lines.

    Attributes:
        records: The valid objects, in order.
        odd: The numbers of the invalid lines, from 1, excluding a last line truncated by a killed process.
    """

    records: list[dict[str, Any]]
    odd: list[int]


def read_lines(path: Path, is_record: Callable[[dict[str, Any]], bool]) -> Lines:
    """Reads a JSON-lines file, which may be missing.

    Args:
        path: The file.
        is_record: Returns whether an object is a valid record.
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
        elif number < len(lines):  # the rest after the last newline is empty or truncated
            found.odd.append(number)
    return found
