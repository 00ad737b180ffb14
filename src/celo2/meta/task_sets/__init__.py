"""Declared sets of tasks: for searching, for selecting weights, and for judging them.

A set is a TOML file, so that it is fixed in the repository before the runs that use it:

    first_seed = 3000            # seeds of the runs: first_seed, first_seed + 1, …
    seeds = 8

    [[tasks]]
    name = "perceptron"          # name of the row in tables and files
    task = "mlp"                 # in `celo2.tasks.registry.TASKS`, with @tiny or @small if it has sizes
    kind = "perceptron"          # tasks of one kind share one vote; by default the name
    steps = 300
    rate = 8e-3                  # where the search for the best rate begins, for rules with unit steps
    weight_decay = 0.1           # decoupled; by default 0
    options = { widths = [32] }  # keyword arguments of the function that makes the task

The package has five sets. `searching` is small and broad, and half of it are transformers; `searching-relu`
has ReLU networks whose units die, for `celo2 search --revives`. `choosing` may select checkpoints and
recipes. `judging` has other kinds of networks, other data and other sizes; half of its runs are 1,500 steps
long, and it is only ever run on weights about to be shipped and on the rows compared with them. `scaling` has
one task at three widths and one at three lengths.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import tomllib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from celo2.config import nearest_name
from celo2.tasks.base import Task
from celo2.tasks.registry import check_task_name, make_task

__all__ = ["END_SHARE", "TASK_SETS", "TaskEntry", "TaskSet", "load_task_set"]

END_SHARE = 0.2  # share of the steps and of the validations that the final loss is averaged over

TASK_SETS = ("searching", "searching-relu", "choosing", "judging", "scaling")
"""Names of the sets in the package."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskEntry:
    """One task of a set, and its training settings.

    Attributes:
        name: Name of its row.
        task: Name in the registry.
        kind: Tasks of one kind share one vote in a mean.
        steps: Length of a run, ≥ 5.
        rate: Peak learning rate at which the search for the best one begins, for rules with unit steps.
        weight_decay: Decoupled weight decay, multiplied by the learning rate.
        options: Keyword arguments of the function that makes the task.
        unit: Divisor of the task's log ratio in a search: the value of one per cent of the loss differs
            between a classifier's training loss, which falls to zero, and a language model's, which does not.
        at_once: Number of runs that a search trains side by side; 0: all. A few keep activations in cache.

    Raises:
        ValueError: A name is unknown or a number is out of its range.
    """

    name: str
    task: str
    kind: str = ""
    steps: int = 300
    rate: float = 8e-3
    weight_decay: float = 0.0
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    unit: float = 1.0
    at_once: int = 0

    def __post_init__(self) -> None:
        """Checks name and numbers."""
        check_task_name(self.task)
        if not self.kind:
            object.__setattr__(self, "kind", self.name)
        if self.steps < 5:
            raise ValueError(f"task {self.name!r}: steps must be at least 5, got {self.steps}.")
        if not (0 < self.unit < math.inf and self.at_once >= 0):
            raise ValueError(
                f"task {self.name!r}: expected unit > 0 and at_once ≥ 0, got {self.unit} and {self.at_once}."
            )
        if not (0 < self.rate < math.inf and 0 <= self.weight_decay < math.inf):
            raise ValueError(
                f"task {self.name!r}: expected rate > 0 and weight_decay ≥ 0, got {self.rate} and "
                f"{self.weight_decay}."
            )

    def make(self) -> Task:
        """Builds the task; raises the errors of `celo2.tasks.registry.make_task`."""
        return make_task(self.task, **self.options)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskSet:
    """Tasks and the seeds that they are run with.

    Attributes:
        name: Name of the set.
        tasks: The tasks, with unique names.
        seeds: Number of runs per task and rate.
        first_seed: First seed of these runs; it differs between sets, so that none judges another's choices
            on the same seeds.

    Raises:
        ValueError: There is no task or seed, or two tasks have the same name.
    """

    name: str
    tasks: tuple[TaskEntry, ...]
    seeds: int = 8
    first_seed: int = 1000

    def __post_init__(self) -> None:
        """Checks names and seeds."""
        names = [entry.name for entry in self.tasks]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"task set {self.name!r} needs tasks with different names, got {names}.")
        if self.seeds < 1 or self.first_seed < 0:
            raise ValueError(
                f"task set {self.name!r}: expected seeds ≥ 1 and first_seed ≥ 0, got {self.seeds} and "
                f"{self.first_seed}."
            )

    @property
    def seed_range(self) -> range:
        """The seeds of the runs."""
        return range(self.first_seed, self.first_seed + self.seeds)

    def select(self, names: Sequence[str]) -> TaskSet:
        """Returns the set restricted to the tasks with these names.

        Raises:
            ValueError: The set has no task with a given name; the message suggests the nearest.
        """
        known = {entry.name: entry for entry in self.tasks}
        for name in names:
            if name not in known:
                raise ValueError(
                    f"task set {self.name!r} has no task {name!r}{nearest_name(name, known)} "
                    f"It has {', '.join(known)}."
                )
        return dataclasses.replace(self, tasks=tuple(known[name] for name in names))

    @property
    def digest(self) -> str:
        """Twelve hexadecimal digits that depend on the tasks, their options and the seeds."""
        text = json.dumps(dataclasses.asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def kind_weights(self) -> tuple[float, ...]:
        """The weight of each task in a mean that weights kinds equally; they sum to 1."""
        kinds = [entry.kind for entry in self.tasks]
        return tuple(1.0 / (len(set(kinds)) * kinds.count(kind)) for kind in kinds)


def load_task_set(source: str | Path) -> TaskSet:
    """Loads one of the package's sets by name, or a set from a TOML file.

    Raises:
        OSError: The file cannot be read.
        ValueError: The file is not a task set; the message says where and why.

    Example:
        >>> load_task_set("judging").seeds
        8
    """
    if source in TASK_SETS:
        text = resources.files(__name__).joinpath(f"{source}.toml").read_text()
        name = str(source)
    else:
        path = Path(source)
        if not path.exists():
            raise FileNotFoundError(
                f"there is no task set {str(source)!r}{nearest_name(str(source), TASK_SETS)} Expected "
                f"{', '.join(TASK_SETS)}, or a TOML file."
            )
        text, name = path.read_text(), path.stem
    try:
        return _parse(name, tomllib.loads(text))
    except (ValueError, TypeError) as error:
        raise ValueError(f"task set {source}: {error}") from error


def _parse(name: str, content: Mapping[str, Any]) -> TaskSet:
    fields = {field.name for field in dataclasses.fields(TaskSet)} - {"name"}
    unknown = set(content) - fields
    if unknown:
        raise ValueError(f"unknown key {sorted(unknown)[0]!r}; expected {', '.join(sorted(fields))}.")
    entries = [TaskEntry(**entry) for entry in content.get("tasks", [])]
    return TaskSet(name=name, **{**content, "tasks": tuple(entries)})
