"""Whether a checkpoint is as it was written: the sizes and hashes of its files, in a file beside them.

Without them a cut file is noticed only if its format happens to notice, and on several processes only by
the process that reads it.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from celo2._files import write_atomic

__all__ = ["CHECKSUMS", "find_damage", "write_checksums"]

CHECKSUMS = "checksums.json"  # in the folder of the checkpoint: {"relative/path": "sha256 in hexadecimal"}


def write_checksums(folder: Path) -> None:
    """Notes what a finished checkpoint consists of."""
    write_atomic(folder / CHECKSUMS, json.dumps(_compute_checksums(folder), indent=1).encode())


def find_damage(folder: Path) -> str:
    """What is wrong with a checkpoint, in words; empty if nothing is, or if it has no checksums.

    A run that was killed between a checkpoint and its checksums leaves none; the checkpoint is whole.
    """
    try:
        noted = json.loads((folder / CHECKSUMS).read_text())
    except FileNotFoundError:
        return ""
    except (OSError, ValueError) as error:
        return f"{CHECKSUMS}: {error}"
    found = _compute_checksums(folder)
    changed = sorted(name for name in noted if found.get(name) != noted[name])
    return f"{changed[0]} is not as it was written" if changed else ""


def _compute_checksums(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != CHECKSUMS)
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
    }
