"""Text available in every Python installation: the source code of its standard library.

It replaces the published texts of the language tasks, under its own names: as one text of bytes
for contiguous texts, and as padded records of byte tokens for sentences or articles.
"""

from __future__ import annotations

import functools
import os
import platform
import re
import sys
import sysconfig
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from celo2.tasks.base import Dataset

PAD = 0  # the padding token, as in T5's vocabulary
NUM_SPECIAL = 3  # T5's padding, end and unknown; byte tokens come after them
BYTE_VOCABULARY = NUM_SPECIAL + 256
MAX_BYTES = 8_000_000

RecordUnit = Literal["lines", "paragraphs"]

_SKIPPED_FOLDERS = frozenset({"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"})
_VALID_SHARE = 0.05  # of the files
_VALID_SHARE_OF_TOPICS = 0.1  # of the bytes
_SEPARATORS: Mapping[RecordUnit, re.Pattern[bytes]] = {
    "lines": re.compile(rb"\n"),
    "paragraphs": re.compile(rb"\n\s*\n"),
}


def load_stdlib_text(length: int = 65, *, max_bytes: int = MAX_BYTES) -> Dataset:
    """Loads the source of the running interpreter's standard library, in rows of bytes.

    Files are read in the order of their paths, without tests, up to `max_bytes`; the last
    5 % of the files are the validation split. Each split is one text, cut into rows.

    Args:
        length: Bytes in a row, ≥ 2: a model's context and the byte after it.
        max_bytes: Maximum total bytes of text.

    Returns:
        `text` uint8 `(N, length)` in each split. The name includes Python's version
        (`python-3.11-stdlib`), since the text differs between versions.

    Raises:
        FileNotFoundError: This interpreter has no standard library on disk.
        ValueError: A split has no complete row.
    """
    return _make_dataset("stdlib", max_bytes, lambda files: {"text": _rows(b"".join(files), length)})


def load_pydoc_text(length: int = 65) -> Dataset:
    """Loads Python's English language reference, as printed by `help()`, in rows of bytes.

    The topics are in alphabetical order; the last 10 % of the text are the validation split. The
    file that contains them comes after the part of the library that `load_stdlib_text` reads.

    Args:
        length: Bytes in a row, ≥ 2: a model's context and the byte after it.

    Returns:
        `text` uint8 `(N, length)` in each split, about 660 kB in total; the name includes Python's version.

    Raises:
        FileNotFoundError: This interpreter has no `pydoc_data`.
        ValueError: A split has less than one row.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise FileNotFoundError(
            "this Python lacks pydoc_data.topics, whose text this task learns; use an ordinary Python."
        ) from error
    text = "\n".join(topics[name] for name in sorted(topics)).encode()
    border = round((1 - _VALID_SHARE_OF_TOPICS) * len(text))
    return Dataset(
        name=f"python-{sys.version_info.major}.{sys.version_info.minor}-pydoc",
        train={"text": _rows(text[:border], length)},
        valid={"text": _rows(text[border:], length)},
        origin=f"language reference of Python {platform.python_version()}, PSF licence",
    )


def load_stdlib_records(unit: RecordUnit, length: int, *, max_bytes: int = MAX_BYTES) -> Dataset:
    """Loads the same files as padded records: lines instead of sentences, paragraphs instead of articles.

    Args:
        unit: Unit of a record: `"lines"`, or `"paragraphs"`, which are separated by blank lines. Whitespace
            around records is stripped, and empty records are dropped.
        length: Tokens in a record, ≥ 2; longer records are truncated, shorter ones padded with 0.
        max_bytes: Maximum total bytes of text.

    Returns:
        `tokens` uint16 `(N, length)` in each split; byte b is token b + 3, see `NUM_SPECIAL`. The
        name is, for example, `python-3.11-stdlib-lines`.

    Raises:
        FileNotFoundError: This interpreter has no standard library on disk.
        ValueError: `length` is below 2.
    """
    if length < 2:
        raise ValueError(f"a record needs at least 2 tokens, one to read and one to predict, got {length}.")

    def split(files: Sequence[bytes]) -> dict[str, np.ndarray]:
        records = (record.strip()[:length] for text in files for record in _SEPARATORS[unit].split(text))
        kept = [record for record in records if record]
        tokens = np.frombuffer(b"".join(kept), np.uint8).astype(np.uint16) + np.uint16(NUM_SPECIAL)
        return {"tokens": pad_records(tokens, [len(record) for record in kept], length)}

    return _make_dataset(f"stdlib-{unit}", max_bytes, split)


def pad_records(tokens: np.ndarray, lengths: Sequence[int], length: int) -> np.ndarray:
    """Splits concatenated records into rows `(N, length)`, padded with `PAD` on the right.

    Args:
        tokens: The tokens of all records, `(sum of lengths,)`.
        lengths: Length of each record, at most `length`.
        length: Tokens in a row.
    """
    rows = np.full((len(lengths), length), PAD, tokens.dtype)
    rows[np.arange(length) < np.asarray(lengths, np.int64).reshape(-1, 1)] = tokens
    return rows


def _make_dataset(
    name: str, max_bytes: int, split: Callable[[Sequence[bytes]], Mapping[str, Any]]
) -> Dataset:
    folder = Path(sysconfig.get_path("stdlib"))
    texts = _read_sources(folder, max_bytes)
    if len(texts) < 2:
        raise FileNotFoundError(
            f"found {len(texts)} Python files in {folder}; the text of this task is the standard library's "
            "source, which some embedded interpreters lack: use an ordinary Python."
        )
    border = len(texts) - max(1, round(_VALID_SHARE * len(texts)))
    return Dataset(
        name=f"python-{sys.version_info.major}.{sys.version_info.minor}-{name}",
        train=split(texts[:border]),
        valid=split(texts[border:]),
        origin=f"source code of the standard library of Python {platform.python_version()}, PSF licence",
    )


@functools.lru_cache(maxsize=2)  # a suite needs one text in many shapes
def _read_sources(folder: Path, max_bytes: int) -> tuple[bytes, ...]:
    texts: list[bytes] = []
    room = max_bytes
    for path in _source_paths(folder):
        text = path.read_bytes()
        room -= len(text)
        if room < 0:
            break
        texts.append(text)
    return tuple(texts)


def _source_paths(folder: Path) -> list[Path]:
    paths: list[Path] = []
    for root, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name not in _SKIPPED_FOLDERS]  # not even entered
        paths += [Path(root, name) for name in files if name.endswith(".py")]
    return sorted(paths, key=lambda path: path.relative_to(folder).as_posix())


def _rows(text: bytes, length: int) -> np.ndarray:
    if length < 2 or len(text) < length:
        raise ValueError(
            f"cannot cut rows of {length} bytes (≥ 2) from a text of {len(text)}; raise max_bytes."
        )
    count = len(text) // length
    return np.frombuffer(text, np.uint8, count * length).reshape(count, length)
