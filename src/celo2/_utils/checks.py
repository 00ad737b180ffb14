"""Checks command arguments before any work is done: numeric ranges and writable paths."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

from celo2.constants import FLOAT32_MAX, FLOAT32_TINY

MAX_COUNT = 2**31 - 1  # steps and other counts are int32 on the device
NUM_SEEDS = 2**32  # jax.random.key takes seeds modulo this
MAX_DEVICES = 1024  # host devices that a processor may be split into


def check_rates(what: str, rates: Sequence[float]) -> None:
    """Raises a ValueError unless `rates` has one or more learning rates, distinct and positive in float32."""
    if not rates or len(set(rates)) != len(rates) or not all(FLOAT32_TINY <= x <= FLOAT32_MAX for x in rates):
        shown = [f"{rate:g}" if isinstance(rate, float) else rate for rate in rates]
        raise ValueError(
            f"{what} must be one or more different positive numbers within float32, got {shown!s:.200}."
        )


def check_seeds(first: int, count: int = 1) -> None:
    """Raises a ValueError unless the `count` seeds from `first` are in [0, 2³²); others would repeat them."""
    if not (count >= 1 and first >= 0 and first + count <= NUM_SEEDS):
        last = f" to {first + count - 1}" if count > 1 else ""
        raise ValueError(f"seeds must be whole numbers in [0, 2³²), got {first}{last}.")


def check_count(what: str, count: int, least: int = 0) -> None:
    """Raises a ValueError unless a number of steps, runs or the like is in [`least`, 2³¹ - 1]."""
    if not least <= count <= MAX_COUNT:
        raise ValueError(f"{what} must be a whole number from {least} to {MAX_COUNT}, got {count}.")


def check_devices(devices: int) -> None:
    """Raises a ValueError for an impossible number of devices; 0 means all of them."""
    if not 0 <= devices <= MAX_DEVICES:
        raise ValueError(f"devices must be from 1 to {MAX_DEVICES}, or 0 for all, got {devices}.")


def check_memory(gib: float) -> None:
    """Raises a ValueError unless a limit in GiB is positive and finite."""
    if not 0 < gib < math.inf:
        raise ValueError(f"max_memory must be positive and finite (GiB), got {gib}.")


def check_out_folder(folder: Path) -> None:
    """Checks that a folder exists or can be created, and is writable.

    Raises:
        NotADirectoryError: The folder, or one of its parents, is a file.
        PermissionError: The user may not write there.
    """
    there = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    if not there.is_dir():
        raise NotADirectoryError(f"{folder} cannot be a folder, because {there} is a file; choose another.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(f"{folder} cannot be written: {there} is not yours to write; choose another.")


def check_out_file(file: Path) -> None:
    """Checks that a file can be written.

    Raises:
        OSError: It is a folder, or its parent folder does not exist or is not writable.
    """
    if file.is_dir():
        raise IsADirectoryError(f"{file} is a folder; name a file in it.")
    if not file.absolute().parent.is_dir():
        raise FileNotFoundError(f"there is no folder {file.parent} to write {file.name} into.")
    check_out_folder(file.absolute().parent)
