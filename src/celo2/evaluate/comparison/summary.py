"""Summarises a comparison: one row per optimizer, and caveats for readers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from celo2.baselines import sets_own_rate
from celo2.evaluate.comparison.compare import CompareResult, Entry
from celo2.report.kit import MeanStd, shorten
from celo2.training.grid import RunGrid

REFERENCE = "adamw"  # step times are also given relative to this optimizer's


class Summary(NamedTuple):
    """Results of one optimizer at its best learning rate.

    Attributes:
        name: The displayed name of the optimizer.
        learning_rate: The best learning rate; None if each has a diverged run, and the losses are None then.
        final_train_loss: The training loss over the last 5 % of the steps.
        best_train_loss: The training loss over the best 5 % of consecutive steps.
        final_valid_loss: The validation loss after the last step.
        best_valid_loss: The lowest validation loss.
        accuracy: The validation accuracy after the last step, in [0, 1]; None for tasks without one.
        num_diverged: The number of diverged runs at all learning rates.
        num_runs: The total number of runs.
        seconds_per_step: The time of a step of one run on one device.
        time_ratio: The time of a step relative to AdamW's; None if AdamW was not compared.
        state_bytes_per_parameter: The number of bytes of optimizer state per parameter.
    """

    name: str
    learning_rate: float | None
    final_train_loss: MeanStd | None
    best_train_loss: MeanStd | None
    final_valid_loss: MeanStd | None
    best_valid_loss: MeanStd | None
    accuracy: MeanStd | None
    num_diverged: int
    num_runs: int
    seconds_per_step: float
    time_ratio: float | None
    state_bytes_per_parameter: float


def summarize(result: CompareResult) -> list[Summary]:
    """Returns one row per optimizer, in the order of the result."""
    reference = next((entry.cost.seconds for entry in result.entries if entry.name == REFERENCE), None)
    return [_summarize(entry, result.task.num_parameters, reference) for entry in result.entries]


def caveats(result: CompareResult) -> list[str]:
    """Returns warnings that qualify the table, one sentence each."""
    found = [note for entry in result.entries for note in _caveats_of(entry)]
    if result.config.seeds == 1:
        found.append("There is one seed: differences of a few per cent may be chance.")
    if result.unfinished:
        found.append(f"The comparison was interrupted before {', '.join(result.unfinished)} finished.")
    return found


def _summarize(entry: Entry, num_parameters: int, reference: float | None) -> Summary:
    grid = entry.grid
    return Summary(
        name=shorten(entry.name),
        learning_rate=None if grid.best is None else float(grid.learning_rates[grid.best]),
        final_train_loss=_at_best(grid, grid.final_train_loss),
        best_train_loss=_at_best(grid, grid.best_train_loss),
        final_valid_loss=_at_best(grid, grid.final_valid_loss),
        best_valid_loss=_at_best(grid, grid.best_valid_loss),
        accuracy=_at_best(grid, grid.final_valid_accuracy),
        num_diverged=int(grid.diverged.sum()),
        num_runs=grid.diverged.size,
        seconds_per_step=entry.cost.seconds,
        time_ratio=None if reference is None else entry.cost.seconds / reference,
        state_bytes_per_parameter=entry.cost.state_bytes / num_parameters,
    )


def _at_best(grid: RunGrid, values: np.ndarray | None) -> MeanStd | None:
    """Returns mean and deviation over the seeds at the best learning rate; values are `(L, S)`."""
    if grid.best is None or values is None:
        return None
    return MeanStd.over(values[grid.best])


def _caveats_of(entry: Entry) -> Iterator[str]:
    grid, name = entry.grid, shorten(entry.name)
    if grid.best is None:
        yield f"{name} diverged at every learning rate with at least one seed."
        return
    rate = f"{grid.learning_rates[grid.best]:g}"
    if sets_own_rate(entry.name):
        yield f"{name} sets its own step sizes: nothing of it was tuned."
    elif len(grid.learning_rates) == 1:
        yield f"{name} had one learning rate only, {rate}: it is not tuned."
    elif grid.best_at_edge:
        highest = grid.learning_rates[grid.best] == grid.learning_rates.max()
        edge, other = ("highest", "higher") if highest else ("lowest", "lower")
        yield (f"{name}: the best learning rate, {rate}, is the {edge} tried; a {other} one may be better.")
    lost = [
        f"{rate:g} ({diverged.sum()} of {diverged.size})"
        for rate, diverged in zip(grid.learning_rates, grid.diverged, strict=True)
        if diverged.any()
    ]
    if lost:
        yield f"{name} diverged at learning rate {', '.join(lost)}."
