"""Arranges the runs of a suite by task, optimizer, setting and seed, and scores them against a baseline.

This module needs no JAX.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np

from celo2.constants import RULE_OPTIMIZERS
from celo2.evaluate.analysis import stats
from celo2.evaluate.analysis.cells import Cell, Setting
from celo2.evaluate.suite.results import RankBy, RunResult, TaskFacts

BASELINE = "adamw"


@dataclasses.dataclass(frozen=True, eq=False)
class TaskRuns:
    """All runs on one task with one data set and one length.

    Attributes:
        label: The name of the task, with the length or data set if there are several.
        steps: The length of each run.
        facts: The facts about the task.
        cells: The runs by optimizer name.
        baseline: The name of the optimizer that the others are compared with.
        rank_by: The loss that optimizers are tuned and ranked by.
    """

    label: str
    steps: int
    facts: TaskFacts
    cells: Mapping[str, Cell]
    baseline: str
    rank_by: RankBy

    @property
    def loss_name(self) -> str:
        """The name of the quantity used for ranking, such as "validation loss" or "training return"."""
        return f"{self.rank_by} {'return' if self.returns else 'loss'}"

    @property
    def returns(self) -> bool:
        """Whether the losses are negated returns."""
        return self.facts.unit == "return"

    @cached_property
    def baseline_loss(self) -> float | None:
        """The baseline's final loss (mean over its seeds); None where scores are undefined.

        They are undefined if the baseline was not run or diverged, or if ratios are meaningless because
        losses are negative or its return is not positive.
        """
        if self.baseline not in self.cells or self.cells[self.baseline].best is None:
            return None
        mean = self.cells[self.baseline].mean_loss
        finals = np.concatenate([cell.losses for cell in self.cells.values()])
        meaningful = mean < 0 if self.returns else bool((finals >= 0).all())
        return mean if meaningful else None

    def scores(self, optimizer: str) -> np.ndarray:
        """Returns the scores of an optimizer's seeds, `(S,)`; `baseline_loss` must not be None."""
        assert self.baseline_loss is not None
        return stats.normalized_scores(self.cells[optimizer].losses, self.baseline_loss, returns=self.returns)

    def speed_up(self, optimizer: str, *, in_seconds: bool = False) -> float | None:
        """Returns the speed-up over the baseline's whole run in reaching its final training loss.

        Training losses are known at every step, validation losses only at ten steps, so this compares
        training curves at the best settings (means over the seeds). The result is 0 if the loss is never
        reached, and None without a `baseline_loss` or if times were measured differently.

        Args:
            optimizer: The name of the optimizer.
            in_seconds: Whether to measure in seconds rather than steps.
        """
        if self.baseline_loss is None or (in_seconds and self.time_ratio(optimizer) is None):
            return None
        cell, theirs = self.cells[optimizer], self.cells[self.baseline]
        if cell.best is None:
            return 0.0
        steps, losses = cell.mean_curve()
        ours = cell.seconds_per_step if in_seconds else 1.0
        length = self.steps * (theirs.seconds_per_step if in_seconds else 1.0)
        return stats.speed_up(steps * ours, losses, theirs.mean_curve()[1][-1], length)

    def time_ratio(self, optimizer: str) -> float | None:
        """Returns the time per step relative to the baseline's; None if they were measured differently."""
        theirs, ours = self.cells.get(self.baseline), self.cells[optimizer]
        if theirs is None or theirs.timing != ours.timing:
            return None
        return ours.seconds_per_step / theirs.seconds_per_step

    def rate_sensitivity(self, optimizer: str) -> stats.RateSensitivity | None:
        """Returns the sensitivity of the loss to the rate; None with one rate, or if ratios are undefined."""
        cell = self.cells[optimizer]
        losses = np.array(list(cell.rates.values()))
        if cell.best is None or len(losses) < 2:
            return None
        best = losses.min()
        if not (best < 0 if self.returns else best > 0):
            return None
        with np.errstate(divide="ignore"):
            ratios = 1 / stats.normalized_scores(losses, best, returns=self.returns)
        return stats.rate_sensitivity(np.array(list(cell.rates)), ratios)

    def winners(self) -> list[str]:
        """Returns the optimizers with the lowest mean final loss; none if all diverged."""
        means = {name: cell.mean_loss for name, cell in self.cells.items()}
        lowest = min(means.values(), default=math.inf)
        return [name for name, mean in means.items() if mean == lowest < math.inf]


class Standings(NamedTuple):
    """All runs, arranged by task and optimizer.

    Attributes:
        tasks: The tasks, in the order of their labels.
        optimizers: The names: Celo2's variants, then the baseline, then the others in alphabetical order.
        baseline: The name of the optimizer that the others are compared with, possibly without runs.
    """

    tasks: tuple[TaskRuns, ...]
    optimizers: tuple[str, ...]
    baseline: str

    @property
    def runs(self) -> list[RunResult]:
        """Every run."""
        return [run for task in self.tasks for cell in task.cells.values() for run in cell.runs]


def is_ours(optimizer: str) -> bool:
    """Returns whether an optimizer is Celo2, Celo2-plus or Celo2-base, with any weights."""
    return optimizer.partition(":")[0] in RULE_OPTIMIZERS


def default_baseline(optimizers: Iterable[str]) -> str:
    """Returns AdamW if present, else the first by name that is not Celo2, else the first."""
    names = sorted(set(optimizers), key=lambda name: (name != BASELINE, is_ours(name), name))
    return names[0]


def arrange(
    results: Iterable[RunResult], baseline: str = BASELINE, rank_by: RankBy = "validation"
) -> Standings:
    """Arranges runs by task and optimizer.

    Runs of different lengths or on different data count as different tasks and are labelled accordingly.

    Args:
        results: Finished runs, in any order.
        baseline: The name of the optimizer that the others are compared with.
        rank_by: The loss that optimizers are tuned and ranked by; tasks without validation data always use
            the training loss.

    Raises:
        ValueError: There are no runs, or one appears twice.
    """
    runs = sorted(results, key=lambda run: run.spec)
    if not runs:
        raise ValueError("there is no finished run to report.")
    seen = set()
    for run in runs:
        if (key := (run.spec, run.facts.dataset)) in seen:
            raise ValueError(f"{run.spec} on {run.facts.dataset} appears twice; give each run once.")
        seen.add(key)
    names = {run.spec.optimizer for run in runs}
    order = sorted(names, key=lambda name: (not is_ours(name), name != baseline, name))
    groups = _group(runs, lambda run: (run.spec.task, run.spec.steps, run.facts.dataset))
    tasks = []
    for key, found in groups.items():
        facts = found[0].facts
        chosen = facts.rank_by(rank_by)
        cells = _cells(found, order, chosen)
        tasks.append(TaskRuns(_label(key, list(groups)), key[1], facts, cells, baseline, chosen))
    return Standings(tuple(tasks), tuple(order), baseline)


def _cells(runs: Sequence[RunResult], order: Sequence[str], rank_by: RankBy) -> dict[str, Cell]:
    by_name = _group(runs, lambda run: run.spec.optimizer)
    settings = {name: _group(found, lambda run: Setting.of(run.spec)) for name, found in by_name.items()}
    return {
        name: Cell(name, {key: tuple(settings[name][key]) for key in sorted(settings[name])}, rank_by)
        for name in order
        if name in settings
    }


def _label(key: tuple[str, int, str], keys: Sequence[tuple[str, int, str]]) -> str:
    """Returns the task's name, with its length or data set if it is not unique."""
    same = [other for other in keys if other[0] == key[0]]
    steps = f", {key[1]} steps" if len({other[1] for other in same}) > 1 else ""
    return key[0] + steps + (f", on {key[2]}" if len({other[2] for other in same}) > 1 else "")


def _group(runs: Iterable[RunResult], key: Callable[[RunResult], object]) -> dict:
    groups: dict = {}
    for run in runs:
        groups.setdefault(key(run), []).append(run)
    return groups
