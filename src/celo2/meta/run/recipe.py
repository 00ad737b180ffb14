"""Stores the recipe of a run in its folder.

OUT/config.json    the recipe, which determines the result; a resumed run must have the same one
"""

from __future__ import annotations

import json
from pathlib import Path

from celo2._utils.files import write_atomic
from celo2.meta.config import MetaConfig
from celo2.meta.run.errors import writing

RECIPE_FILE = "config.json"


def write_recipe(folder: Path, config: MetaConfig) -> None:
    """Writes the recipe of a new run.

    Raises:
        RunWriteError: It cannot be written.
    """
    with writing(folder / RECIPE_FILE):
        write_atomic(folder / RECIPE_FILE, config.to_json().encode())


def read_recipe(folder: Path) -> MetaConfig:
    """Reads the recipe that a run was started with; options added since then have their defaults.

    Raises:
        OSError: There is no such file.
        ValueError: The file is damaged; the message says what to do.
    """
    try:
        return MetaConfig.load(folder / RECIPE_FILE)
    except ValueError as error:
        raise ValueError(
            f"{error} Put back the recipe that the run was started with, or begin with another --out."
        ) from error


def check_recipe(folder: Path, config: MetaConfig) -> None:
    """Checks that a resumed run has the recipe that it was started with.

    Raises:
        ValueError: The recipes differ (the message lists where), or the file is damaged.
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
