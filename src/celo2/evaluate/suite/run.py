"""Trains the runs of a suite that its folder lacks, locally or on a Ray cluster."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence, Set
from pathlib import Path
from typing import NamedTuple

from celo2._utils.files import write_atomic
from celo2._utils.locks import lock_folder
from celo2.evaluate.suite.local import (
    ONE_MACHINE,
    Failure,
    GroupProgress,
    Machine,
    train_groups,
)
from celo2.evaluate.suite.results import RunResult, RunSpec
from celo2.evaluate.suite.spec import Group, Suite
from celo2.evaluate.suite.store import RunStore

SUITE_FILE = "suite.json"


class SuiteProgress(NamedTuple):
    """Progress of a suite.

    Attributes:
        done: The number of runs in the folder.
        total: The number of runs of the suite.
        current: The group being trained; None before the first.
    """

    done: int
    total: int
    current: GroupProgress | None


OnSuiteProgress = Callable[[SuiteProgress], None]
Engine = Callable[
    [Sequence[Sequence[Group]], Machine, Callable[[GroupProgress], None]], Iterator[list[RunResult] | Failure]
]
"""Trains groups, given task by task, in whatever order."""


def run_locally(
    tasks: Sequence[Sequence[Group]], machine: Machine, on_progress: Callable[[GroupProgress], None]
) -> Iterator[list[RunResult] | Failure]:
    """Trains the groups on this machine, task by task: the default engine."""
    for groups in tasks:
        yield from train_groups(groups, machine, on_progress)


def run_suite(
    suite: Suite,
    store: RunStore,
    *,
    machine: Machine = ONE_MACHINE,
    engine: Engine = run_locally,
    on_progress: OnSuiteProgress | None = None,
) -> list[Failure]:
    """Trains every run of the suite that the folder lacks, and writes each group when it is finished.

    The folder is locked meanwhile: no other process may write into it.

    Args:
        suite: The suite to run.
        store: The folder; its file `spec.json` records the last requested suite.
        machine: The resources of each group.
        engine: The engine that trains groups.
        on_progress: Called at the start, and as groups proceed.

    Returns:
        The groups that could not be trained, with reasons; the next call retries them.

    Raises:
        FolderInUseError: Another process writes into the folder.
        ValueError: The folder's runs of a task have another length, or those of an optimizer other weights.
        KeyboardInterrupt: Ctrl-C was pressed; all groups finished by then are in the folder.
    """
    if not store.folder.exists():
        _plan(suite, [], store.folder)  # raises before anything is created
        store.folder.mkdir(parents=True, exist_ok=True)
    with lock_folder(store.folder, "celo2 evaluate"):
        store.prepare()
        stored = store.load().results
        groups = _plan(suite, stored, store.folder)
        settings = json.dumps(dataclasses.asdict(suite), indent=1)
        write_atomic(store.folder / SUITE_FILE, f"{settings}\n".encode())
        return _train(groups, stored, store.add, machine, engine, on_progress)


def train_in_memory(
    suite: Suite, *, machine: Machine = ONE_MACHINE, on_progress: OnSuiteProgress | None = None
) -> tuple[list[RunResult], list[Failure]]:
    """Trains every run of a suite on this machine without writing anything.

    Args:
        suite: The suite to run.
        machine: The resources of each group.
        on_progress: Called at the start, and as groups proceed.

    Returns:
        The runs, and the groups that could not be trained, with reasons.
    """
    results: list[RunResult] = []
    groups = [suite.groups(task) for task in suite.tasks]
    failures = _train(groups, [], results.extend, machine, run_locally, on_progress)
    return results, failures


def _train(
    groups: Sequence[Sequence[Group]],
    stored: Sequence[RunResult],
    keep: Callable[[list[RunResult]], None],
    machine: Machine,
    engine: Engine,
    on_progress: OnSuiteProgress | None,
) -> list[Failure]:
    wanted = {spec for whole in groups for group in whole for spec in group.specs()}
    done = wanted & {result.spec for result in stored}

    def report(current: GroupProgress | None = None) -> None:
        if on_progress:
            on_progress(SuiteProgress(len(done), len(wanted), current))

    report()
    failures: list[Failure] = []
    for outcome in engine(_missing(groups, done), machine, report):
        if isinstance(outcome, Failure):
            failures.append(outcome)
            continue
        keep(outcome)
        done.update(result.spec for result in outcome)
        report()
    return failures


def _plan(suite: Suite, stored: Sequence[RunResult], folder: Path) -> list[list[Group]]:
    """Returns each task's groups after checking them against the stored runs: data, lengths and weights.

    Raises:
        ValueError: See `run_suite`.
        OSError, ImportError: Weights cannot be loaded.
    """
    _check_lengths(suite, stored, folder)
    datasets = {result.spec.task: result.facts.dataset for result in stored}
    groups = [
        [group._replace(dataset=datasets.get(task, "")) for group in suite.groups(task)]
        for task in suite.tasks
    ]
    _check_weights(groups[0], stored, folder)
    return groups


def _missing(groups: Sequence[Sequence[Group]], done: Set[RunSpec]) -> list[list[Group]]:
    """Returns the unfinished part of each task's groups, without tasks that are finished."""
    left = [
        [
            part
            for group in whole
            if (part := group.only([spec for spec in group.specs() if spec not in done]))
        ]
        for whole in groups
    ]
    return [parts for parts in left if parts]


def _check_lengths(suite: Suite, stored: Sequence[RunResult], folder: Path) -> None:
    """Raises a ValueError for runs of different lengths, which cannot be compared."""
    for result in stored:
        task, steps = result.spec.task, result.spec.steps
        wanted = suite.steps_of.get(task, suite.steps)
        if task in suite.tasks and wanted != steps:
            raise ValueError(
                f"{folder} has runs of {task} of {steps} steps, and now {wanted} were asked for; use another "
                "folder."
            )


def _check_weights(groups: Sequence[Group], stored: Sequence[RunResult], folder: Path) -> None:
    """Raises a ValueError if an optimizer's weights differ from those of its stored runs."""
    now = {group.optimizer: group.weights for group in groups}
    for result in stored:
        name = result.spec.optimizer
        if now.get(name, result.weights) != result.weights:
            raise ValueError(
                f"{folder} has runs of {name} with other weights (checksum {result.weights[:16]}…) than "
                f"those of now ({now[name][:16]}…); use another folder, or give the new weights another name."
            )
