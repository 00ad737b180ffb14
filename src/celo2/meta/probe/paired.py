"""Paired comparison of candidates: the same seeds, starts and batches, each at its own best rate.

For each task the log ratios of the seeds' losses give a mean, its standard error and a Student interval over
the seeds. The mean over the tasks has an interval that counts seeds and tasks: the tasks' means scatter by
both, so the standard error is their standard deviation over √tasks. Pairing removes the effect of a start and
its batches on both candidates, which is most of the scatter.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

from celo2.meta.probe.measure import TaskRecord, log_ratios

CONFIDENCE = 0.95  # of the intervals
POWER = 0.8  # probability of finding a difference that is called detectable
LEAST_SEEDS = 8  # minimum number for a claim


@dataclasses.dataclass(frozen=True)
class Row:
    """Comparison on one task, or the mean over tasks.

    Attributes:
        name: Name of the task.
        mean: Log ratio of the losses; below zero is better than the reference.
        error: Standard error of the mean; NaN from one value.
        low: Lower end of the 95 % interval.
        high: Upper end of the 95 % interval.
        seen: The minimum difference that this number of values finds with probability 0.8.
    """

    name: str
    mean: float
    error: float
    low: float
    high: float
    seen: float

    def format(self) -> str:
        """Formats the mean with its interval, in per cent of the loss: `-3.1 % [-4.0, -2.2]`."""
        if math.isnan(self.error):
            return f"{100 * self.mean:+.1f} %"
        return f"{100 * self.mean:+.1f} % [{100 * self.low:+.1f}, {100 * self.high:+.1f}]"


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Comparison of a candidate with a reference.

    Attributes:
        rows: One for each task.
        mean: Mean over the tasks; its interval counts seeds and tasks.
        seeds_error: Standard error of the mean over these very tasks, from the seeds alone.
        num_seeds: Number of runs of each task.
    """

    rows: tuple[Row, ...]
    mean: Row
    seeds_error: float
    num_seeds: int

    @property
    def wins(self) -> int:
        """The number of tasks with a mean below zero."""
        return sum(row.mean < 0 for row in self.rows)


def compare(
    tasks: Mapping[str, TaskRecord], reference: Mapping[str, TaskRecord], measure: str = "train"
) -> Comparison:
    """Compares the records of a candidate with a reference's, task by task and over all.

    Args:
        tasks: Records of the candidate, by task.
        reference: Records of the reference, for the same tasks and seeds.
        measure: "train" or "valid".

    Raises:
        ValueError: The reference lacks a task, or has another number of seeds.
    """
    rows, count = [], 0
    for name, record in tasks.items():
        if name not in reference:
            raise ValueError(f"the reference has not been trained on {name!r}; probe the same tasks.")
        ratios = log_ratios(record, reference[name], measure)
        count = len(ratios)
        rows.append(_row(name, ratios))
    errors = [row.error for row in rows]
    return Comparison(
        tuple(rows),
        _row("mean", np.asarray([row.mean for row in rows])),
        math.sqrt(sum(error**2 for error in errors)) / len(errors),
        count,
    )


def detectable(error: float, count: int) -> float:
    """Computes the minimum true difference that a two-sided test at 5 % finds with probability 0.8.

    Args:
        error: Standard error of the mean.
        count: Number of values that the mean is taken over, ≥ 2.
    """
    degrees = count - 1
    return float(error * (stats.t.ppf(0.5 + CONFIDENCE / 2, degrees) + stats.t.ppf(POWER, degrees)))


def _row(name: str, values: Sequence[float] | np.ndarray) -> Row:
    values = np.asarray(values, np.float64)
    mean, count = float(values.mean()), len(values)
    if count < 2:
        return Row(name, mean, math.nan, math.nan, math.nan, math.nan)
    error = float(values.std(ddof=1) / math.sqrt(count))
    half = error * float(stats.t.ppf(0.5 + CONFIDENCE / 2, count - 1))
    return Row(name, mean, error, mean - half, mean + half, detectable(error, count))
