"""Names the checkpoint folders of groups after all that their numbers depend on.

A checkpoint is continued by the same program only. In the name are the settings of the runs, the task's
facts, the versions of this package, JAX, Optax and NumPy, JAX's options that change numbers, and the source
of code that is not this package's: the file of the module that defines the task or the optimizer; what that
module imports is not seen. Another name means another folder, and the runs start from the beginning.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import jax

from celo2._utils.registry import REFERENCE
from celo2._version import __version__
from celo2.evaluate.environment import PACKAGES
from celo2.evaluate.suite.results import TaskFacts
from celo2.evaluate.suite.spec import Group

OPTIONS = (  # of JAX, that change numbers
    "jax_default_matmul_precision",
    "jax_default_prng_impl",
    "jax_enable_x64",
    "jax_numpy_dtype_promotion",
    "jax_threefry_partitionable",
)
DIGITS = 16  # hexadecimal ones of a SHA-256


def name_checkpoints(
    group: Group, facts: TaskFacts, rows_at_once: int, functions: Sequence[Callable[..., Any]]
) -> str:
    """Returns the name of the folder of a group's checkpoints.

    Args:
        group: The group; its data set is that of `facts`.
        facts: The facts about its task.
        rows_at_once: The examples that are computed together (`Machine.rows_at_once`).
        functions: The functions that make up the task and the optimizer.
    """
    settings = {
        "group": group._replace(dataset=facts.dataset),
        "facts": dataclasses.asdict(facts),
        "rows_at_once": rows_at_once,
        "versions": [__version__, *map(version, PACKAGES)],
        "options": {name: jax.config.values.get(name) for name in OPTIONS},
        "own_code": _digest_own_code((group.task, group.optimizer), functions),
    }
    return f"{_name_owner(group.task, group.optimizer)}-{_hash(json.dumps(settings))}"


def belongs_to(name: str, task: str, optimizer: str) -> bool:
    """Returns whether a folder has this name for runs of an optimizer on a task, whatever their settings."""
    return name.partition("-")[0] == _name_owner(task, optimizer)


def _name_owner(task: str, optimizer: str) -> str:
    return _hash(json.dumps([task, optimizer]))


def _digest_own_code(names: Sequence[str], functions: Sequence[Callable[..., Any]]) -> list[str]:
    """Returns the digests of the modules that names and functions are from, without this package's."""
    found = [*_find_named(names), *filter(None, map(_find_module, functions))]
    own = {module.__name__: module for module in found if module.__name__.partition(".")[0] != "celo2"}
    return [f"{name} {_digest_source(own[name])}" for name in sorted(own)]


def _find_named(names: Sequence[str]) -> Iterator[ModuleType]:
    """Yields the modules of those names that are `package.module:make`."""
    for name in names:
        if REFERENCE.fullmatch(name) and (module := sys.modules.get(name.partition(":")[0])):
            yield module


def _find_module(function: Any) -> ModuleType | None:
    """Returns the module where a function is written; that of the class of a callable object."""
    while isinstance(function, partial) or hasattr(function, "__wrapped__"):
        function = function.func if isinstance(function, partial) else function.__wrapped__
    return inspect.getmodule(function) or inspect.getmodule(type(function))


@cache
def _digest_source(module: ModuleType) -> str:
    """Returns the digest of a module's file; "" for one without a file, such as an interactive session.

    The file is read once: what is written into it later is not what was imported.
    """
    path = getattr(module, "__file__", None)
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest() if path else ""
    except OSError:
        return ""


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:DIGITS]
