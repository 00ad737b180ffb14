"""Names the checkpoint folders of groups by everything that affects their results.

Only the same program may resume a checkpoint. The name covers the settings of the runs, the task's
facts, the versions of JAX, Optax and NumPy, the JAX options that affect results, all of this package's files,
and the parts of the task and the optimizer (`celo2.evaluate.suite.program_digest`): the files in which their
functions and classes are defined, their arrays, and their settings. If the name changes, so does the
folder, and the runs start from the beginning.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from types import ModuleType

import jax

from celo2._utils.registry import REFERENCE
from celo2._version import __version__
from celo2.baselines.spec import OptimizerSpec
from celo2.evaluate.environment import PACKAGES
from celo2.evaluate.suite.program_digest import digest_package, digest_program
from celo2.evaluate.suite.results import TaskFacts
from celo2.evaluate.suite.spec import Group
from celo2.tasks.base import Task
from celo2.tasks.registry import TASKS

OPTIONS = (  # JAX options that affect results
    "jax_default_matmul_precision",
    "jax_default_prng_impl",
    "jax_enable_x64",
    "jax_numpy_dtype_promotion",
    "jax_threefry_partitionable",
)
DIGITS = 16  # hexadecimal digits of a SHA-256


def name_checkpoints(group: Group, facts: TaskFacts, rows_at_once: int, digests: Sequence[str]) -> str:
    """Returns the name of the folder for a group's checkpoints.

    Args:
        group: The group; its data set is the one in `facts`.
        facts: The facts about its task.
        rows_at_once: The number of examples computed together (`Machine.rows_at_once`).
        digests: The results of `digest_task` and `digest_optimizer`.
    """
    settings = {
        "group": group._replace(dataset=facts.dataset),
        "facts": dataclasses.asdict(facts),
        "rows_at_once": rows_at_once,
        "versions": [__version__, *map(version, PACKAGES)],
        "package": digest_package(),
        "options": {name: jax.config.values.get(name) for name in OPTIONS},
        "digests": list(digests),
    }
    return f"{_name_owner(group.task, group.optimizer)}-{_hash(json.dumps(settings))}"


def digest_task(name: str, task: Task) -> str:
    """Returns the digest of a task, its data, and the function registered under this name."""
    name = name.partition("@")[0]
    return digest_program(task, TASKS.find(name).make, *_find_named(name))


def digest_optimizer(name: str, spec: OptimizerSpec) -> str:
    """Returns the digest of the optimizer found under this name."""
    return digest_program(spec, *_find_named(name))


def belongs_to(name: str, task: str, optimizer: str) -> bool:
    """Returns whether a folder name belongs to an optimizer's runs on a task, with any settings."""
    return name.partition("-")[0] == _name_owner(task, optimizer)


def _name_owner(task: str, optimizer: str) -> str:
    return _hash(json.dumps([task, optimizer]))


def _find_named(name: str) -> Iterator[ModuleType]:
    """Yields the module in a name `package.module:make`; `make` may be defined in another module."""
    if REFERENCE.fullmatch(name) and (module := sys.modules.get(name.partition(":")[0])):
        yield module


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:DIGITS]
