"""Checksums of checkpoints: hashes of a checkpoint's files, stored in a file beside them.

Without them a truncated file is detected only if its format happens to reveal it and, on several processes,
only by the process that reads it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from celo2._utils.files import read_object, write_atomic

CHECKSUMS = "checksums.json"  # in the folder of the checkpoint: {"relative/path": "sha256 in hexadecimal"}


class Ranking(NamedTuple):
    """Checkpoints, ranked by trustworthiness.

    Attributes:
        steps: Steps of usable checkpoints: verified ones, newest first, then those without checksums.
        doubts: The reason for distrust of all other steps and of those without checksums.
    """

    steps: list[int]
    doubts: dict[int, str]


def rank_checkpoints(folder: Path, steps: Iterable[int]) -> Ranking:
    """Ranks the checkpoints `folder/STEP` of these steps.

    A checkpoint without checksums is most likely complete (the run was killed before it wrote them, or is of
    a version that wrote none), but that is not certain; an older verified one leads to the same result.
    """
    verified, unverified = [], []
    doubts: dict[int, str] = {}
    for step in sorted(steps, reverse=True):
        damage = find_damage(folder / str(step))
        if damage:
            doubts[step] = damage
        elif (folder / str(step) / CHECKSUMS).exists():
            verified.append(step)
        else:
            doubts[step] = f"it has no {CHECKSUMS}, so that nothing says whether it is whole"
            unverified.append(step)
    return Ranking(verified + unverified, doubts)


def write_checksums(folder: Path) -> None:
    """Writes the hashes of a finished checkpoint's files."""
    write_atomic(folder / CHECKSUMS, json.dumps(_compute_checksums(folder), indent=1).encode())


def find_damage(folder: Path) -> str:
    """Describes a checkpoint's damage; returns "" if there is none, or if it has files but no checksums."""
    found = _compute_checksums(folder)
    if not found:
        return "it is empty"
    try:
        noted = read_object(folder / CHECKSUMS)
    except FileNotFoundError:
        return ""
    except (OSError, ValueError) as error:
        return str(error)
    if not noted:
        return f"{folder / CHECKSUMS} names no file"
    changed = sorted(name for name in noted if found.get(name) != noted[name])
    return f"{changed[0]} is not as it was written" if changed else ""


def _compute_checksums(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != CHECKSUMS)
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
    }
