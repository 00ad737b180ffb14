"""Text for the language-model task: source code that every Python installation has."""

from __future__ import annotations

import os
import platform
import sys
import sysconfig
from pathlib import Path

import numpy as np

from celo2.tasks.base import Dataset

__all__ = ["load_stdlib_text"]

_SKIPPED_FOLDERS = frozenset({"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"})
_VALID_SHARE = 0.05  # of the files


def load_stdlib_text(length: int = 65, *, max_bytes: int = 8_000_000) -> Dataset:
    """The Python source of the running interpreter's standard library, in rows of bytes.

    The files are taken in the order of their paths, without the tests, until `max_bytes`; the last
    5 % of them are the validation split. Each split is one text, cut into rows.

    Args:
        length: Bytes in a row, ≥ 2: a model's context and the byte after it.
        max_bytes: Most bytes of text in all.

    Returns:
        `text` uint8 `(N, length)` in each split. The name carries Python's version
        (`python-3.11-stdlib`), since other versions have other text.

    Raises:
        FileNotFoundError: This interpreter has no standard library on disk.
        ValueError: A split has less than one row.
    """
    folder = Path(sysconfig.get_path("stdlib"))
    texts = _read_sources(folder, max_bytes)
    if len(texts) < 2:
        raise FileNotFoundError(
            f"found {len(texts)} Python files in {folder}; the text of this task is the standard library's "
            "source, which some embedded interpreters lack: use an ordinary Python."
        )
    border = len(texts) - max(1, round(_VALID_SHARE * len(texts)))
    return Dataset(
        name=f"python-{sys.version_info.major}.{sys.version_info.minor}-stdlib",
        train={"text": _rows(b"".join(texts[:border]), length)},
        valid={"text": _rows(b"".join(texts[border:]), length)},
        origin=f"source code of the standard library of Python {platform.python_version()}, PSF licence",
    )


def _read_sources(folder: Path, max_bytes: int) -> list[bytes]:
    texts: list[bytes] = []
    room = max_bytes
    for path in _source_paths(folder):
        text = path.read_bytes()
        room -= len(text)
        if room < 0:
            break
        texts.append(text)
    return texts


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
