"""What a run was started with, in its folder: the recipe, and how it is run.

OUT/config.json     the recipe, which decides the result; a resumed run must have the same
OUT/options.json    how far and how watched; a resumption takes it over, and may change it
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from celo2._utils.files import read_object, write_atomic
from celo2.meta.config import MetaConfig
from celo2.meta.run.errors import writing

RECIPE_FILE, OPTIONS_FILE = "config.json", "options.json"


def write_recipe(folder: Path, config: MetaConfig) -> None:
    """Writes down what a new run is.

    Raises:
        RunWriteError: It cannot be written.
    """
    with writing(folder / RECIPE_FILE):
        write_atomic(folder / RECIPE_FILE, config.to_json().encode())


def read_recipe(folder: Path) -> MetaConfig:
    """What a run was started with; options that there were not then have their defaults.

    Raises:
        OSError: There is no such file.
        ValueError: It is damaged; the message says what to do.
    """
    try:
        return MetaConfig.load(folder / RECIPE_FILE)
    except ValueError as error:
        raise ValueError(
            f"{error} Put back the recipe that the run was started with, or begin with another --out."
        ) from error


def check_recipe(folder: Path, config: MetaConfig) -> None:
    """Compares a resumed run's recipe with the one that it was started with.

    Raises:
        ValueError: They differ, and the message names in what; or the file is damaged.
    """
    saved = read_recipe(folder)
    before, now = (json.loads(recipe.to_json()) for recipe in (saved, config))
    differing = [
        f"{name}: {before[name]!r} before, {now[name]!r} now" for name in now if now[name] != before[name]
    ]
    if differing:
        raise ValueError(
            f"{folder} was started with another recipe ({', '.join(differing)}); leave these options out: "
            "--resume takes the recipe from the folder."
        )


def write_options(folder: Path, options: Mapping[str, Any]) -> None:
    """Writes down how a run is run, by names of `TrainOptions`; what is a dataclass becomes an object.

    Raises:
        RunWriteError: It cannot be written.
    """
    plain = {
        name: dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value  # type: ignore[call-overload]
        for name, value in options.items()
    }
    with writing(folder / OPTIONS_FILE):
        write_atomic(folder / OPTIONS_FILE, f"{json.dumps(plain, indent=2)}\n".encode())


def read_options(folder: Path) -> dict[str, Any]:
    """What `write_options` wrote; nothing for a run from before there was such a file.

    Raises:
        ValueError: It is damaged; the message says what to do.
    """
    path = folder / OPTIONS_FILE
    try:
        return read_object(path) if path.exists() else {}
    except ValueError as error:
        raise ValueError(f"{error} Remove the file, and give the options that it held again.") from error
