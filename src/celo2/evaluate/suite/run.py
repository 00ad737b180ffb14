"""Trains the runs of a suite that are missing from its folder, locally or on a Ray cluster."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator, Sequence, Set
from itertools import product
from pathlib import Path
from typing import NamedTuple

from celo2._utils.files import write_atomic
from celo2._utils.locks import lock_folder
from celo2.evaluate.analysis.standings import arrange
from celo2.evaluate.suite.checkpoint_names import belongs_to
from celo2.evaluate.suite.local import (
    ONE_MACHINE,
    Failure,
    GroupProgress,
    Machine,
    train_groups,
)
from celo2.evaluate.suite.program_digest import read_sources
from celo2.evaluate.suite.results import RunResult, RunSpec
from celo2.evaluate.suite.spec import Group, Suite
from celo2.evaluate.suite.store import RunStore

SUITE_FILE = "suite.json"
CHECKPOINTS = "checkpoints"  # folder beside the runs; a finished suite has no checkpoints in it


class SuiteProgress(NamedTuple):
    """Progress of a suite.

    Attributes:
        done: The number of runs in the folder.
        total: The number of runs of the suite, including refinement.
        current: The group being trained; None before the first.
    """

    done: int
    total: int
    current: GroupProgress | None


OnSuiteProgress = Callable[[SuiteProgress], None]
Engine = Callable[
    [Sequence[Sequence[Group]], Machine, Callable[[GroupProgress], None]], Iterator[list[RunResult] | Failure]
]
"""Trains groups, given by task, in any order."""


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
    command: str = "celo2 evaluate",
) -> list[Failure]:
    """Trains every run of the suite that the folder lacks, writing each group when it is finished.

    Meanwhile the folder is locked against other writers.

    Args:
        suite: The suite to run.
        store: The folder; its `suite.json` records the last requested suite.
        machine: The resources of each group.
        engine: The engine that trains the groups.
        on_progress: Called at the start, and as groups proceed.
        command: The name of this command, shown to other processes that find the folder locked.

    Returns:
        The groups that could not be trained, with reasons; the next call retries them.

    Raises:
        FolderInUseError: Another process is writing into the folder.
        ValueError: The folder has runs of a task with another length, or of an optimizer with other weights.
        KeyboardInterrupt: Ctrl-C was pressed; all groups finished by then have been saved.
    """
    _plan(suite, store.load().results, store.folder)  # raises before anything is written
    store.folder.mkdir(parents=True, exist_ok=True)
    with lock_folder(store.folder, command):
        read_sources()  # as they were imported, for the names of checkpoints
        store.prepare()
        stored = store.load().results
        groups = _plan(suite, stored, store.folder)
        machine = machine._replace(checkpoints=machine.checkpoints or store.folder / CHECKPOINTS)
        settings = json.dumps(dataclasses.asdict(suite), indent=1)
        write_atomic(store.folder / SUITE_FILE, f"{settings}\n".encode())
        training = _Training(suite, stored, store.add, machine, engine, on_progress)
        failures = training.run(groups)
        if not failures:
            _remove_checkpoints(suite, store.folder / CHECKPOINTS)
        return failures


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
    training = _Training(suite, [], lambda _: None, machine, run_locally, on_progress)
    failures = training.run([suite.groups(task) for task in suite.tasks])
    return training.results, failures


class _Training:
    """Trains a suite: the grids, then the learning rates around the best of each.

    Args:
        suite: The suite.
        stored: The existing runs.
        keep: Called with the runs of each finished group.
        machine, engine, on_progress: As in `run_suite`.

    Attributes:
        results: All runs; for a run that was trained again, the stored one.
    """

    def __init__(
        self,
        suite: Suite,
        stored: Sequence[RunResult],
        keep: Callable[[list[RunResult]], None],
        machine: Machine,
        engine: Engine,
        on_progress: OnSuiteProgress | None,
    ) -> None:
        self._runs = {result.spec: result for result in stored}
        self._suite, self._keep, self._machine, self._engine = suite, keep, machine, engine
        self._on_progress = on_progress
        self._wanted: set[RunSpec] = set()

    @property
    def results(self) -> list[RunResult]:
        return list(self._runs.values())

    def run(self, groups: Sequence[Sequence[Group]]) -> list[Failure]:
        """Trains the groups of each task and returns those that could not be trained."""
        self._later = sum(self._suite.count_refined(group) for whole in groups for group in whole)
        failures = self._train(groups, self._machine)
        refined = [[more for group in whole if (more := self._refine(group))] for whole in groups]
        self._later = 0
        if any(refined):  # a step's time is known by then
            failures += self._train(refined, self._machine._replace(time_alone=False))
        return failures

    def _train(self, groups: Sequence[Sequence[Group]], machine: Machine) -> list[Failure]:
        self._wanted |= {spec for whole in groups for group in whole for spec in group.specs()}
        self._report()
        failures: list[Failure] = []
        for outcome in self._engine(_missing(groups, self._done()), machine, self._report):
            if isinstance(outcome, Failure):
                failures.append(outcome)
                continue
            runs = [self._with_known_time(run) for run in outcome]
            self._keep(runs)
            self._runs = {run.spec: run for run in runs} | self._runs
            self._report()
        return failures

    def _with_known_time(self, run: RunResult) -> RunResult:
        """Returns a run with its optimizer's step time measured alone, if that was measured before."""
        if not self._machine.time_alone or run.timing == "alone":
            return run
        for known in self.results:
            if known.timing == "alone" and _where(known) == _where(run):
                return dataclasses.replace(run, timing="alone", seconds_per_step=known.seconds_per_step)
        return run

    def _done(self) -> set[RunSpec]:
        return self._wanted & self._runs.keys()

    def _report(self, current: GroupProgress | None = None) -> None:
        if self._on_progress:
            total = len(self._wanted) + self._later
            self._on_progress(SuiteProgress(len(self._done()), total, current))

    def _refine(self, group: Group) -> Group | None:
        """Returns the group around the best learning rate; None without one, or if nothing is refined."""
        if not self._suite.count_refined(group):
            return None
        runs = [self._runs[spec] for spec in group.specs() if spec in self._runs]
        if len(runs) < len(group.specs()):
            return None  # it failed, and is retried the next time
        [task] = arrange(runs, rank_by=self._suite.rank_by).tasks
        best = task.cells[group.optimizer].best
        return group.around(best.learning_rate) if best else None


def _remove_checkpoints(suite: Suite, folder: Path) -> None:
    """Removes a finished suite's checkpoints, including those left by other settings or code.

    Checkpoints of other optimizers and tasks stay: another suite may resume from them.
    """
    for place in folder.glob("*"):
        if any(belongs_to(place.name, *owner) for owner in product(suite.tasks, suite.optimizers)):
            shutil.rmtree(place, ignore_errors=True)


def _where(run: RunResult) -> tuple[object, ...]:
    """Returns what a step's time depends on: the task, optimizer and machine."""
    machine = (run.environment.get("processor"), run.environment.get("devices"))
    return (run.spec.task, run.spec.optimizer, *machine)


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
    """Returns the unfinished part of each task's groups, omitting finished tasks."""
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
    """Raises a ValueError for runs of different lengths, which are not comparable."""
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
