"""Compares candidates in pairs: with the same seeds, starts and batches, each at its own best rate.

For each task, the log ratios of the seeds' losses give a mean, its standard error and a Student interval over
the seeds. The interval of the mean over tasks accounts for seeds and tasks: the tasks' means vary with both,
so the standard error is their standard deviation over √tasks. Pairing removes the effects that a start and
its batches have on both candidates, which are most of the variation.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

from celo2.meta.probe.measure import TaskRecord, log_ratios

CONFIDENCE = 0.95  # of the intervals
POWER = 0.8  # probability of finding a "detectable" difference
LEAST_SEEDS = 8  # minimum for a claim


@dataclasses.dataclass(frozen=True)
class Row:
    """Comparison on one task, or the mean over tasks.

    Attributes:
        name: Name of the task.
        mean: Log ratio of the losses; negative is better than the reference.
        error: Standard error of the mean; NaN from one value.
        low: Lower end of the 95 % interval.
        high: Upper end of the 95 % interval.
        seen: Minimum difference that this number of values detects with probability 0.8.
    """

    name: str
    mean: float
    error: float
    low: float
    high: float
    seen: float

    @classmethod
    def of(cls, name: str, values: Sequence[float] | np.ndarray) -> Row:
        """Summarizes the log ratios of a task's seeds, or those of several tasks."""
        values = np.asarray(values, np.float64)
        mean, count = float(values.mean()), len(values)
        if count < 2:
            return cls(name, mean, math.nan, math.nan, math.nan, math.nan)
        error = float(values.std(ddof=1) / math.sqrt(count))
        half = error * float(stats.t.ppf(0.5 + CONFIDENCE / 2, count - 1))
        return cls(name, mean, error, mean - half, mean + half, detectable(error, count))

    def format(self) -> str:
        """Formats the mean and its interval in per cent of the loss: `-3.1 % [-4.0, -2.2]`."""
        if math.isnan(self.error):
            return f"{100 * self.mean:+.1f} %"
        return f"{100 * self.mean:+.1f} % [{100 * self.low:+.1f}, {100 * self.high:+.1f}]"


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Comparison of a candidate with a reference.

    Attributes:
        rows: One row per task.
        mean: Mean over the tasks; its interval accounts for seeds and tasks.
        seeds_error: Standard error of the mean over these particular tasks, from the seeds alone.
        num_seeds: Number of runs per task.
    """

    rows: tuple[Row, ...]
    mean: Row
    seeds_error: float
    num_seeds: int

    @property
    def wins(self) -> int:
        """The number of tasks with a negative mean."""
        return sum(row.mean < 0 for row in self.rows)


def compare(
    tasks: Mapping[str, TaskRecord], reference: Mapping[str, TaskRecord], measure: str = "train"
) -> Comparison:
    """Compares a candidate's records with a reference's, task by task and overall.

    Args:
        tasks: Records of the candidate, by task.
        reference: Records of the reference, for the same tasks and seeds.
        measure: "train" or "valid".

    Raises:
        ValueError: The reference lacks a task or has another number of seeds.
    """
    rows, count = [], 0
    for name, record in tasks.items():
        if name not in reference:
            raise ValueError(f"the reference has not been trained on {name!r}; probe the same tasks.")
        ratios = log_ratios(record, reference[name], measure)
        count = len(ratios)
        rows.append(Row.of(name, ratios))
    errors = [row.error for row in rows]
    return Comparison(
        tuple(rows),
        Row.of("mean", np.asarray([row.mean for row in rows])),
        math.sqrt(sum(error**2 for error in errors)) / len(errors),
        count,
    )


def detectable(error: float, count: int) -> float:
    """Computes the minimum true difference that a two-sided test at 5 % detects with probability 0.8.

    Args:
        error: Standard error of the mean.
        count: Number of values in the mean, ≥ 2.
    """
    degrees = count - 1
    return float(error * (stats.t.ppf(0.5 + CONFIDENCE / 2, degrees) + stats.t.ppf(POWER, degrees)))
