"""Compares candidates in pairs: the same seeds, starts and batches, each at its own best rate.

For each task the log ratios of the seeds' losses give a mean, its standard error and a Student interval over
the seeds. The mean over the tasks has an interval that counts seeds and tasks: the tasks' means scatter by
both, so the standard error is their standard deviation over √tasks. Pairing takes out what a start and its
batches do to both candidates alike, which is most of the scatter.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

from celo2.meta.probe.measure import TaskRecord, log_ratios

CONFIDENCE = 0.95  # of the intervals
POWER = 0.8  # probability with which a difference is seen that is called detectable
LEAST_SEEDS = 8  # below which no claim is made


@dataclasses.dataclass(frozen=True)
class Row:
    """One task, or the mean over tasks.

    Attributes:
        name: The task's.
        mean: Log ratio of the losses; below zero is better than the reference.
        error: Its standard error; NaN from one value.
        low: Of the 95 % interval.
        high: Of the 95 % interval.
        seen: The least difference that so many values would have shown with probability 0.8.
    """

    name: str
    mean: float
    error: float
    low: float
    high: float
    seen: float

    def format(self) -> str:
        """The mean with its interval, in per cent of the loss: `-3.1 % [-4.0, -2.2]`."""
        if math.isnan(self.error):
            return f"{100 * self.mean:+.1f} %"
        return f"{100 * self.mean:+.1f} % [{100 * self.low:+.1f}, {100 * self.high:+.1f}]"


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A candidate against a reference.

    Attributes:
        rows: One for each task.
        mean: Over the tasks, its interval counting seeds and tasks.
        seeds_error: Standard error of the mean over these very tasks, from the seeds alone.
        num_seeds: Runs of each task.
    """

    rows: tuple[Row, ...]
    mean: Row
    seeds_error: float
    num_seeds: int

    @property
    def wins(self) -> int:
        """Tasks with a mean below zero."""
        return sum(row.mean < 0 for row in self.rows)


def compare(
    tasks: Mapping[str, TaskRecord], reference: Mapping[str, TaskRecord], measure: str = "train"
) -> Comparison:
    """Compares the records of a candidate with a reference's, task by task and over all.

    Args:
        tasks: Records by task.
        reference: The same tasks and seeds.
        measure: "train" or "valid".

    Raises:
        ValueError: The reference lacks a task, or has other numbers of seeds.
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
    """The least true difference that a two-sided test at 5 % finds with probability 0.8.

    Args:
        error: Standard error of the mean.
        count: Values it is the mean of, ≥ 2.
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
