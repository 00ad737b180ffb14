"""Runs what a suite's folder still lacks, here or on the machines of a Ray cluster."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from celo2._files import write_atomic
from celo2.evaluate.run_store import RunStore
from celo2.evaluate.runs import RunResult
from celo2.evaluate.suite import Group, Suite
from celo2.evaluate.train_groups import ONE_MACHINE, Failure, GroupProgress, Machine, train_groups

__all__ = ["Engine", "SuiteProgress", "run_locally", "run_suite"]

SUITE_FILE = "suite.json"


class SuiteProgress(NamedTuple):
    """Where a suite stands.

    Attributes:
        done: Runs that are in the folder.
        total: Runs of the suite.
        current: What is being trained; None before the first.
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
    """The engine for one machine: task by task."""
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

    Args:
        suite: What to run.
        store: The folder; its file `suite.json` says what was last asked for.
        machine: What each group may use.
        engine: Who trains.
        on_progress: Called at the start, and as groups proceed.

    Returns:
        The groups that could not be trained, and why; they are tried again by the next call.

    Raises:
        ValueError: The folder has runs of one of the tasks of another length.
        KeyboardInterrupt: Ctrl-C; all groups finished by then are in the folder.
    """
    store.prepare()
    _check_lengths(suite, store)
    settings = json.dumps(dataclasses.asdict(suite), indent=1)
    write_atomic(store.folder / SUITE_FILE, f"{settings}\n".encode())
    wanted = [spec for task in suite.tasks for group in suite.groups(task) for spec in group.specs()]
    done = {spec for spec in wanted if store.has(spec)}

    def report(current: GroupProgress | None = None) -> None:
        if on_progress:
            on_progress(SuiteProgress(len(done), len(wanted), current))

    report()
    missing = [
        [
            group
            for whole in suite.groups(task)
            if (group := whole.only([spec for spec in whole.specs() if spec not in done]))
        ]
        for task in suite.tasks
    ]
    failures: list[Failure] = []
    for outcome in engine([groups for groups in missing if groups], machine, report):
        if isinstance(outcome, Failure):
            failures.append(outcome)
            continue
        store.add(outcome)
        done.update(result.spec for result in outcome)
        report()
    return failures


def _check_lengths(suite: Suite, store: RunStore) -> None:
    """Refuses to mix runs of different lengths, which no table could compare."""
    for result in store.load().results:
        task, steps = result.spec.task, result.spec.steps
        if task in suite.tasks and suite.steps_of.get(task, suite.steps) != steps:
            raise ValueError(
                f"{store.folder} has runs of {task} of {steps} steps, and now "
                f"{suite.steps_of.get(task, suite.steps)} were asked for; use another folder."
            )
